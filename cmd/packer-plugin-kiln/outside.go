package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/builder/packer"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/userns"
)

// bakeVerb has this program bake, and print messages. It is for itself alone: a
// user who isn't root bakes in a user namespace.
const bakeVerb = "bake-inside"

// message is a line of what the one inside prints: one of these.
type message struct {
	Event *bake.Event `json:"event,omitempty"`
	Note  string      `json:"note,omitempty"`
	Image string      `json:"image,omitempty"` // its ID: the bake has ended well
	Error string      `json:"error,omitempty"`
}

// request is what the one inside is told to bake.
type request struct {
	Site       string          `json:"site"`
	Profile    string          `json:"profile"`
	Definition string          `json:"definition"`
	Formats    []images.Format `json:"formats"`
}

// bakeOutside bakes in a user namespace.
func bakeOutside(ctx context.Context, store *images.Store, o *packer.BakeOptions) (*images.Manifest, error) {
	text, err := json.Marshal(request{o.Site, o.Profile, o.Definition, o.Formats})
	if err != nil {
		return nil, err
	}
	out, in := io.Pipe()
	var last message
	read := make(chan error, 1)
	go func() { read <- readMessages(out, o, &last) }()
	var said bytes.Buffer
	status, err := userns.RunWith(ctx, []string{bakeVerb}, userns.Streams{In: bytes.NewReader(text), Out: in, Err: &said}, ctx.Done())
	in.Close()
	unread := <-read
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("baking works with the owners of images' files, for which a user who isn't root needs a user namespace: %w", err)
	case last.Error != "":
		return nil, errors.New(last.Error)
	case status != 0 || last.Image == "":
		return nil, errors.Join(fmt.Errorf("baking in a user namespace ended with status %d: %s", status, strings.TrimSpace(said.String())), unread)
	}
	return images.ReadManifest(store.Path(last.Image, images.ManifestName))
}

// readMessages hands on what is news, and keeps what ends the bake.
func readMessages(r io.Reader, o *packer.BakeOptions, last *message) error {
	// Whatever is wrong with a line, the one that writes mustn't wait.
	defer func() { _, _ = io.Copy(io.Discard, r) }()
	lines := json.NewDecoder(bufio.NewReader(r))
	for {
		var m message
		if err := lines.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading what is baked: %w", err)
		}
		switch {
		case m.Event != nil:
			o.Events(*m.Event)
		case m.Note != "":
			o.Note(m.Note)
		default:
			*last = m
		}
	}
}

// bakeInside is the other side of bakeOutside; the result is its exit status.
func bakeInside(args []string) int {
	inside, err := userns.Inside()
	if err == nil && (!inside || len(args) > 0) {
		err = errors.New("this is what Packer's builder kiln calls by itself")
	}
	out := &printer{lines: json.NewEncoder(os.Stdout)}
	// A terminal's ^C comes here, too: the one outside says so, once.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var m *packer.Baked
	if err == nil {
		m, err = bakeRequest(ctx, out)
	}
	if err != nil {
		out.print(message{Error: err.Error()})
		return 1
	}
	out.print(message{Image: m.Manifest.ID})
	return 0
}

// printer prints messages, whoever has them.
type printer struct {
	mu    sync.Mutex
	lines *json.Encoder
}

// print needs no error: where nobody reads any more, the one outside is gone, and
// this one with it.
func (p *printer) print(m message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.lines.Encode(m)
}

func bakeRequest(ctx context.Context, out *printer) (*packer.Baked, error) {
	var r request
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		return nil, fmt.Errorf("what is to be baked: %w", err)
	}
	return sites{}.Bake(ctx, &packer.BakeOptions{
		Site: r.Site, Profile: r.Profile, Definition: r.Definition, Formats: r.Formats,
		Events: func(e bake.Event) { out.print(message{Event: &e}) },
		Note:   func(s string) { out.print(message{Note: s}) },
	})
}
