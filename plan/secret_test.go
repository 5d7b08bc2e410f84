package plan_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

func TestParseRef(t *testing.T) {
	for _, s := range []string{
		"teigi://alibuild/consul_encrypt", "pass://kiln/consul", "env://NAME", "file://keys/x", "file:///abs/x", "file://~/x", "vault://kv/data/x#field", "age://a.age#k", "pass://a@b,c=d+e:f_g-h^i[j]",
	} {
		ref, err := plan.ParseRef(s)
		if err != nil || string(ref) != s || ref.Scheme()+"://"+ref.Rest() != s || ref.Unresolved() != "kiln-secret:"+s {
			t.Errorf("%s: got %q, %v", s, ref, err)
		}
	}
	for s, want := range map[string]string{
		"":                        "the value is no reference to a secret: write one of age://…, env://…",
		"hunter2":                 "the value is no reference",
		"sw0rdfish":               "the value is no reference",
		"valt://kv/x#f":           "a value that starts with valt:// is no reference",
		"Vault://kv/x":            "the value is no reference",
		"sw0rdfish!://x":          "the value is no reference",
		"env:NAME":                "the value is no reference",
		"env://":                  "names nothing behind its scheme",
		"pass://a b":              `has the character ' '`,
		"pass://a\nb":             `has the character '\n'`,
		"pass://é":                `has the character 'é'`,
		"env://${X}":              `has the character '$'`,
		`file://C:\x`:             `has the character '\\'`,
		"file://\"":               `has the character '"'`,
		"file://x%20y":            `has the character '%'`,
		"pass://{{x}}":            `has the character '{'`,
		"vault://kv/x?version=1#": `has the character '?'`,
	} {
		ref, err := plan.ParseRef(s)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v; want an error with %q", s, ref, err, want)
		} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "sw0r") {
			t.Errorf("what may be a secret is in the error: %v", err)
		}
	}
}

// What makes a reference safe to leave in a file: no format writes it in any
// other way than it is, so the guard on a host finds it.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"teigi://alibuild/consul_encrypt", "vault://kv/x#f", "env://A", "file:///x", "x://y", "env://", "pass://a b", "pass://\"", "age://\u0301", "file://%n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := plan.ParseRef(s)
		if err != nil {
			if ref != "" {
				t.Errorf("%q: %q beside an error", s, ref)
			}
			return
		}
		if string(ref) != s {
			t.Errorf("%q is read as %q", s, ref)
		}
		for _, format := range quote.Formats() {
			text, err := quote.As(format, ref.Unresolved())
			if err != nil || !strings.Contains(text, ref.Unresolved()) {
				t.Errorf("%s: %q is written as %s, %v", format, ref.Unresolved(), text, err)
			}
		}
	})
}

const canary = `"}${HOME}{{key}}%{\canary`

// shows tells whether a text gives the canary away, also as hexadecimal digits
// or numbers, as %x and %d would print it.
func shows(text string) bool {
	numbers := strings.Trim(fmt.Sprint([]byte("canary")), "[]")
	for _, form := range []string{"canary", fmt.Sprintf("%x", "canary"), fmt.Sprintf("%X", "canary"), numbers, fmt.Sprintf("% x", "canary")} {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}

// TestShows is there because a check that can't fail would prove nothing.
func TestShows(t *testing.T) {
	for _, verb := range []string{"%v", "%s", "%q", "%x", "%X", "% x", "%+v", "%#v"} {
		if !shows(fmt.Sprintf(verb, canary)) {
			t.Errorf("%s would go unseen", verb)
		}
	}
	if !shows(fmt.Sprintf("%d", []byte(canary))) {
		t.Error("decimal digits would go unseen")
	}
}

// everyWay calls f with each text that v can be turned into.
func everyWay(t *testing.T, v any, f func(way, text string)) {
	t.Helper()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "% x", "%#x", "%c", "%U", "%t", "%e", "%p", "%T", "%10s", "%-40v", "%.3s", "%!"} {
		f(verb, fmt.Sprintf(verb, v))
	}
	f("Print", fmt.Sprint(v))
	f("Errorf", fmt.Errorf("no: %v", v).Error())
	if b, err := json.Marshal(v); err == nil {
		f("JSON", string(b))
	} else {
		f("JSON's error", err.Error())
	}
	if b, err := yaml.Marshal(v); err == nil {
		f("YAML", string(b))
	} else {
		f("YAML's error", err.Error())
	}
	if b, err := xml.Marshal(v); err == nil {
		f("XML", string(b))
	} else {
		f("XML's error", err.Error())
	}
	var b bytes.Buffer
	_ = gob.NewEncoder(&b).Encode(v)
	f("gob", b.String())
	b.Reset()
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v, slog.Group("g", "v", v))
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v, slog.Group("g", "v", v))
	f("slog", b.String())
}

func TestASecretShowsNowhere(t *testing.T) {
	secret := plan.NewSecret(canary)
	if v, ok := secret.Reveal(); !ok || v != canary {
		t.Fatalf("got %q, %v", v, ok)
	}
	type holder struct {
		Public plan.Secret
		hidden plan.Secret
		Nested *holder
	}
	content := secretContent(t, quote.FormatRaw, canary)
	for name, v := range map[string]any{
		"secret":       secret,
		"pointer":      &secret,
		"list":         []plan.Secret{secret},
		"array":        [1]plan.Secret{secret},
		"map":          map[string]plan.Secret{"a": secret},
		"map's key":    map[plan.Secret]int{secret: 1},
		"struct":       holder{secret, secret, &holder{Public: secret, hidden: secret}},
		"any":          []any{secret, &secret},
		"content":      content,
		"content's *":  &content,
		"file":         plan.File{Path: "/x", Content: content},
		"plan":         plan.Plan{Host: plan.Host{Layer: plan.Layer{Files: []plan.File{{Path: "/x", Content: content}}}}},
		"plan's *":     &plan.Plan{Host: plan.Host{Layer: plan.Layer{Files: []plan.File{{Path: "/x", Content: content}}}}},
		"no secret":    plan.Secret{},
		"within error": &plan.UnresolvedError{Reference: plan.Reference{Ref: "env://X"}, Err: fmt.Errorf("got %v", secret)},
	} {
		everyWay(t, v, func(way, text string) {
			if shows(text) {
				t.Errorf("%s shows in %s: %s", name, way, text)
			}
		})
	}
}

func TestASecretSaysThatItIsOne(t *testing.T) {
	secret := plan.NewSecret(canary)
	everyWay(t, secret, func(way, text string) {
		if !strings.Contains(text, "[redacted]") && way != "gob" && way != "%p" && way != "%T" && way != "%!" {
			t.Errorf("%s: %s", way, text)
		}
	})
	if _, ok := (plan.Secret{}).Reveal(); ok {
		t.Error("no secret is one")
	}
	if v, ok := plan.NewSecret("").Reveal(); !ok || v != "" {
		t.Error("an empty secret is none")
	}
}

func TestQuotingASecretDoesntRevealIt(t *testing.T) {
	for _, f := range quote.Formats() {
		if text, err := quote.As(f, plan.NewSecret(canary)); err != nil || shows(text) {
			t.Errorf("%s: %s, %v", f, text, err)
		}
	}
}

func TestUnresolvedError(t *testing.T) {
	cause := errors.New("no such entry")
	err := error(&plan.UnresolvedError{Reference: plan.Reference{Ref: "pass://x", Origin: originAt("nomad.hcl.tmpl", 3)}, Err: cause})
	if want := "nomad.hcl.tmpl:3:7: the secret pass://x: no such entry"; err.Error() != want || !errors.Is(err, cause) {
		t.Errorf("got %q", err)
	}
}
