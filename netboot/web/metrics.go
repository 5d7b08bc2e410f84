package web

import (
	"bufio"
	"fmt"
	"net/http"

	"github.com/VictoriaMetrics/metrics"

	"github.com/alisw/kiln/netboot/state"
)

// Metric is one of another server's, with its value now.
type Metric struct {
	// Name is as Prometheus has it, labels and all: kiln_tftp_transfers_total{result="ok"}.
	Name  string
	Value float64
}

// counters are this package's metrics. Those of all labels that there may be are
// there from the beginning, at zero: what never happens is to be seen, too.
type counters struct {
	set        *metrics.Set
	firstBoots *metrics.Counter
	written    *metrics.Counter
	ready      *metrics.Counter
	overdue    *metrics.Counter
	verified   *metrics.Counter
}

// transfer are the metrics of one kind of file.
type transfer struct{ whole, broken, bytes *metrics.Counter }

func (s *Server) newCounters() *counters {
	set := metrics.NewSet()
	c := &counters{
		set:        set,
		firstBoots: set.NewCounter("kiln_netboot_first_boots_total"),
		written:    set.NewCounter("kiln_netboot_written_total"),
		ready:      set.NewCounter("kiln_netboot_ready_total"),
		overdue:    set.NewCounter("kiln_netboot_overdue_total"),
		verified:   set.NewCounter("kiln_netboot_verifications_total"),
	}
	for _, answer := range []string{"install", "disk", "unknown", "error"} {
		c.scripts(answer)
	}
	for _, result := range []string{"ok", "redeemed", "token", "expired", "limited", "error"} {
		c.redemptions(result)
	}
	for _, result := range []string{"ok", "error"} {
		c.seeds(result)
	}
	for _, result := range []string{"armed", "disarmed", "refused", "error"} {
		c.operators(result)
	}
	for _, kind := range []string{"ipxe", "kernel", "initramfs", "manifest", "chunk"} {
		c.transfer(kind)
	}
	set.NewGauge("kiln_netboot_writers", func() float64 { n, _ := s.line.lengths(); return float64(n) })
	set.NewGauge("kiln_netboot_waiting", func() float64 { _, n := s.line.lengths(); return float64(n) })
	set.NewGauge("kiln_netboot_writers_max", func() float64 { return float64(s.Writers) })
	return c
}

func (c *counters) labelled(name, label, value string) *metrics.Counter {
	return c.set.GetOrCreateCounter(fmt.Sprintf("kiln_netboot_%s{%s=%q}", name, label, value))
}

// scripts counts what hosts that ask what to boot are answered.
func (c *counters) scripts(answer string) *metrics.Counter {
	return c.labelled("scripts_total", "answer", answer)
}

func (c *counters) redemptions(result string) *metrics.Counter {
	return c.labelled("redemptions_total", "result", result)
}

func (c *counters) seeds(result string) *metrics.Counter {
	return c.labelled("seeds_total", "result", result)
}

func (c *counters) operators(result string) *metrics.Counter {
	return c.labelled("operator_requests_total", "result", result)
}

func (c *counters) requests(server string, status int) *metrics.Counter {
	return c.set.GetOrCreateCounter(fmt.Sprintf("kiln_netboot_requests_total{server=%q,status=\"%dxx\"}", server, status/100))
}

func (c *counters) transfer(kind string) transfer {
	return transfer{
		whole:  c.labelled("transfers_total", "kind", kind),
		broken: c.labelled("transfers_broken_total", "kind", kind),
		bytes:  c.labelled("sent_bytes_total", "kind", kind),
	}
}

// metrics writes all of them as Prometheus reads them.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	list, damaged, err := s.Store.List()
	if err != nil {
		s.Log.Error("the state can't be read", "error", err)
		http.Error(w, "the state can't be read", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	out := bufio.NewWriter(w)
	defer out.Flush()
	s.counts.set.WritePrometheus(out)
	stages := map[state.Stage]int{}
	for _, r := range list {
		stages[r.Stage]++
	}
	for _, stage := range state.Stages() {
		fmt.Fprintf(out, "kiln_netboot_installations{stage=%q} %d\n", stage, stages[stage])
	}
	fmt.Fprintf(out, "kiln_netboot_damaged_records %d\n", len(damaged))
	if s.Metrics != nil {
		for _, m := range s.Metrics() {
			fmt.Fprintf(out, "%s %v\n", m.Name, m.Value)
		}
	}
	metrics.WriteProcessMetrics(out)
}
