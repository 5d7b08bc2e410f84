package secrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// canary is a secret that no error may show.
const canary = `"}${HOME}{{key}}%{\canary`

// noOperator keeps the settings of whoever runs the tests out of them, and
// returns the home directory that they have instead.
func noOperator(t *testing.T) (home string) {
	t.Helper()
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "VAULT_") || name == "AGE_IDENTITY_FILE" || name == "KILN_AGE_IDENTITY" || name == "XDG_CONFIG_HOME" {
			t.Setenv(name, "") // so that it comes back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	home = t.TempDir()
	t.Setenv("HOME", home)
	return home
}

// standIn puts a shell script called name first in PATH.
func standIn(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, name), "#!/bin/sh\n"+script, 0o755)
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// resolve checks the answer to one reference: want is the secret, or, where
// wantErr is set, a part of the error, which must never show the canary.
func resolve(t *testing.T, r *Resolver, ref plan.Ref, want, wantErr string) {
	t.Helper()
	secret, err := r.Resolve(t.Context(), ref)
	if wantErr != "" {
		if err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%s: got %v, want an error with %q", ref, err, wantErr)
		}
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "canary") {
			t.Errorf("%s: the error shows the secret: %s", ref, text)
		}
		if _, ok := secret.Reveal(); ok {
			t.Errorf("%s: a secret beside the error", ref)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", ref, err)
		return
	}
	if got, _ := secret.Reveal(); got != want {
		t.Errorf("%s: got %q, want %q", ref, got, want)
	}
}

func TestEachSchemeHasAProvider(t *testing.T) {
	if got := slices.Sorted(maps.Keys(providers)); !slices.Equal(got, plan.RefSchemes) {
		t.Errorf("there are providers for %v, and references for %v", got, plan.RefSchemes)
	}
	resolve(t, &Resolver{}, "ftp://x", "", "no provider is called ftp://: there are age://, env://")
}

func TestEnv(t *testing.T) {
	t.Setenv("KILN_TEST_SECRET", canary+"\n")
	t.Setenv("KILN_TEST_EMPTY", "")
	r := &Resolver{}
	resolve(t, r, "env://KILN_TEST_SECRET", canary+"\n", "")
	resolve(t, r, "env://KILN_TEST_EMPTY", "", "KILN_TEST_EMPTY is set but empty")
	resolve(t, r, "env://KILN_TEST_UNSET", "", "KILN_TEST_UNSET isn't set: export it")
	resolve(t, r, "env://A=B", "", "no environment variable can be called A=B")
}

// The real tbag exists at CERN only: a script that answers like it stands in.
func TestTeigi(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "canary")
	standIn(t, "tbag", `
[ -z "${VAULT_TOKEN-}" ] || { echo "a token in my environment" >&2; exit 9; }
[ "$1 $2" = "show --hg" ] || { echo "usage: $*" >&2; exit 2; }
case "$3 $4" in
"alibuild consul_encrypt") printf '%s' '{"hostgroup": "alibuild", "key": "consul_encrypt", "secret": "\"}${HOME}{{key}}%{\\canary", "update_time": 1}' ;;
"alibuild/worker/x token") printf '%s' '{"secret": "nested\n"}' ;;
"alibuild empty") echo '{"secret": ""}' ;;
"alibuild none") echo '{"key": "canary"}' ;;
"alibuild text") echo 'canary' ;;
"alibuild number") echo '{"secret": {"canary": 1}}' ;;
*) echo '{"secret": "canary"}'; echo "401: no key $4" >&2; exit 1 ;;
esac
`)
	r := &Resolver{}
	resolve(t, r, "teigi://alibuild/consul_encrypt", canary, "")
	resolve(t, r, "teigi://alibuild/worker/x/token", "nested\n", "")
	resolve(t, r, "teigi://alibuild/empty", "", "it is there, but empty")
	resolve(t, r, "teigi://alibuild/none", "", `has no "secret"`)
	resolve(t, r, "teigi://alibuild/text", "", "isn't JSON")
	resolve(t, r, "teigi://alibuild/number", "", "isn't JSON with a text")
	resolve(t, r, "teigi://alibuild/missing", "", "tbag show --hg alibuild missing: exit status 1: 401: no key missing")
	for _, ref := range []plan.Ref{"teigi://key", "teigi:///key", "teigi://group/", "teigi://a//key", "teigi:///a/key"} {
		resolve(t, r, ref, "", "write teigi://HOSTGROUP/KEY")
	}
	resolve(t, r, "teigi://--hg/key", "", "starts with a dash")
	resolve(t, r, "teigi://group/--help", "", "starts with a dash")
}

func TestTeigiWithoutTbag(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	resolve(t, &Resolver{}, "teigi://a/b", "", "the program tbag isn't there: it is the client of CERN's Teigi")
}

// TestErrorsOfProgramsShowNoValue: a program that fails may have repeated what
// it wrote out; of a long complaint the end is enough.
func TestErrorsOfProgramsShowNoValue(t *testing.T) {
	standIn(t, "tbag", `
case "$4" in
echo) echo '{"secret": "canary\\"1"}'; printf 'first\nbad answer: {"secret": "canary\\"1"}\nbad value: canary"1\n' >&2 ;;
long) echo '{"secret": "canary-that-is-long"}'; printf '%0395d canary-that-is-long\n' 0 >&2 ;;
lines) printf 'one\ntwo\nthree\nfour\n' >&2 ;;
esac
exit 3`)
	standIn(t, "pass", `
printf 'canary one\nuser: somebody\n'
echo "gpg: what is canary one?" >&2
exit 2`)
	r := &Resolver{}
	resolve(t, r, "teigi://a/echo", "", "first\n    bad answer: [redacted]\n    bad value: [redacted]\n")
	resolve(t, r, "teigi://a/long", "", "exit status 3: 000")
	resolve(t, r, "teigi://a/lines", "", "exit status 3:\n    two\n    three\n    four\n")
	resolve(t, r, "pass://x", "", "exit status 2: gpg: what is [redacted]?")
}

// What the real pass does is seen in the integration tests.
func TestPassAsksForTheEntryOnly(t *testing.T) {
	var asked []string
	r := &Resolver{Run: func(_ context.Context, c run.Command) ([]byte, error) {
		asked = append(asked, c.String())
		if c.Args[len(c.Args)-1] == "folder/" {
			return []byte("folder\n└── canary\n"), nil
		}
		return []byte(canary + "\nuser: somebody\n"), nil
	}}
	resolve(t, r, "pass://kiln/consul", canary, "")
	resolve(t, r, "pass://folder/", "", "it is a folder of the password store")
	resolve(t, r, "pass://-c", "", "starts with a dash")
	if got := strings.Join(asked, "; "); got != "pass show -- kiln/consul; pass show -- folder/" {
		t.Errorf("asked %q", got)
	}
}

func TestFile(t *testing.T) {
	home := noOperator(t)
	site := t.TempDir()
	write(t, filepath.Join(site, "keys/one"), canary+"\n", 0o644)
	write(t, filepath.Join(site, "keys/lines"), "a\nb\n\n", 0o600)
	write(t, filepath.Join(site, "keys/dos"), "a\r\n", 0o600)
	write(t, filepath.Join(site, "keys/newline"), "\n", 0o600)
	write(t, filepath.Join(site, "keys/large"), strings.Repeat("canary ", largestFile), 0o600)
	write(t, filepath.Join(site, "keys/all.yaml"), "a: 007\nb: \"x\\ny\"\nc: {canary: 1}\nd:\ne: &x anchored\nf: *x\ng: 1\ng: 2\n", 0o600)
	write(t, filepath.Join(site, "keys/canary.yaml"), "a: *canary\n", 0o600)
	write(t, filepath.Join(home, "secret"), "from home", 0o600)
	r := &Resolver{Dir: site}
	for _, tt := range []struct{ ref, want, wantErr string }{
		{"file://keys/one", canary, ""},
		{"file://" + site + "/keys/one", canary, ""},
		{"file://~/secret", "from home", ""},
		{"file://keys/lines", "a\nb\n", ""},
		{"file://keys/dos", "a", ""},
		{"file://keys/all.yaml#a", "007", ""},
		{"file://keys/all.yaml#b", "x\ny", ""},
		{"file://keys/all.yaml#f", "anchored", ""},
		{"file://keys/all.yaml#c", "", "the key c has no text as its value"},
		{"file://keys/all.yaml#d", "", "the key d has no text"},
		{"file://keys/all.yaml#g", "", "has the key g twice"},
		{"file://keys/all.yaml#x", "", "the text has no key x at its top"},
		{"file://keys/canary.yaml#a", "", "isn't YAML"},
		{"file://keys/one#a", "", "isn't YAML"},
		{"file://keys/newline", "", "empty"},
		{"file://keys/large", "", "a secret has 1048576 at most"},
		{"file://keys", "", "is a directory"},
		{"file:///dev/null", "", "is no regular file"},
		{"file://keys/none", "", "there is no file " + site + "/keys/none"},
		{"file://#a", "", "it names no file"},
	} {
		resolve(t, r, plan.Ref(tt.ref), tt.want, tt.wantErr)
	}
}

func TestOneQuestionForAllWhoAsk(t *testing.T) {
	var asked atomic.Int32
	started, release := make(chan struct{}), make(chan struct{})
	r := &Resolver{Run: func(ctx context.Context, _ run.Command) ([]byte, error) {
		asked.Add(1)
		close(started)
		select {
		case <-release:
			return []byte("value\n"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	// The first who asks goes away; the others get their answer all the same.
	first, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := r.Resolve(first, "pass://x")
		gone <- err
	}()
	<-started
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if s, err := r.Resolve(t.Context(), "pass://x"); err != nil {
				t.Error(err)
			} else if v, _ := s.Reveal(); v != "value" {
				t.Errorf("got %q", v)
			}
		})
	}
	// Until the others are there, leaving would end the question.
	for waiting := 0; waiting < 9; {
		r.mu.Lock()
		waiting = r.asked["pass://x"].waiting
		r.mu.Unlock()
	}
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	wg.Wait()
	if _, err := r.Resolve(t.Context(), "pass://x"); err != nil {
		t.Error(err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestTheLastWhoLeavesEndsTheQuestion(t *testing.T) {
	ended := make(chan struct{})
	var fail atomic.Bool
	fail.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	r := &Resolver{Run: func(ctx context.Context, _ run.Command) ([]byte, error) {
		if fail.Load() {
			cancel()
			<-ctx.Done()
			close(ended)
			return nil, ctx.Err()
		}
		return []byte("value"), nil
	}}
	if _, err := r.Resolve(ctx, "pass://x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended
	fail.Store(false)
	// Having been stopped isn't an answer to remember.
	resolve(t, r, "pass://x", "value", "")
	if _, err := r.Resolve(ctx, "pass://x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: got %v", err)
	}
}

func TestARefusalIsRemembered(t *testing.T) {
	asked := 0
	r := &Resolver{Run: func(context.Context, run.Command) ([]byte, error) {
		asked++
		return nil, errors.New("no")
	}}
	for range 3 {
		resolve(t, r, "pass://x", "", "no")
	}
	if asked != 1 {
		t.Errorf("the operator was asked for a passphrase %d times", asked)
	}
}
