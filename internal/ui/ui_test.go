package ui

import (
	"bytes"
	"strings"
	"testing"
)

func TestProgress(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		var out, err bytes.Buffer
		u := &UI{Out: &out, Err: &err, ErrIsTerminal: terminal}
		p := u.Progress("rendered %d hosts")
		p.Add(1)
		p.Add(2)
		if n := p.End(); n != 3 {
			t.Errorf("End() = %d, want 3", n)
		}
		if out.Len() > 0 {
			t.Errorf("progress is among the results: %q", out.String())
		}
		switch got := err.String(); {
		case !terminal && got != "":
			t.Errorf("progress in a log: %q", got)
		case terminal && (!strings.HasPrefix(got, "\rrendered 1 hosts") || !strings.HasSuffix(got, "\r\x1b[K")):
			t.Errorf("progress on a terminal: %q", got)
		}
	}
}

func TestStreams(t *testing.T) {
	var out, err bytes.Buffer
	u := &UI{Out: &out, Err: &err}
	u.Printf("%s", "result")
	u.Notef("note %d", 1)
	if out.String() != "result" || err.String() != "note 1\n" {
		t.Errorf("got %q and %q", out.String(), err.String())
	}
	(&UI{}).Notef("nowhere")
	(&UI{}).Printf("nowhere")
}
