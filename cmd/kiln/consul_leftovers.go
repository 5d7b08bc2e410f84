package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alisw/kiln/cluster/leftovers"
	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/internal/ui"
)

// leftoversReport is what one call finds and does.
type leftoversReport struct {
	options *leftoversOptions
	source  *leftovers.Source
	ui      *ui.UI

	state    *leftovers.State
	found    []leftovers.Finding
	agreed   func(leftovers.Finding) bool // what may be removed; nil is all that is stale
	outcomes []*leftovers.Outcome
	watched  time.Duration
}

func (r *leftoversReport) look(ctx context.Context) error {
	state, err := r.source.Gather(ctx)
	if err != nil {
		return err
	}
	r.state, r.found = state, leftovers.Judge(state)
	return nil
}

func (r *leftoversReport) stale() []leftovers.Finding {
	return slices.DeleteFunc(slices.Clone(r.found), func(f leftovers.Finding) bool { return f.Verdict != leftovers.Stale })
}

// confirm asks whether to go on, and looks again afterwards: people take their
// time. What is found only then isn't what they said yes to.
func (r *leftoversReport) confirm(ctx context.Context) error {
	if r.options.yes {
		return nil
	}
	before := r.stale()
	if err := r.show(); err != nil {
		return err
	}
	n := len(before)
	yes, err := confirm(ctx, r.ui, fmt.Sprintf("Remove the %s that %s proven to be left over?", counted(n, "entry", "entries"), isAre(n)))
	if err != nil {
		return err
	}
	if !yes {
		r.ui.Notef("nothing was removed")
		return errShown
	}
	if err := r.look(ctx); err != nil {
		return &troubleError{err}
	}
	r.agreed = func(f leftovers.Finding) bool {
		return slices.ContainsFunc(before, func(b leftovers.Finding) bool { return b.Node == f.Node && b.ID == f.ID })
	}
	return nil
}

// fix removes what is stale, and watches that it stays away. Whatever is in the
// way, it shows what was done.
func (r *leftoversReport) fix(ctx context.Context) error {
	wait := r.options.wait
	if !r.options.waitSet {
		var err error
		if wait, err = r.source.Round(ctx); err != nil {
			return &troubleError{err}
		}
	}
	remover := &leftovers.Remover{Source: r.source, Route: leftovers.Route{
		Via: leftovers.Via(r.options.via), Port: r.options.port,
		SSH: &remote.Dialer{User: r.options.sshUser, Config: r.options.sshConfig},
	}}
	stale := r.stale()
	if r.agreed != nil {
		stale = slices.DeleteFunc(stale, func(f leftovers.Finding) bool { return !r.agreed(f) })
	}
	p := r.ui.Progress("removed %d of " + fmt.Sprint(len(stale)))
	for _, f := range stale {
		if ctx.Err() != nil {
			break
		}
		r.outcomes = append(r.outcomes, remover.Remove(ctx, f))
		p.Add(1)
	}
	p.End()
	err := r.watch(ctx, remover, wait)
	if showErr := r.showOutcomes(err); showErr != nil {
		return showErr
	}
	return err
}

// watch counts the seconds, where anybody sees it.
func (r *leftoversReport) watch(ctx context.Context, remover *leftovers.Remover, wait time.Duration) error {
	removed := slices.ContainsFunc(r.outcomes, func(o *leftovers.Outcome) bool { return o.Removed })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !removed || wait == 0 {
		return nil
	}
	p := r.ui.Progress("watching that they stay away: %d s of " + wait.String())
	defer p.End()
	shown := 0
	err := remover.Watch(ctx, r.outcomes, wait, func(passed time.Duration) {
		r.watched = passed
		p.Add(int(passed.Seconds()) - shown)
		shown = int(passed.Seconds())
	})
	if err != nil && ctx.Err() == nil {
		return &troubleError{err}
	}
	return err
}

// end turns what was found and done into the exit status.
func (r *leftoversReport) end(err error) error {
	if err != nil {
		return err
	}
	if r.state.Nomad != nil {
		return &troubleError{fmt.Errorf("nothing is proven: %w", r.state.Nomad)}
	}
	if err := r.source.Blind(r.state); err != nil {
		return &troubleError{fmt.Errorf("there may be more than what was found: asking Consul at %s: %w", r.source.Consul.Address, err)}
	}
	left := len(r.found)
	for _, o := range r.outcomes {
		if o.Err == nil {
			left--
		}
	}
	if left > 0 {
		return errShown
	}
	return nil
}

// leftoversResult is what kiln consul leftovers --json prints.
type leftoversResult struct {
	Consul    string         `json:"consul"`
	Nomad     string         `json:"nomad"`
	Entries   int            `json:"entries"`           // that were looked at
	Problem   string         `json:"problem,omitempty"` // why there may be more, or why nothing is proven
	Leftovers []leftoverItem `json:"leftovers"`
	Watched   float64        `json:"watched_seconds,omitempty"`
}

type leftoverItem struct {
	Node         string   `json:"node"`
	ID           string   `json:"id"`
	Service      string   `json:"service"`
	Address      string   `json:"address"` // with the port
	NomadAddress string   `json:"nomad_address,omitempty"`
	Verdict      string   `json:"verdict"` // stale, or cannot prove
	Why          string   `json:"why"`
	Removed      *bool    `json:"removed,omitempty"` // with --fix
	How          string   `json:"how,omitempty"`
	Notes        []string `json:"notes,omitempty"`
	Error        string   `json:"error,omitempty"`
}

func (r *leftoversReport) result() *leftoversResult {
	result := &leftoversResult{Consul: r.source.Consul.Address, Nomad: r.source.Nomad.Address, Entries: len(r.state.Entries), Watched: r.watched.Round(time.Second).Seconds(), Leftovers: []leftoverItem{}}
	if r.state.Nomad != nil {
		result.Problem = r.state.Nomad.Error()
	} else if err := r.source.Blind(r.state); err != nil {
		result.Problem = err.Error()
	}
	for _, f := range r.found {
		item := leftoverItem{Node: f.Node, ID: f.ID, Service: f.Service, Address: f.Endpoint(), NomadAddress: f.NomadAddress, Verdict: string(f.Verdict), Why: f.Why}
		for _, o := range r.outcomes {
			if o.Node != f.Node || o.ID != f.ID {
				continue
			}
			item.Removed, item.How, item.Notes = &o.Removed, o.How, o.Notes
			if o.Err != nil {
				item.Error = o.Err.Error()
			}
		}
		result.Leftovers = append(result.Leftovers, item)
	}
	return result
}

// show prints what was found.
func (r *leftoversReport) show() error {
	if r.options.json {
		return printJSON(r.ui, r.result())
	}
	if len(r.found) == 0 {
		if r.state.Nomad == nil {
			r.ui.Printf("of %s of Nomad clients in Consul, none is left over\n", counted(len(r.state.Entries), "entry", "entries"))
		}
		return nil
	}
	return printTable(r.ui, "NODE\tADDRESS\tSERVICE ID\tVERDICT\tWHY", func(row func(...string)) {
		for _, f := range r.found {
			row(f.Node, f.Endpoint(), f.ID, string(f.Verdict), f.Why)
		}
	})
}

// showOutcomes prints what was done; watching is the error of that.
func (r *leftoversReport) showOutcomes(watching error) error {
	if r.options.json {
		return printJSON(r.ui, r.result())
	}
	err := printTable(r.ui, "NODE\tADDRESS\tSERVICE ID\tRESULT\tTHROUGH", func(row func(...string)) {
		for _, f := range r.found {
			result, how := r.resultOf(f, watching)
			row(f.Node, f.Endpoint(), f.ID, result, how)
		}
	})
	for _, o := range r.outcomes {
		for _, note := range o.Notes {
			r.note(&o.Finding, "note: "+note)
		}
		if o.Err != nil {
			r.note(&o.Finding, o.Err.Error())
		}
	}
	for _, f := range r.found {
		if f.Verdict == leftovers.Unproven {
			r.note(&f, "cannot prove that it is left over: "+f.Why)
		}
	}
	return err
}

// note says something of an entry, line by line. What comes from the cluster can't
// write to the terminal what it likes.
func (r *leftoversReport) note(f *leftovers.Finding, text string) {
	lines := strings.Split(fmt.Sprintf("kiln: %s on %s: %s", f.ID, f.Node, text), "\n")
	for _, line := range lines {
		r.ui.Notef("%s", visible(line))
	}
}

// resultOf is what became of a finding, and through whom.
func (r *leftoversReport) resultOf(f leftovers.Finding, watching error) (result, how string) {
	if f.Verdict != leftovers.Stale {
		return "left alone: " + string(f.Verdict), "-"
	}
	for _, o := range r.outcomes {
		switch {
		case o.Node != f.Node || o.ID != f.ID:
			continue
		case o.Removed && watching != nil:
			return "removed; whether it stays away wasn't seen", o.How
		case o.Removed && r.watched == 0:
			return "removed; not watched", o.How
		case o.Removed:
			return fmt.Sprintf("removed, and stayed away for %s", r.watched.Round(time.Second)), o.How
		case o.How == "":
			return "NOT removed", "-"
		}
		return "NOT removed", o.How
	}
	return "NOT removed: left for another call", "-"
}

// printTable prints rows under a head.
func printTable(u *ui.UI, head string, rows func(row func(...string))) error {
	out := bufio.NewWriter(orDiscard(u.Out))
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, head)
	rows(func(cells ...string) {
		for i := range cells {
			cells[i] = visible(cells[i])
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	})
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	return nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
