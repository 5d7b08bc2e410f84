package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/alisw/kiln/internal/quote"
)

// Content is what a file holds: text, with places for secrets. However it is
// printed, no resolved secret shows.
type Content struct {
	parts []part
}

// part is a run of bytes, or the place of one secret.
type part struct {
	text   []byte
	ref    Ref // set for a secret's place
	format quote.Format
	origin Origin
	secret Secret // set once resolved
}

// Literal is content without any secret.
func Literal(b []byte) Content {
	if len(b) == 0 {
		return Content{}
	}
	return Content{parts: []part{{text: b}}}
}

// AppendText adds bytes.
func (c *Content) AppendText(b []byte) {
	if len(b) > 0 {
		c.parts = append(c.parts, part{text: b})
	}
}

// AppendSecret adds the place of a secret, to be quoted as format f asks.
// Origin is where the reference was written.
func (c *Content) AppendSecret(ref Ref, f quote.Format, origin Origin) {
	c.parts = append(c.parts, part{ref: ref, format: f, origin: origin})
}

// Reference is one secret that a content needs.
type Reference struct {
	Ref    Ref    `json:"ref"`
	Origin Origin `json:"origin"`
}

// Unresolved lists the references whose secrets the content doesn't hold yet,
// in their order, each once.
func (c Content) Unresolved() []Reference {
	var refs []Reference
	seen := map[Ref]bool{}
	for _, p := range c.parts {
		if _, resolved := p.secret.Reveal(); p.ref != "" && !resolved && !seen[p.ref] {
			seen[p.ref] = true
			refs = append(refs, Reference{p.ref, p.origin})
		}
	}
	return refs
}

// HoldsSecrets tells whether Bytes would give a resolved secret away.
func (c Content) HoldsSecrets() bool {
	for _, p := range c.parts {
		if _, ok := p.secret.Reveal(); ok {
			return true
		}
	}
	return false
}

// Bytes is the content as it is to be written: a resolved secret as its value,
// another as the text of its reference behind UnresolvedPrefix, both quoted
// for where they stand.
func (c Content) Bytes() ([]byte, error) {
	if len(c.parts) == 1 && c.parts[0].ref == "" {
		return c.parts[0].text, nil
	}
	size := 0
	for _, p := range c.parts {
		size += len(p.text) + 2*len(p.ref)
	}
	b := make([]byte, 0, size)
	for _, p := range c.parts {
		if p.ref == "" {
			b = append(b, p.text...)
			continue
		}
		value, ok := p.secret.Reveal()
		if !ok {
			value = p.ref.Unresolved()
		}
		text, err := quote.As(p.format, value)
		if err != nil {
			return nil, fmt.Errorf("%s: the secret %s: %w", p.origin.Position, p.ref, err)
		}
		b = append(b, text...)
	}
	return b, nil
}

// Redacted is the content for people to look at: each secret, resolved or not,
// as its reference.
func (c Content) Redacted() string {
	var b strings.Builder
	for _, p := range c.parts {
		if p.ref == "" {
			b.Write(p.text)
		} else {
			fmt.Fprintf(&b, "[secret %s]", p.ref)
		}
	}
	return b.String()
}

// String is Redacted.
func (c Content) String() string { return c.Redacted() }

// Format prints Redacted, whatever the verb.
func (c Content) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.Redacted())) }

// MarshalJSON is Redacted as a string.
func (c Content) MarshalJSON() ([]byte, error) { return json.Marshal(c.Redacted()) }

// Resolver finds the secrets that references stand for.
type Resolver interface {
	Resolve(ctx context.Context, ref Ref) (Secret, error)
}

// UnresolvedError says which reference couldn't be resolved, and where it was
// written. It never holds a secret.
type UnresolvedError struct {
	Reference
	Err error
}

func (e *UnresolvedError) Error() string {
	return fmt.Sprintf("%s: the secret %s: %v", e.Origin.Position, e.Ref, e.Err)
}

func (e *UnresolvedError) Unwrap() error { return e.Err }

// WithSecrets is p with every secret of its Host half resolved. The Image half
// never has any.
func (p *Plan) WithSecrets(ctx context.Context, r Resolver) (*Plan, error) {
	resolved := *p
	resolved.Host.Files = make([]File, len(p.Host.Files))
	known := map[Ref]Secret{}
	for i, f := range p.Host.Files {
		c, err := f.Content.withSecrets(ctx, r, known)
		if err != nil {
			return nil, err
		}
		f.Content = c
		resolved.Host.Files[i] = f
	}
	return &resolved, nil
}

func (c Content) withSecrets(ctx context.Context, r Resolver, known map[Ref]Secret) (Content, error) {
	out := Content{parts: make([]part, len(c.parts))}
	copy(out.parts, c.parts)
	for i := range out.parts {
		p := &out.parts[i]
		if p.ref == "" {
			continue
		}
		s, ok := known[p.ref]
		if !ok {
			var err error
			if s, err = r.Resolve(ctx, p.ref); err != nil {
				return Content{}, &UnresolvedError{Reference{p.ref, p.origin}, err}
			}
			known[p.ref] = s
		}
		p.secret = s
	}
	// What the format can't carry is found now, not half-way through writing.
	if _, err := out.Bytes(); err != nil {
		return Content{}, err
	}
	return out, nil
}

// References lists every secret that the host's files still wait for, each
// once, in the order of the files.
func (h *Host) References() []Reference {
	var refs []Reference
	seen := map[Ref]bool{}
	for _, f := range h.Files {
		for _, r := range f.Content.Unresolved() {
			if !seen[r.Ref] {
				seen[r.Ref] = true
				refs = append(refs, r)
			}
		}
	}
	return refs
}
