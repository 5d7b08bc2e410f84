package plan_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

func originAt(file string, line int) plan.Origin {
	return plan.Origin{Profile: "plain", Position: problem.Position{File: file, Line: line, Column: 7}}
}

// resolver answers from a map, and counts.
type resolver struct {
	values map[plan.Ref]string
	asked  []plan.Ref
}

func (r *resolver) Resolve(_ context.Context, ref plan.Ref) (plan.Secret, error) {
	r.asked = append(r.asked, ref)
	if v, ok := r.values[ref]; ok {
		return plan.NewSecret(v), nil
	}
	return plan.Secret{}, errors.New("nobody knows it")
}

// secretContent is content with one secret that is resolved.
func secretContent(t *testing.T, f quote.Format, value string) plan.Content {
	t.Helper()
	var c plan.Content
	c.AppendText([]byte("token = "))
	c.AppendSecret("env://TOKEN", f, originAt("x.tmpl", 1))
	p := hostWith(c)
	resolved, err := p.WithSecrets(t.Context(), &resolver{values: map[plan.Ref]string{"env://TOKEN": value}})
	if err != nil {
		t.Fatal(err)
	}
	return resolved.Host.Files[0].Content
}

func hostWith(contents ...plan.Content) *plan.Plan {
	p := &plan.Plan{}
	for i, c := range contents {
		p.Host.Files = append(p.Host.Files, plan.File{Path: "/etc/" + string(rune('a'+i)), Content: c})
	}
	return p
}

func bytesOf(t *testing.T, c plan.Content) string {
	t.Helper()
	b, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLiteralContent(t *testing.T) {
	for _, text := range []string{"", "text\n", "\x00\xff any bytes"} {
		c := plan.Literal([]byte(text))
		if got := bytesOf(t, c); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
		if c.HoldsSecrets() || c.Unresolved() != nil || c.Redacted() != text {
			t.Errorf("%q is said to hold secrets", text)
		}
	}
	var c plan.Content
	c.AppendText(nil)
	c.AppendText([]byte("a"))
	c.AppendText([]byte("b"))
	if got := bytesOf(t, c); got != "ab" {
		t.Errorf("got %q", got)
	}
}

func TestContentWithSecrets(t *testing.T) {
	var c plan.Content
	c.AppendText([]byte("encrypt = "))
	c.AppendSecret("teigi://alibuild/encrypt", quote.FormatHCL, originAt("consul.hcl.tmpl", 4))
	c.AppendText([]byte("\ntoken = "))
	c.AppendSecret("pass://token", quote.FormatHCL, originAt("consul.hcl.tmpl", 5))
	c.AppendText([]byte("\nagain = "))
	c.AppendSecret("teigi://alibuild/encrypt", quote.FormatShell, originAt("consul.hcl.tmpl", 6))

	const unresolved = "encrypt = \"kiln-secret:teigi://alibuild/encrypt\"\ntoken = \"kiln-secret:pass://token\"\nagain = 'kiln-secret:teigi://alibuild/encrypt'"
	const redacted = "encrypt = [secret teigi://alibuild/encrypt]\ntoken = [secret pass://token]\nagain = [secret teigi://alibuild/encrypt]"
	if got := bytesOf(t, c); got != unresolved {
		t.Errorf("got %s", got)
	}
	want := []plan.Reference{
		{Ref: "teigi://alibuild/encrypt", Origin: originAt("consul.hcl.tmpl", 4)}, {Ref: "pass://token", Origin: originAt("consul.hcl.tmpl", 5)},
	}
	if got := c.Unresolved(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}

	other := plan.Content{}
	other.AppendSecret("pass://token", quote.FormatRaw, originAt("other.tmpl", 1))
	p := hostWith(c, plan.Literal([]byte("none")), other)
	if got := p.Host.References(); !reflect.DeepEqual(got, want) {
		t.Errorf("the host's references are %v", got)
	}
	r := &resolver{values: map[plan.Ref]string{"teigi://alibuild/encrypt": canary + "'\n", "pass://token": "t"}}
	resolved, err := p.WithSecrets(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if want := []plan.Ref{"teigi://alibuild/encrypt", "pass://token"}; !reflect.DeepEqual(r.asked, want) {
		t.Errorf("asked for %v, want %v", r.asked, want)
	}
	got := resolved.Host.Files[0].Content
	if want := `encrypt = "\"}\u0024{HOME}{{key}}\u0025{\\canary'\n"` + "\ntoken = \"t\"\nagain = '\"}${HOME}{{key}}%{\\canary'\\''\n'"; bytesOf(t, got) != want {
		t.Errorf("got  %s\nwant %s", bytesOf(t, got), want)
	}
	if !got.HoldsSecrets() || got.Unresolved() != nil || resolved.Host.References() != nil {
		t.Error("the secrets aren't known to be there")
	}
	if got.Redacted() != redacted || got.String() != redacted {
		t.Errorf("redacted it's %s", got.Redacted())
	}
	if b, err := json.Marshal(got); err != nil || strings.Contains(string(b), "canary") || !strings.Contains(string(b), "[secret pass://token]") {
		t.Errorf("as JSON it's %s, %v", b, err)
	}

	// The plan that was given stays as it was.
	if c := p.Host.Files[0].Content; c.HoldsSecrets() || bytesOf(t, c) != unresolved {
		t.Error("the plan itself was changed")
	}
}

func TestASecretThatCannotBeResolved(t *testing.T) {
	var c plan.Content
	c.AppendSecret("env://KNOWN", quote.FormatRaw, originAt("a.tmpl", 1))
	c.AppendSecret("env://UNKNOWN", quote.FormatRaw, originAt("a.tmpl", 2))
	p, err := hostWith(c).WithSecrets(t.Context(), &resolver{values: map[plan.Ref]string{"env://KNOWN": canary}})
	unresolved, ok := errors.AsType[*plan.UnresolvedError](err)
	if !ok || p != nil || unresolved.Ref != "env://UNKNOWN" || err.Error() != "a.tmpl:2:7: the secret env://UNKNOWN: nobody knows it" {
		t.Errorf("got %v, %v", p, err)
	}
}

// A secret that its place can't carry is refused when it's resolved, and the
// error doesn't repeat it.
func TestASecretThatItsFormatCannotCarry(t *testing.T) {
	for f, value := range map[quote.Format]string{
		quote.FormatRaw: "canary\n", quote.FormatHCL: "canary\x00", quote.FormatYAML: "canary\xff", quote.FormatShell: "canary\x00", quote.FormatSystemd: "canary$",
	} {
		var c plan.Content
		c.AppendSecret("env://X", f, originAt("a.tmpl", 9))
		_, err := hostWith(c).WithSecrets(t.Context(), &resolver{values: map[plan.Ref]string{"env://X": value}})
		if err == nil || !strings.HasPrefix(err.Error(), "a.tmpl:9:7: the secret env://X: ") || shows(err.Error()) {
			t.Errorf("%s: got %v", f, err)
		}
	}
}
