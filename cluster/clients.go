// Package cluster knows the running cluster: how its APIs and its hosts are
// reached. What is done there has packages of its own below: verify, apply,
// vault, leftovers.
//
// Addresses, tokens and certificates come from the environment, as the nomad,
// consul and vault programs take them (NOMAD_ADDR, CONSUL_HTTP_TOKEN,
// VAULT_CACERT and their like); where that names no address, the site does.
package cluster

import (
	"fmt"
	"os"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// Nomad is a client of Nomad's API, and where that is.
type Nomad struct {
	*nomad.Client
	Address string
}

// Consul is a client of the API of one Consul agent, and where that is.
type Consul struct {
	*consul.Client
	Address string
}

// NewNomad makes a client of the Nomad at NOMAD_ADDR, else at address, else at
// Nomad's own default. Nothing is asked of it yet.
func NewNomad(address string) (*Nomad, error) {
	config := nomad.DefaultConfig()
	if os.Getenv("NOMAD_ADDR") == "" && address != "" {
		config.Address = address
	}
	client, err := nomad.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("the NOMAD_… settings in the environment can't be used: %w", err)
	}
	return &Nomad{client, config.Address}, nil
}

// NewConsul makes a client of the Consul agent at CONSUL_HTTP_ADDR, else at
// address, else at Consul's own default. Nothing is asked of it yet.
func NewConsul(address string) (*Consul, error) {
	config := consul.DefaultConfig()
	if os.Getenv(consul.HTTPAddrEnvName) == "" && address != "" {
		config.Address = address
	}
	// NewClient takes the scheme away.
	shown := config.Address
	if !strings.Contains(shown, "://") {
		shown = config.Scheme + "://" + shown
	}
	client, err := consul.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("the CONSUL_… settings in the environment can't be used: %w", err)
	}
	return &Consul{client, shown}, nil
}
