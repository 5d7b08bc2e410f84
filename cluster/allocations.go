package cluster

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
)

// Running lists the allocations that run on the nodes of a host, or are about to:
// JOB (ALLOCATION) each. Its name is matched as a whole or up to the first dot, so
// that it doesn't matter which of both the agent has. A host that Nomad doesn't know
// runs none.
func (n *Nomad) Running(ctx context.Context, host string) ([]string, error) {
	short := func(name string) string { s, _, _ := strings.Cut(strings.ToLower(name), "."); return s }
	query := (&nomad.QueryOptions{}).WithContext(ctx)
	nodes, _, err := n.Nodes().List(query)
	if err != nil {
		return nil, n.explain("looking for the node "+host, err)
	}
	var running []string
	for _, node := range nodes {
		same := strings.EqualFold(node.Name, host) || short(node.Name) == short(host) && (!strings.Contains(node.Name, ".") || !strings.Contains(host, "."))
		if !same {
			continue
		}
		allocations, _, err := n.Nodes().Allocations(node.ID, query)
		if StatusOf(err) == http.StatusNotFound {
			continue // it has just been collected
		}
		if err != nil {
			return nil, n.explain("asking what runs on the node "+node.Name, err)
		}
		for _, a := range allocations {
			if !a.ClientTerminalStatus() { // told to stop or not, it still runs
				running = append(running, fmt.Sprintf("%s (%.8s)", a.JobID, a.ID))
			}
		}
	}
	return running, nil
}

func (n *Nomad) explain(doing string, err error) error {
	return fmt.Errorf("%s: %w", doing, Explain(ServiceNomad, n.Address, err))
}
