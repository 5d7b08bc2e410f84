package leftovers

import (
	"context"
	"fmt"
	"math"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/alisw/kiln/cluster"
)

const (
	// antiEntropy is Consul's time between two full synchronisations of an agent with
	// the servers; to that, the agent adds a random time, which grows with the cluster.
	antiEntropy = time.Minute
	// antiEntropyNodes is how many nodes a cluster has before it grows.
	antiEntropyNodes = 128
)

// Round is the longest time in which an agent of a cluster of so many nodes tells
// the servers anew of all that it has registered.
func Round(nodes int) time.Duration {
	scale := 1
	if nodes > antiEntropyNodes {
		scale += int(math.Ceil(math.Log2(float64(nodes) / antiEntropyNodes)))
	}
	return antiEntropy + time.Duration(scale)*antiEntropy
}

// Round is how long an entry has to stay away in this cluster, to be gone.
func (s *Source) Round(ctx context.Context) (time.Duration, error) {
	ctx, cancel := s.within(ctx)
	defer cancel()
	nodes, _, err := s.Consul.Catalog().Nodes(new(consul.QueryOptions).WithContext(ctx))
	if err != nil {
		return 0, cluster.Explain(cluster.ServiceConsul, s.Consul.Address, err)
	}
	return Round(len(nodes)), nil
}

// Watch looks at the catalog for that long, and notes in the outcomes which of the
// removed entries came back. It calls tick, where set, each time that it has looked.
// The error says that it isn't known whether they stayed away.
func (r *Remover) Watch(ctx context.Context, outcomes []*Outcome, long time.Duration, tick func(passed time.Duration)) error {
	start := time.Now()
	for last := false; ; {
		present, err := r.present(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// One look that failed on the way is made up for by the next.
		if err != nil && last {
			return fmt.Errorf("whether they stay away can't be seen: %w", err)
		}
		away := 0
		for _, o := range outcomes {
			if !o.Removed {
				continue
			}
			if present[o.key()] {
				o.Removed = false
				o.Err = fmt.Errorf("it was removed (%s), and came back: a Nomad that advertises %s still runs, or the Consul agent of %s lives and knew of it", o.How, o.Endpoint(), o.Node)
				continue
			}
			away++
		}
		passed := time.Since(start)
		if tick != nil {
			tick(passed)
		}
		if last || away == 0 {
			return nil
		}
		last = passed+r.poll() >= long
		if err := sleep(ctx, min(r.poll(), max(0, long-passed))); err != nil {
			return err
		}
	}
}
