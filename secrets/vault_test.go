package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/plan"
)

// A real Vault answers in the integration tests: here is what needs none, and
// what one doesn't do on demand.

func TestVaultReferences(t *testing.T) {
	noOperator(t)
	for _, ref := range []plan.Ref{"vault://kv", "vault://kv#field", "vault://kv/#field", "vault:///kv/x#f", "vault://kv//x#f", "vault://kv/../sys/x#f"} {
		resolve(t, &Resolver{VaultAddress: "http://127.0.0.1:1"}, ref, "", "write vault://MOUNT/PATH#FIELD")
	}
}

func TestVaultFields(t *testing.T) {
	data := map[string]any{"text": canary, "number": json.Number("12345678901234567890"), "bool": true, "map": map[string]any{"canary": 1}}
	for _, tt := range []struct{ field, want, wantErr string }{
		{"text", canary, ""},
		{"number", "12345678901234567890", ""},
		{"bool", "true", ""},
		{"map", "", "the field map is no text but a structure"},
		{"none", "", "the entry has no field none: there are bool, map, number, text"},
		{"", "", "name a field behind a #: there are bool, map, number, text"},
	} {
		got, err := fieldOf(data, tt.field)
		if tt.wantErr == "" && (err != nil || got != tt.want) {
			t.Errorf("%s: got %q, %v", tt.field, got, err)
		}
		if tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
			t.Errorf("%s: got %v, want an error with %q", tt.field, err, tt.wantErr)
		}
	}
}

func TestVaultSettings(t *testing.T) {
	for _, tt := range []struct {
		name, variable, value, wantErr string
	}{
		{"a number that is none", "VAULT_MAX_RETRIES", "many", "the VAULT_… settings in the environment can't be used"},
		{"a certificate that isn't there", "VAULT_CACERT", "/nonexistent/ca.pem", "the VAULT_… settings in the environment can't be used"},
		{"a token file that isn't there", "VAULT_TOKEN_FILE", "/nonexistent/token", "the Vault token: there is no file /nonexistent/token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noOperator(t)
			t.Setenv(tt.variable, tt.value)
			resolve(t, &Resolver{VaultAddress: "http://127.0.0.1:1"}, "vault://kv/x#f", "", tt.wantErr)
		})
	}
}

func TestVaultThatIsNotThere(t *testing.T) {
	noOperator(t)
	t.Setenv("VAULT_MAX_RETRIES", "0")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "https://" + l.Addr().String()
	l.Close()
	resolve(t, &Resolver{VaultAddress: address}, "vault://kv/x#f", "", "the Vault server at "+address+" can't be asked")
}

func TestVaultThatIsSomethingElse(t *testing.T) {
	noOperator(t)
	t.Setenv("VAULT_MAX_RETRIES", "0")
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<html>canary</html>")
	}))
	defer page.Close()
	resolve(t, &Resolver{VaultAddress: page.URL}, "vault://kv/x#f", "", page.URL+" answers Forbidden, and not as Vault does")
	resolve(t, &Resolver{VaultAddress: strings.Replace(page.URL, "http:", "https:", 1)}, "vault://kv/x#f", "", "is it http:// rather than https://?")
}

func TestVaultStopsWithItsContext(t *testing.T) {
	noOperator(t)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(release)
	_, err := (&Resolver{VaultAddress: server.URL}).Resolve(ctx, "vault://kv/x#f")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A gate before Vault that lets nobody at sys/: the layout of the mount has to
// be found out by reading.
func TestVaultWhoseMountsMayNotBeSeen(t *testing.T) {
	home := noOperator(t)
	write(t, filepath.Join(home, ".vault-token"), "s.token\n", 0o600)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vault-Token") != "s.token" {
			t.Errorf("the token is %q", r.Header.Get("X-Vault-Token"))
		}
		switch r.URL.Path {
		case "/v1/one/x":
			_, _ = io.WriteString(w, `{"data": {"f": "first"}}`)
		case "/v1/two/x", "/v1/none/x":
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"errors": [], "warnings": ["Invalid path for a versioned K/V secrets engine."]}`)
		case "/v1/two/data/x":
			_, _ = io.WriteString(w, `{"data": {"data": {"f": "second"}, "metadata": {}}}`)
		case "/v1/none/data/x":
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"errors": []}`)
		default:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors": ["permission denied"]}`)
		}
	}))
	defer server.Close()
	t.Setenv("VAULT_ADDR", server.URL)
	r := &Resolver{VaultAddress: "http://127.0.0.1:1"} // VAULT_ADDR goes first
	resolve(t, r, "vault://one/x#f", "first", "")
	resolve(t, r, "vault://two/x#f", "second", "")
	resolve(t, r, "vault://none/x#f", "", "has no entry none/x")
	resolve(t, r, "vault://shut/x#f", "", "doesn't let the token read shut/data/x (403)")
}
