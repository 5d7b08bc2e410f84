package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/vault/api"
)

// Revocation says which token to revoke: either is set.
type Revocation struct {
	Token    string // the token itself, which nothing ever shows
	Accessor string
	// Orphan keeps the tokens that were made with it. Vault can't by an accessor.
	Orphan bool
}

// Token is what there is to say of a token without showing it.
type Token struct {
	Accessor    string   `json:"accessor"`
	DisplayName string   `json:"display_name"`
	Policies    []string `json:"policies"`
}

// errUnknownToken is what revoking gives where there is nothing to revoke.
var errUnknownToken = errors.New("no token is revoked, since Vault knows none like that: it was revoked before, or has expired, or is another Vault's (VAULT_ADDR, VAULT_NAMESPACE)")

// Revoke revokes a token, and what was made with it, and looks whether it is gone.
// That there is no such token is an error. After one that says it may be gone.
func (s *Server) Revoke(ctx context.Context, r Revocation) (*Token, error) {
	s = &Server{Vault: s.Vault, unsaid: []string{r.Token}}
	find := func() (*Token, error) { return s.byToken(ctx, r.Token) }
	path, capabilities, body := "auth/token/revoke", "update", map[string]any{"token": r.Token}
	switch {
	case r.Accessor != "" && r.Orphan:
		return nil, errors.New("by its accessor, Vault revokes a token only with those that were made with it: to keep them, give the token itself")
	case r.Accessor != "":
		find = func() (*Token, error) { return s.byAccessor(ctx, r.Accessor) }
		path, body = "auth/token/revoke-accessor", map[string]any{"accessor": r.Accessor}
	case r.Orphan:
		path, capabilities = "auth/token/revoke-orphan", "update and sudo"
	}
	token, err := find()
	if err != nil {
		return nil, err
	}
	if err := s.write(ctx, capabilities, path, body); err != nil {
		return nil, fmt.Errorf("revoking the token %s: %w", token.Accessor, err)
	}
	switch _, err := find(); {
	case errors.Is(err, errUnknownToken) || r.Accessor != "" && says(err, "invalid token"):
		// The latter where it was the operator's own token, or one above that.
		return token, nil
	case err != nil:
		return nil, fmt.Errorf("by its own words Vault has revoked the token %s; looking whether it is gone: %w", token.Accessor, err)
	}
	return nil, fmt.Errorf("by its own words Vault has revoked the token %s, and still knows it: try again, and look at Vault's log", token.Accessor)
}

// byToken looks a token up: with the operator's rights, or, where those don't
// suffice, with its own.
func (s *Server) byToken(ctx context.Context, token string) (*Token, error) {
	const path, self = "auth/token/lookup", "auth/token/lookup-self"
	answer, err := s.Logical().WriteWithContext(ctx, path, map[string]any{"token": token})
	if says(err, "bad token") {
		return nil, errUnknownToken
	}
	if status(err) != http.StatusForbidden {
		return s.tokenOf(answer, s.explain(ctx, "update", path, err))
	}
	own, cloneErr := s.CloneWithHeaders()
	if cloneErr != nil {
		return nil, cloneErr
	}
	own.SetToken(token)
	answer, ownErr := own.Logical().ReadWithContext(ctx, self)
	switch {
	case says(ownErr, "invalid token") || says(ownErr, "bad token"):
		return nil, errUnknownToken
	case status(ownErr) == http.StatusForbidden:
		return nil, s.explain(ctx, "update", path, err)
	}
	return s.tokenOf(answer, s.explain(ctx, "read", self, ownErr))
}

func (s *Server) byAccessor(ctx context.Context, accessor string) (*Token, error) {
	const path = "auth/token/lookup-accessor"
	answer, err := s.Logical().WriteWithContext(ctx, path, map[string]any{"accessor": accessor})
	if says(err, "invalid accessor") {
		return nil, errUnknownToken
	}
	return s.tokenOf(answer, s.explain(ctx, "update", path, err))
}

// tokenOf takes from an answer what may be shown: the token itself is in it, too.
func (s *Server) tokenOf(answer *api.Secret, err error) (*Token, error) {
	if err != nil {
		return nil, err
	}
	if answer == nil || answer.Data["accessor"] == nil {
		return nil, s.notVault()
	}
	t := &Token{Policies: []string{}}
	t.Accessor, _ = textOf(answer.Data["accessor"])
	t.DisplayName, _ = textOf(answer.Data["display_name"])
	if list, ok := setOf(answer.Data["policies"]); ok {
		t.Policies = list.([]string)
	}
	return t, nil
}

// says tells whether Vault has refused something with that word.
func says(err error, word string) bool {
	answer, ok := errors.AsType[*api.ResponseError](err)
	return ok && !answer.RawError && slices.ContainsFunc(answer.Errors, func(s string) bool { return strings.Contains(s, word) })
}

// status is that of HTTP which Vault has refused something with, else 0.
func status(err error) int {
	if answer, ok := errors.AsType[*api.ResponseError](err); ok {
		return answer.StatusCode
	}
	return 0
}
