// Package secrets finds what references stand for: one provider a file.
//
// Errors name the way out and never hold a secret: an external program's
// standard error goes into them, its standard output never, and the texts of
// parsers that quote their input are left out.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// Resolver resolves references with the provider that each one's scheme names.
// Its zero value is ready for use; it may be used from several goroutines.
//
// A Resolver is for one command of Kiln: it asks for each secret once, however
// many hosts want it, and remembers what it was told, refusals included.
type Resolver struct {
	// Dir is the site's directory, which the paths of file:// and age:// start
	// from; empty is the current directory.
	Dir string
	// VaultAddress is the Vault server that is asked where the environment has
	// no VAULT_ADDR.
	VaultAddress string
	// Run runs the external programs; nil runs them really.
	Run run.Runner

	mu       sync.Mutex
	asked    map[plan.Ref]*question
	vault    once[*vaultServer]
	identity once[*identities]
}

var _ plan.Resolver = (*Resolver)(nil)

// provider finds the secret behind one reference. Its errors don't name the
// reference: whoever reports them does.
type provider func(r *Resolver, ctx context.Context, ref plan.Ref) (string, error)

// providers has one for each of plan.RefSchemes.
var providers = map[string]provider{
	"age":   (*Resolver).age,
	"env":   (*Resolver).env,
	"file":  (*Resolver).file,
	"pass":  (*Resolver).pass,
	"teigi": (*Resolver).teigi,
	"vault": (*Resolver).fromVault,
}

// question is a reference that was asked for, and the answer once it is there.
type question struct {
	waiting int                // callers that still want the answer
	cancel  context.CancelFunc // for when none does
	done    chan struct{}      // closed when secret and err are set
	secret  plan.Secret
	err     error
}

// Resolve finds the secret that ref stands for. Several callers who ask for
// one reference at a time share one question, which ends early only when each
// of their contexts has.
func (r *Resolver) Resolve(ctx context.Context, ref plan.Ref) (plan.Secret, error) {
	if err := ctx.Err(); err != nil {
		return plan.Secret{}, context.Cause(ctx)
	}
	q := r.ask(ctx, ref)
	select {
	case <-q.done:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	q.waiting--
	select {
	case <-q.done:
		return q.secret, q.err
	default:
	}
	if q.waiting == 0 {
		// Whoever asks next asks anew.
		q.cancel()
		delete(r.asked, ref)
	}
	return plan.Secret{}, context.Cause(ctx)
}

// ask joins the question for ref, or starts it.
func (r *Resolver) ask(ctx context.Context, ref plan.Ref) *question {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q, ok := r.asked[ref]; ok {
		q.waiting++
		return q
	}
	// The caller's values, without the caller's end.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	q := &question{waiting: 1, cancel: cancel, done: make(chan struct{})}
	if r.asked == nil {
		r.asked = map[plan.Ref]*question{}
	}
	r.asked[ref] = q
	go func() {
		defer cancel()
		value, err := r.resolve(ctx, ref)
		if err != nil {
			q.err = err
		} else {
			q.secret = plan.NewSecret(value)
		}
		close(q.done)
	}()
	return q
}

func (r *Resolver) resolve(ctx context.Context, ref plan.Ref) (string, error) {
	find, ok := providers[ref.Scheme()]
	if !ok {
		return "", fmt.Errorf("no provider is called %s://: there are %s://", ref.Scheme(), strings.Join(plan.RefSchemes, "://, "))
	}
	value, err := find(r, ctx, ref)
	if err != nil {
		return "", err
	}
	if value == "" {
		return "", errors.New("it is there, but empty: an empty secret protects nothing, so store its value first")
	}
	return value, nil
}

// once is a value that is made at the first use.
type once[T any] struct {
	do    sync.Once
	value T
	err   error
}

func (o *once[T]) get(f func() (T, error)) (T, error) {
	o.do.Do(func() { o.value, o.err = f() })
	return o.value, o.err
}

// withheld names the variables of Kiln's environment that hold secrets of the
// operator's: no external program needs them to find another secret.
var withheld = []string{"KILN_AGE_IDENTITY", "VAULT_TOKEN"}

// noOption refuses what a program could take for an option of its own.
func noOption(what string, words ...string) error {
	if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "-") }); i >= 0 {
		return fmt.Errorf("the %s %s starts with a dash, which a program would read as an option", what, words[i])
	}
	return nil
}

// trimNewline removes one newline from the end of what a file holds.
func trimNewline(s string) string {
	if t, ok := strings.CutSuffix(s, "\n"); ok {
		return strings.TrimSuffix(t, "\r")
	}
	return s
}
