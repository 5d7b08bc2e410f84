// Package vault keeps a cluster's Vault as its site wants it: which token roles,
// policies and JWT logins there are, and how long tokens live. It also revokes
// tokens.
//
// Settings are compared by what Vault reads back: times in seconds, policies in
// lower case, each once, in no order. What differs is sent, and no more: what
// somebody else has set, and the site doesn't name, stays. Where Vault would
// forget what isn't sent along, what it had is sent along.
package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/profiles"
	"github.com/alisw/kiln/secrets"
)

// Server is the cluster's Vault.
type Server struct {
	*cluster.Vault
	unsaid []string // what no error repeats, beside the client's own token
}

// Connect finds the Vault that the environment names, else the one at address,
// and the operator's token. Nothing is asked of it yet.
func Connect(address string) (*Server, error) {
	v, err := cluster.NewVault(address)
	if err != nil {
		return nil, err
	}
	return &Server{Vault: v}, nil
}

// Action is what it takes to have an object of Vault's as the site wants it.
type Action string

// The actions.
const (
	Keep   Action = "keep" // it is as the site wants it
	Create Action = "create"
	Update Action = "update"
)

// State is how an object of Vault's differs from what the site wants.
type State struct {
	Kind    string   `json:"kind"` // token role, policy, …
	Name    string   `json:"name"`
	Path    string   `json:"path"` // in Vault's API
	Action  Action   `json:"action"`
	Changes []Change `json:"changes"`
	Done    bool     `json:"done"`   // Vault has it so now: always with Keep, otherwise once Apply is that far
	Unsure  bool     `json:"unsure"` // it was sent, and nobody knows whether Vault has it so

	object *object
}

// String names the object.
func (s *State) String() string { return s.Kind + " " + s.Name }

// Change is a setting that isn't as the site wants it. Values are Seconds, texts,
// sorted lists or maps of texts, or booleans; Before is nil in what isn't there.
type Change struct {
	Setting string `json:"setting"`
	Before  any    `json:"before"`
	After   any    `json:"after"`
}

// Plan is what it takes to have Vault as the site wants it, in the order in which
// it is done.
type Plan struct {
	Address string  `json:"address"`
	States  []State `json:"objects"`
	// accessors are those of the JWT mounts that are there, by their paths.
	accessors map[string]string
}

// Same tells whether Vault is as the site wants it.
func (p *Plan) Same() bool {
	return !slices.ContainsFunc(p.States, func(s State) bool { return !s.Done })
}

// Compare reads what the settings name, and says how it differs. It writes nothing.
func (s *Server) Compare(ctx context.Context, settings *profiles.VaultSettings) (*Plan, error) {
	p := &Plan{Address: s.Address, States: []State{}, accessors: map[string]string{}}
	for _, o := range wanted(settings) {
		state, _, err := s.compare(ctx, p, o)
		if err != nil {
			return nil, fmt.Errorf("reading the %s %s: %w", o.kind, o.name, err)
		}
		p.States = append(p.States, *state)
	}
	return p, nil
}

// compare reads one object, and gives what to send, too.
func (s *Server) compare(ctx context.Context, p *Plan, o *object) (*State, map[string]any, error) {
	have, err := o.read(ctx, s, p)
	if err != nil {
		return nil, nil, err
	}
	state := &State{Kind: o.kind, Name: o.name, Path: o.path, Action: Update, Changes: []Change{}, object: o}
	send := map[string]any{}
	for _, f := range o.fields(p) {
		var before any
		if have != nil {
			var ok bool
			if before, ok = f.form(have[f.name]); !ok {
				return nil, nil, fmt.Errorf("the Vault server at %s says %s is %v, which Kiln doesn't understand", s.Address, f.name, have[f.name])
			}
		}
		if reflect.DeepEqual(before, f.want) || have == nil && f.unlessNew {
			continue
		}
		send[f.name] = f.send
		state.Changes = append(state.Changes, Change{f.name, before, f.want})
	}
	switch {
	case have == nil:
		state.Action = Create
	case len(state.Changes) == 0:
		state.Action, state.Done = Keep, true
	}
	if o.complete != nil && !state.Done {
		err = o.complete(have, send)
	}
	return state, send, err
}

// Apply does what the plan says, in its order, and calls done after each object
// that Vault has as wanted now. After an error the plan's States say what was done.
func (s *Server) Apply(ctx context.Context, p *Plan, done func(*State)) error {
	for i := range p.States {
		state := &p.States[i]
		if state.Done {
			continue
		}
		if err := s.apply(ctx, p, state); err != nil {
			return fmt.Errorf("the %s: %w", state, err)
		}
		state.Done, state.Unsure = true, false
		done(state)
	}
	return nil
}

func (s *Server) apply(ctx context.Context, p *Plan, state *State) error {
	now, send, err := s.compare(ctx, p, state.object)
	if err != nil {
		return err
	}
	before := func(s *State) (all []Change) {
		for _, c := range s.Changes {
			all = append(all, Change{Setting: c.Setting, Before: c.Before})
		}
		return all
	}
	if now.Action != state.Action || !reflect.DeepEqual(before(now), before(state)) {
		return errors.New("somebody else has changed it since it was compared: look at kiln vault plan again")
	}
	err = s.write(ctx, state.object.writes, state.Path, send)
	answer, answered := errors.AsType[*api.ResponseError](err)
	refused := answered && !answer.RawError // which would be a gateway's
	state.Unsure = !refused
	if err != nil && !refused {
		err = fmt.Errorf("%w (whether Vault has written it isn't known: kiln vault plan tells)", err)
	}
	if err != nil {
		return err
	}
	if now, _, err = s.compare(ctx, p, state.object); err != nil {
		return fmt.Errorf("it was written; reading it back: %w", err)
	}
	if !now.Done {
		var names []string
		for _, c := range now.Changes {
			names = append(names, c.Setting)
		}
		return fmt.Errorf("the Vault server at %s took what it was sent, and still has another %s: has somebody changed it just now?", s.Address, strings.Join(names, ", "))
	}
	return nil
}

// read gives what is at a path, nil where nothing is. That only Vault can say: any
// web server has pages that it doesn't find.
func (s *Server) read(ctx context.Context, capabilities, path string) (map[string]any, error) {
	resp, err := s.Logical().ReadRawWithContext(ctx, path)
	if resp != nil {
		defer resp.Body.Close()
	}
	if answer, ok := errors.AsType[*api.ResponseError](err); ok && answer.StatusCode == http.StatusNotFound && !answer.RawError {
		return nil, nil
	}
	if err != nil {
		return nil, s.explain(ctx, capabilities, path, err)
	}
	secret, err := api.ParseSecret(resp.Body)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil || secret == nil || secret.Data == nil {
		return nil, s.notVault()
	}
	return secret.Data, nil
}

// notVault is for what answers, and has nothing to say.
func (s *Server) notVault() error {
	return fmt.Errorf("%s answers, and not as Vault does: is that Vault's address, with https:// or http:// as it speaks?", s.Address)
}

func (s *Server) write(ctx context.Context, capabilities, path string, data map[string]any) error {
	_, err := s.Logical().WriteWithContext(ctx, path, data)
	return s.explain(ctx, capabilities, path, err)
}

// explain says what an error of a request means. None of its text is a token.
func (s *Server) explain(ctx context.Context, capabilities, path string, err error) error {
	answer, answered := errors.AsType[*api.ResponseError](err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case answered:
		return &explained{s.redact(secrets.ExplainVault(s.Client, capabilities, path, answer).Error()), err}
	}
	return &explained{s.redact(cluster.Explain(cluster.ServiceVault, s.Address, err).Error()), err}
}

func (s *Server) redact(text string) string {
	for _, token := range append(slices.Clone(s.unsaid), s.Token()) {
		if token != "" {
			text = strings.ReplaceAll(text, token, "[redacted]")
		}
	}
	return text
}

// explained is an error in words for people.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }
