package plan

import (
	"fmt"
	"slices"
	"strings"
)

// Ref is a reference to a secret: a URI whose scheme names the provider that
// can resolve it, such as teigi://alibuild/consul_encrypt. A Ref is no secret
// itself, and may be shown.
type Ref string

// RefSchemes lists the schemes of the providers that Kiln has.
var RefSchemes = []string{"age", "env", "file", "pass", "teigi", "vault"}

// ParseRef checks that s is a reference: a scheme that is known, ://, and
// something behind it, in characters that every quoting leaves as they are (so
// that a host can find an unresolved one in any file).
func ParseRef(s string) (Ref, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || !slices.Contains(RefSchemes, scheme) {
		return "", fmt.Errorf("%s is no reference to a secret: write one of %s://…", nameless(scheme, ok), strings.Join(RefSchemes, "://…, "))
	}
	if rest == "" {
		return "", fmt.Errorf("the reference %s names nothing behind its scheme", s)
	}
	for _, r := range rest {
		if r <= ' ' || r > '~' || strings.ContainsRune("\"'`\\$%{}<>|;&*?()!", r) {
			return "", fmt.Errorf("the reference %q has the character %q, which no reference can have", s, r)
		}
	}
	return Ref(s), nil
}

// nameless says what was written where a reference belongs without repeating
// it: it may be a secret.
func nameless(scheme string, isURI bool) string {
	if isURI && len(scheme) <= 12 && !strings.ContainsFunc(scheme, func(r rune) bool { return r < 'a' || r > 'z' }) {
		return fmt.Sprintf("a value that starts with %s://", scheme)
	}
	return "the value"
}

// Scheme is what stands before the ://.
func (r Ref) Scheme() string {
	s, _, _ := strings.Cut(string(r), "://")
	return s
}

// Rest is what stands behind the ://.
func (r Ref) Rest() string {
	_, s, _ := strings.Cut(string(r), "://")
	return s
}

// UnresolvedPrefix stands before a reference in a file that was rendered
// without its secrets: what the guard on a host looks for.
const UnresolvedPrefix = "kiln-secret:"

// Unresolved is the text that stands for the secret in a file that was
// rendered without it.
func (r Ref) Unresolved() string { return UnresolvedPrefix + string(r) }

// Secret is a resolved secret. However it is printed, it shows nothing of
// itself; only Reveal gives its value.
type Secret struct {
	value *string
}

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{&value} }

// Reveal is the secret itself, to be written where it is delivered and nowhere
// else. ok is false where there is none.
func (s Secret) Reveal() (value string, ok bool) {
	if s.value == nil {
		return "", false
	}
	return *s.value, true
}

const redacted = "[redacted]"

// String hides the value.
func (Secret) String() string { return redacted }

// GoString hides the value from %#v.
func (Secret) GoString() string { return redacted }

// Format hides the value from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText hides the value from JSON, YAML and their like.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
