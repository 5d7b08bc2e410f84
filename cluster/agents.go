package cluster

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	consul "github.com/hashicorp/consul/api"
)

// The ports of a Consul agent's API, where nothing else is configured.
const (
	ConsulPort    = 8500
	ConsulTLSPort = 8501
)

// NewConsulAgent makes a client of the API of a certain Consul agent: token,
// certificates, and whether TLS is spoken are the environment's, CONSUL_HTTP_ADDR's
// address isn't. The agent's certificate has to be for name. A port of 0 is the
// usual one.
func NewConsulAgent(name, address string, port int) (*Consul, error) {
	config := consul.DefaultConfig()
	if strings.HasPrefix(config.Address, "https://") {
		config.Scheme = "https"
	}
	if port == 0 {
		port = ConsulPort
		if config.Scheme == "https" {
			port = ConsulTLSPort
		}
	}
	config.Address = net.JoinHostPort(strings.Trim(address, "[]"), strconv.Itoa(port))
	if config.TLSConfig.Address == "" {
		config.TLSConfig.Address = name
	}
	shown := config.Scheme + "://" + config.Address
	client, err := consul.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("the CONSUL_… settings in the environment can't be used: %w", err)
	}
	return &Consul{client, shown}, nil
}

// NewConsulVia makes a client of an agent that only transport reaches, in plain
// HTTP; address is how it is called in errors. The token is the environment's.
func NewConsulVia(transport http.RoundTripper, address string) (*Consul, error) {
	config := consul.DefaultConfig()
	config.Scheme, config.Address = "http", net.JoinHostPort("127.0.0.1", strconv.Itoa(ConsulPort))
	config.HttpClient = &http.Client{Transport: transport}
	client, err := consul.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("the CONSUL_… settings in the environment can't be used: %w", err)
	}
	return &Consul{client, address}, nil
}

// ConsulTokenSet tells whether the environment has a token for Consul.
func ConsulTokenSet() bool {
	return os.Getenv(consul.HTTPTokenEnvName) != "" || os.Getenv(consul.HTTPTokenFileEnvName) != ""
}
