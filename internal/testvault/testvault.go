// Package testvault is as much of a Vault as unit tests need: it keeps the settings
// that it is sent, and knows tokens. A real one answers in the integration tests.
package testvault

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Vault is an HTTP handler.
type Vault struct {
	// Data has what can be read, by its path.
	Data map[string]map[string]any
	// Wrote has each write: PATH BODY.
	Wrote []string
	// Tokens has the accessors of the tokens that are known.
	Tokens map[string]string
	// Before may answer a request itself, which it says then.
	Before func(w http.ResponseWriter, r *http.Request, path string) bool

	mu sync.Mutex
}

// New is a Vault as it is when nobody has set anything.
func New() *Vault {
	return &Vault{
		Data:   map[string]map[string]any{"sys/auth/token/tune": {"default_lease_ttl": 2764800, "max_lease_ttl": 2764800, "description": "token based credentials"}},
		Tokens: map[string]string{},
	}
}

// Refuse answers as Vault does where it refuses something.
func Refuse(w http.ResponseWriter, status int, errs ...string) {
	w.WriteHeader(status)
	answer(w, map[string]any{"errors": append([]string{}, errs...)})
}

func answer(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v) // who has hung up misses it
}

func (v *Vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.Before != nil && v.Before(w, r, path) {
		return
	}
	var sent map[string]any
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(body, &sent)
		}
		if err != nil {
			Refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		if !strings.HasPrefix(path, "auth/token/") || strings.HasPrefix(path, "auth/token/roles/") {
			v.Wrote = append(v.Wrote, path+" "+strings.TrimSpace(string(body)))
			v.write(path, sent)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		v.token(w, strings.TrimPrefix(path, "auth/token/"), sent)
		return
	}
	data := v.Data[path]
	if path == "sys/auth" {
		data = v.mounts()
	}
	if data == nil {
		Refuse(w, http.StatusNotFound)
		return
	}
	answer(w, map[string]any{"data": data})
}

// write keeps what is sent beside what is there; a mount's configuration is
// replaced, as by the real one. Times are kept in seconds.
func (v *Vault) write(path string, sent map[string]any) {
	if v.Data[path] == nil || strings.HasSuffix(path, "/config") {
		v.Data[path] = map[string]any{}
	}
	for name, value := range sent {
		if s, ok := value.(string); ok && strings.HasSuffix(s, "s") {
			if n, err := strconv.ParseInt(strings.TrimSuffix(s, "s"), 10, 64); err == nil {
				value = n
			}
		}
		v.Data[path][name] = value
	}
}

func (v *Vault) mounts() map[string]any {
	all := map[string]any{"token/": map[string]any{"type": "token"}}
	for path, data := range v.Data {
		if name, ok := strings.CutPrefix(path, "sys/auth/"); ok && data["type"] != nil {
			all[name+"/"] = map[string]any{"type": data["type"], "accessor": "auth_" + name}
		}
	}
	return all
}

// token looks up and revokes.
func (v *Vault) token(w http.ResponseWriter, verb string, sent map[string]any) {
	for token, accessor := range v.Tokens {
		if sent["token"] != token && sent["accessor"] != accessor {
			continue
		}
		if strings.HasPrefix(verb, "lookup") {
			answer(w, map[string]any{"data": map[string]any{"id": token, "accessor": accessor, "display_name": "token-nomad", "policies": []string{"nomad", "default"}}})
			return
		}
		delete(v.Tokens, token)
	}
	switch verb {
	case "lookup":
		Refuse(w, http.StatusForbidden, "bad token")
	case "lookup-accessor":
		Refuse(w, http.StatusForbidden, "invalid accessor")
	default: // it calls that a success
		w.WriteHeader(http.StatusNoContent)
	}
}
