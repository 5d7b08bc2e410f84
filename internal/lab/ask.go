package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// ConsulURL is where Consul's server has that path.
func (c *Cluster) ConsulURL(path string) string {
	return "http://" + c.Config.Address.Addr().String() + ":8500" + path
}

// NomadURL is where Nomad's server has that path.
func (c *Cluster) NomadURL(path string) string {
	return c.scheme() + "://" + c.Config.Address.Addr().String() + ":4646" + path
}

func (c *Cluster) scheme() string {
	if c.Config.TLS != nil {
		return "https"
	}
	return "http"
}

// Get asks a server, with all rights, and reads its answer from JSON.
func (c *Cluster) Get(ctx context.Context, url string, answer any) error {
	return c.Do(ctx, http.MethodGet, url, nil, answer)
}

// Do sends something as JSON to a server, with all rights, and reads the answer;
// body and answer may be nil.
func (c *Cluster) Do(ctx context.Context, method, url string, body, answer any) error {
	return Do(ctx, c.Client, c.Config.Secrets.Management, method, url, body, answer)
}

// Do sends something as JSON to an agent of Consul or Nomad, with a token, and
// reads the answer; token, body and answer may be nothing.
func Do(ctx context.Context, client *http.Client, token, method, url string, body, answer any) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		return err
	}
	if token != "" {
		request.Header.Set("X-Consul-Token", token)
		request.Header.Set("X-Nomad-Token", token)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, response.Status, b)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(b, answer)
}

// Node is what Nomad's server knows of a client.
type Node struct {
	ID            string
	Name          string
	Status        string
	HTTPAddr      string
	Attributes    map[string]string
	Meta          map[string]string
	NodeResources struct {
		Cpu struct { //nolint:revive,staticcheck // Nomad's name
			CpuShares          int64 //nolint:revive,staticcheck // Nomad's name
			ReservableCpuCores []int //nolint:revive,staticcheck // Nomad's name
		}
		Memory struct{ MemoryMB int64 }
		Disk   struct{ DiskMB int64 }
	}
	ReservedResources struct {
		Cpu struct { //nolint:revive,staticcheck // Nomad's name
			CpuShares        int64 //nolint:revive,staticcheck // Nomad's name
			ReservedCpuCores []int //nolint:revive,staticcheck // Nomad's name
		}
		Memory struct{ MemoryMB int64 }
		Disk   struct{ DiskMB int64 }
	}
}

// Nodes are Nomad's clients, by name, each with all that the server knows.
func (c *Cluster) Nodes(ctx context.Context) (map[string]*Node, error) {
	var list []struct{ ID string }
	if err := c.Get(ctx, c.NomadURL("/v1/nodes"), &list); err != nil {
		return nil, err
	}
	nodes := map[string]*Node{}
	for _, l := range list {
		n := new(Node)
		if err := c.Get(ctx, c.NomadURL("/v1/node/"+l.ID), n); err != nil {
			return nil, err
		}
		nodes[n.Name] = n
	}
	return nodes, nil
}

// Service is one that Consul's server knows.
type Service struct{ Node, Address, ServiceAddress string }

// Services are those of that name in Consul's catalog.
func (c *Cluster) Services(ctx context.Context, name string) ([]Service, error) {
	var list []Service
	err := c.Get(ctx, c.ConsulURL("/v1/catalog/service/"+name), &list)
	return list, err
}
