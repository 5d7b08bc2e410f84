package secrets

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/alisw/kiln/plan"
)

// fromVault reads vault://MOUNT/PATH#FIELD from a KV engine of either version.
// PATH is as the vault program's `vault kv get` takes it: without the data/ of
// version 2. The server and the token are those that the vault program would
// use: VAULT_ADDR, VAULT_TOKEN, ~/.vault-token and their like.
func (r *Resolver) fromVault(ctx context.Context, ref plan.Ref) (string, error) {
	path, field, _ := strings.Cut(ref.Rest(), "#")
	segments := strings.Split(path, "/")
	if len(segments) < 2 || slices.ContainsFunc(segments, func(s string) bool { return s == "" || s == "." || s == ".." }) {
		return "", errors.New("it has to name a mount, a path and a field: write vault://MOUNT/PATH#FIELD, such as vault://kv/alibuild/consul#encrypt")
	}
	server, err := r.vault.get(func() (*vaultServer, error) { return newVaultServer(r.VaultAddress) })
	if err != nil {
		return "", err
	}
	data, err := server.read(ctx, path)
	if err != nil {
		return "", err
	}
	return fieldOf(data, field)
}

// fieldOf gives one field of a KV entry as text.
func fieldOf(data map[string]any, field string) (string, error) {
	names := strings.Join(slices.Sorted(maps.Keys(data)), ", ")
	if field == "" {
		return "", fmt.Errorf("it has to name a field behind a #: there are %s", names)
	}
	value, ok := data[field]
	if !ok {
		return "", fmt.Errorf("the entry has no field %s: there are %s", field, names)
	}
	switch v := value.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return "", fmt.Errorf("the field %s is no text but a structure: store it as a text", field)
}

// vaultServer is a Vault server, and the token for it.
type vaultServer struct {
	client *api.Client
}

func newVaultServer(fallback string) (*vaultServer, error) {
	client, err := NewVaultClient(fallback)
	if err != nil {
		return nil, err
	}
	return &vaultServer{client}, nil
}

// NewVaultClient makes a client of the Vault that the vault program would talk
// to, with the token that it would use; the server at fallback is taken where
// the environment names none. Nothing is asked of it yet.
func NewVaultClient(fallback string) (*api.Client, error) {
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("the VAULT_… settings in the environment can't be used: %w", config.Error)
	}
	if os.Getenv(api.EnvVaultAddress) == "" && fallback != "" {
		config.Address = fallback
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("the VAULT_… settings in the environment can't be used: %w", err)
	}
	if client.Token() == "" {
		token, err := vaultTokenFile()
		if err != nil {
			return nil, err
		}
		client.SetToken(token)
	}
	return client, nil
}

// vaultTokenFile reads the token from where `vault login` leaves it, unless
// VAULT_TOKEN_FILE names another file. None is no error: a Vault agent in
// between may have one.
func vaultTokenFile() (string, error) {
	path, named := os.LookupEnv("VAULT_TOKEN_FILE")
	if !named || path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil
		}
		path = filepath.Join(home, ".vault-token")
	}
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("the Vault token: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// read gives the fields of the entry at path, which begins with its mount.
func (v *vaultServer) read(ctx context.Context, path string) (map[string]any, error) {
	mount, version, err := v.mountOf(ctx, path)
	if status(err) == http.StatusForbidden {
		return v.readUnseen(ctx, path)
	}
	if err != nil {
		return nil, err
	}
	if version == 2 {
		return v.read2(ctx, mount, strings.TrimPrefix(path, mount))
	}
	return v.read1(ctx, path)
}

// mountOf says which mount (with a slash at its end) path is on, and which
// version of KV is there, as the vault program finds it out.
func (v *vaultServer) mountOf(ctx context.Context, path string) (mount string, version int, err error) {
	answer, err := v.client.Logical().ReadWithContext(ctx, "sys/internal/ui/mounts/"+path)
	if err != nil {
		return "", 0, v.explain(ctx, path, err)
	}
	first, _, _ := strings.Cut(path, "/")
	if answer == nil || answer.Data == nil {
		// A server older than version 2 of KV.
		return first + "/", 1, nil
	}
	mount, _ = answer.Data["path"].(string)
	switch kind, _ := answer.Data["type"].(string); kind {
	case "kv", "generic", "cubbyhole":
	default:
		return "", 0, fmt.Errorf("the mount %s is of type %s, whose secrets end with their lease: only KV entries can be delivered to a host", mount, kind)
	}
	if mount == "" || !strings.HasPrefix(path, mount) {
		return "", 0, fmt.Errorf("%s is a mount: name an entry in it", path)
	}
	options, _ := answer.Data["options"].(map[string]any)
	if version, _ := options["version"].(string); version == "2" {
		return mount, 2, nil
	}
	return mount, 1, nil
}

// readUnseen reads an entry whose mount the token may not look at: as version
// 1, then as version 2 on a mount of one segment.
func (v *vaultServer) readUnseen(ctx context.Context, path string) (map[string]any, error) {
	data, err := v.read1(ctx, path)
	if err == nil {
		return data, nil
	}
	mount, rest, _ := strings.Cut(path, "/")
	data, err2 := v.read2(ctx, mount+"/", rest)
	switch {
	case err2 == nil:
		return data, nil
	case status(err2) == http.StatusForbidden:
		return nil, err2
	}
	return nil, err
}

// read1 reads an entry of a KV engine of version 1.
func (v *vaultServer) read1(ctx context.Context, path string) (map[string]any, error) {
	answer, err := v.client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return nil, v.explain(ctx, path, err)
	}
	if answer == nil || len(answer.Data) == 0 {
		return nil, fmt.Errorf("the Vault server at %s has no entry %s: vault kv list shows those that there are", v.client.Address(), path)
	}
	return answer.Data, nil
}

// read2 reads the latest version of an entry of a KV engine of version 2.
func (v *vaultServer) read2(ctx context.Context, mount, entry string) (map[string]any, error) {
	answer, err := v.client.Logical().ReadWithContext(ctx, mount+"data/"+entry)
	if err != nil {
		return nil, v.explain(ctx, mount+"data/"+entry, err)
	}
	if answer != nil {
		if data, ok := answer.Data["data"].(map[string]any); ok && len(data) > 0 {
			return data, nil
		}
		if meta, ok := answer.Data["metadata"].(map[string]any); ok {
			if destroyed, _ := meta["destroyed"].(bool); destroyed {
				return nil, fmt.Errorf("the latest version of %s%s is destroyed: write the entry anew", mount, entry)
			}
			return nil, fmt.Errorf("the latest version of %s%s is deleted: vault kv undelete brings it back", mount, entry)
		}
	}
	hint := ""
	if rest, ok := strings.CutPrefix(entry, "data/"); ok {
		hint = fmt.Sprintf(" (on a KV engine of version 2, leave data/ out: vault://%s%s)", mount, rest)
	}
	return nil, fmt.Errorf("the Vault server at %s has no entry %s%s%s: vault kv list shows those that there are", v.client.Address(), mount, entry, hint)
}

// vaultError is an error that Vault itself answered.
type vaultError struct {
	status int // of HTTP
	text   string
}

func (e *vaultError) Error() string { return e.text }

// status is the HTTP status that Vault answered, 0 where err is another one.
func status(err error) int {
	if e, ok := errors.AsType[*vaultError](err); ok {
		return e.status
	}
	return 0
}

// explain says what a failed request to read path means, and the way out.
func (v *vaultServer) explain(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if answer, ok := errors.AsType[*api.ResponseError](err); ok {
		return ExplainVault(v.client, "read", path, answer)
	}
	return unreachable(v.client.Address(), err)
}

// ExplainVault says what it means that Vault refused a request for path, and the
// way out. The capabilities are those of a policy that the request needs: "read",
// "update and sudo".
func ExplainVault(client *api.Client, capabilities, path string, answer *api.ResponseError) error {
	address := client.Address()
	said := strings.Join(strings.Fields(strings.Join(answer.Errors, "; ")), " ")
	verb, _, several := strings.Cut(capabilities, " and ")
	needs := "capability " + capabilities
	if several {
		needs = "capabilities " + capabilities
	}
	e := &vaultError{status: answer.StatusCode}
	switch {
	case answer.RawError:
		// A page of somebody else's: it isn't repeated.
		e.text = fmt.Sprintf("%s answers %s, and not as Vault does: is that Vault's address, with https:// or http:// as it speaks?", address, http.StatusText(e.status))
	case client.Token() == "" && (e.status == http.StatusForbidden || e.status == http.StatusBadRequest):
		e.text = fmt.Sprintf("the Vault server at %s wants a token: run vault login, or set VAULT_TOKEN or VAULT_TOKEN_FILE", address)
	case e.status == http.StatusForbidden && (strings.Contains(said, "invalid token") || strings.Contains(said, "bad token")):
		e.text = fmt.Sprintf("the Vault server at %s doesn't know the token, or it has expired: run vault login", address)
	case e.status == http.StatusForbidden:
		e.text = fmt.Sprintf("the Vault server at %s doesn't let the token %s %s (403): give one of its policies the %s on that path, or log in as somebody who has it; vault token lookup shows the token's policies",
			address, verb, path, needs)
	case e.status == http.StatusServiceUnavailable && strings.Contains(said, "sealed"):
		e.text = fmt.Sprintf("the Vault server at %s is sealed: unseal it (vault operator unseal)", address)
	default:
		e.text = fmt.Sprintf("the Vault server at %s answers %d %s: %s", address, e.status, http.StatusText(e.status), said)
	}
	return e
}

// unreachable explains a request that got no answer.
func unreachable(address string, err error) error {
	hint := "is that its address (VAULT_ADDR, or the site's vault_address), and can this machine reach it?"
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		hint = "name its CA's certificate in VAULT_CACERT"
	} else if _, ok := errors.AsType[x509.HostnameError](err); ok {
		hint = "use a name that is in its certificate in VAULT_ADDR, or set VAULT_TLS_SERVER_NAME to one"
	} else if errors.Is(err, http.ErrSchemeMismatch) {
		hint = "it doesn't speak TLS there: is it http:// rather than https://?"
	}
	return fmt.Errorf("the Vault server at %s can't be asked: %w: %s", address, err, hint)
}
