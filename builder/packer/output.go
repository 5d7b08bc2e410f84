package packer

import (
	"bytes"
	"strings"
	"sync"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// What begins the lines that are progress, and those that say why the script has
// failed. Where there is a terminal, both come by one stream.
const (
	progressPrefix = "kiln: "
	causePrefix    = "kiln-error: "
)

// mostLines is how many lines that are neither are kept, for an error before the
// script begins.
const mostLines = 20

// scriptOutput takes what the script prints, by lines.
type scriptOutput struct {
	ui      packersdk.Ui
	mu      sync.Mutex
	causes  []string
	rest    []string
	streams []*lineWriter
}

// stream is one of the script's output streams.
func (o *scriptOutput) stream() *lineWriter {
	w := &lineWriter{line: o.line}
	o.streams = append(o.streams, w)
	return w
}

func (o *scriptOutput) line(text string) {
	text = strings.TrimRight(text, "\r\n")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch cause, is := strings.CutPrefix(text, causePrefix); {
	case is:
		o.causes = append(o.causes, cause)
	case strings.HasPrefix(text, progressPrefix):
		o.ui.Say(strings.TrimPrefix(text, progressPrefix))
	case text != "":
		o.ui.Say(text)
		if o.rest = append(o.rest, text); len(o.rest) > mostLines {
			o.rest = o.rest[1:]
		}
	}
}

// end is all that was said, once the script has ended.
func (o *scriptOutput) end() (causes, rest []string) {
	for _, w := range o.streams {
		w.end()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.causes, o.rest
}

// lineWriter hands on each line that is written.
type lineWriter struct {
	line func(string)
	mu   sync.Mutex
	left []byte
}

const longestLine = 64 << 10

func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = append(w.left, b...)
	for {
		i := bytes.IndexByte(w.left, '\n')
		if i < 0 && len(w.left) < longestLine {
			return len(b), nil
		}
		if i < 0 {
			i = len(w.left) - 1
		}
		w.line(string(w.left[:i+1]))
		w.left = w.left[i+1:]
	}
}

// end hands on a last line without an end.
func (w *lineWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.left) > 0 {
		w.line(string(w.left))
		w.left = nil
	}
}
