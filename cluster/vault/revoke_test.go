package vault

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/testvault"
)

const (
	leaked   = "hvs.leaked-canary"
	accessor = "accessor1"
)

// tokens is the part of a Vault that knows one token.
type tokens struct {
	known   bool
	deaf    bool // revokes nothing
	weak    bool // the operator's token may not look others up
	mute    bool // the token may not look itself up
	refuses bool
	asked   []string
}

func (v *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/auth/token/")
	var body map[string]string
	_ = json.NewDecoder(r.Body).Decode(&body) // a GET has none
	v.asked = append(v.asked, path)
	info := map[string]any{"data": map[string]any{"id": leaked, "accessor": accessor, "display_name": "token-nomad", "policies": []string{"nomad", "default"}}}
	found := v.known && (body["token"] == leaked || body["accessor"] == accessor || path == "lookup-self" && r.Header.Get("X-Vault-Token") == leaked)
	switch {
	case path == "lookup" && v.weak, path == "lookup-self" && v.mute:
		testvault.Refuse(w, 403, "1 error occurred:\n\t* permission denied\n\n")
	case strings.HasPrefix(path, "lookup") && found:
		_ = json.NewEncoder(w).Encode(info)
	case path == "lookup":
		testvault.Refuse(w, 403, "bad token")
	case path == "lookup-self":
		testvault.Refuse(w, 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
	case path == "lookup-accessor":
		testvault.Refuse(w, 403, "invalid accessor")
	case v.refuses:
		testvault.Refuse(w, 403, "permission denied: "+body["token"])
	default:
		v.known = v.known && v.deaf
		w.WriteHeader(http.StatusNoContent)
	}
}

func TestRevoke(t *testing.T) {
	for _, c := range []struct {
		name   string
		vault  tokens
		revoke Revocation
		want   string // of the error
		asked  string
	}{
		{"a token", tokens{known: true}, Revocation{Token: leaked}, "", "lookup revoke lookup"},
		{"an accessor", tokens{known: true}, Revocation{Accessor: accessor}, "", "lookup-accessor revoke-accessor lookup-accessor"},
		{"without its children", tokens{known: true}, Revocation{Token: leaked, Orphan: true}, "", "lookup revoke-orphan lookup"},
		{"by itself", tokens{known: true, weak: true}, Revocation{Token: leaked}, "", "lookup lookup-self revoke lookup lookup-self"},
		{"that can't be looked up", tokens{known: true, weak: true, mute: true}, Revocation{Token: leaked}, "doesn't let the token update auth/token/lookup (403): give one of its policies the capability update on that path", "lookup lookup-self"},
		{"that isn't known", tokens{}, Revocation{Token: leaked}, "no token is revoked, since Vault knows none like that", "lookup"},
		{"that isn't known, by itself", tokens{weak: true}, Revocation{Token: leaked}, "no token is revoked, since Vault knows none like that", "lookup lookup-self"},
		{"an accessor that isn't known", tokens{}, Revocation{Accessor: accessor}, "no token is revoked, since Vault knows none like that", "lookup-accessor"},
		{"that stays", tokens{known: true, deaf: true}, Revocation{Token: leaked}, "has revoked the token accessor1, and still knows it", "lookup revoke lookup"},
		{"that mustn't be", tokens{known: true, refuses: true}, Revocation{Token: leaked, Orphan: true}, "revoking the token accessor1: the Vault server at %s doesn't let the token update auth/token/revoke-orphan (403): give one of its policies the capabilities update and sudo", "lookup revoke-orphan"},
		{"an orphan's accessor", tokens{known: true}, Revocation{Accessor: accessor, Orphan: true}, "by its accessor, Vault revokes a token only with those that were made with it", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, &c.vault)
			got, err := s.Revoke(t.Context(), c.revoke)
			switch want := strings.ReplaceAll(c.want, "%s", s.Address); {
			case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("got %v\nwant %q", err, want)
			case err != nil && strings.Contains(err.Error(), "canary"):
				t.Errorf("it shows a token: %v", err)
			}
			if err == nil {
				text, _ := json.Marshal(got)
				if string(text) != `{"accessor":"accessor1","display_name":"token-nomad","policies":["default","nomad"]}` {
					t.Errorf("it says %s", text)
				}
			}
			if asked := strings.Join(c.vault.asked, " "); asked != c.asked {
				t.Errorf("it asked for %s, not %s", asked, c.asked)
			}
		})
	}
}
