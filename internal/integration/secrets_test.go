//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/secrets"
)

// hostileSecret is what a provider has to bring byte for byte; it holds the
// canary that no error may show.
const hostileSecret = `"}${HOME}{{key}}%{\ ' ü canary`

// resolves checks what one reference comes to: want is the secret, or, where
// wantErr is set, a part of the error.
func resolves(t *testing.T, r plan.Resolver, ref plan.Ref, want, wantErr string) {
	t.Helper()
	secret, err := r.Resolve(t.Context(), ref)
	value, _ := secret.Reveal()
	switch {
	case wantErr == "" && err != nil:
		t.Errorf("%s: %v", ref, err)
	case wantErr == "" && value != want:
		t.Errorf("%s: got %q, want %q", ref, value, want)
	case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
		t.Errorf("%s: got %v, want an error with %q", ref, err, wantErr)
	case err != nil && strings.Contains(err.Error(), "canary"):
		t.Errorf("%s: the error shows the secret: %v", ref, err)
	}
}

// ownEnvironment sets variables for one test, and unsets those that Vault's
// client would take from whoever runs the tests.
func ownEnvironment(t *testing.T, set map[string]string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "VAULT_") {
			t.Setenv(name, "") // so that it comes back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, value := range set {
		t.Setenv(name, value)
	}
}

// The real pass, on a store and a key that are made for it.
func TestPass(t *testing.T) {
	program(t, "pass")
	program(t, "gpg")
	// An agent's socket has to have a short path, which t.TempDir doesn't give.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	t.Setenv("GNUPGHOME", home)
	t.Setenv("PASSWORD_STORE_DIR", filepath.Join(t.TempDir(), "store"))
	// The agent of this home and no other.
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run() })
	output(t, "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "kiln@example.org", "default", "default", "never")
	output(t, "pass", "init", "kiln@example.org")
	insert := func(name, text string) {
		t.Helper()
		cmd := exec.Command(program(t, "pass"), "insert", "--multiline", "--", name)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pass insert %s: %v\n%s", name, err, out)
		}
	}
	insert("kiln/consul", hostileSecret+"\nuser: somebody\n")
	insert("kiln/bare", "no newline")
	insert("kiln/deep/empty", "\ncanary\n")

	r := &secrets.Resolver{}
	resolves(t, r, "pass://kiln/consul", hostileSecret, "")
	resolves(t, r, "pass://kiln/bare", "no newline", "")
	resolves(t, r, "pass://kiln/deep/empty", "", "it is there, but empty")
	resolves(t, r, "pass://kiln/deep", "", "it is a folder of the password store")
	resolves(t, r, "pass://kiln/", "", "it is a folder of the password store")
	resolves(t, r, "pass://kiln/none", "", "pass show -- kiln/none: exit status 1: Error: kiln/none is not in the password store.")
	resolves(t, r, "pass://../../etc/passwd", "", "sneaky path")
	resolves(t, r, "pass://--help", "", "starts with a dash")

	// Who has no key for it gets to know what gpg says.
	other, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", other, "--kill", "gpg-agent").Run()
		os.RemoveAll(other)
	})
	t.Setenv("GNUPGHOME", other)
	resolves(t, &secrets.Resolver{}, "pass://kiln/consul", "", "No secret key")
}

// vaultServer is a real Vault with TLS, which nobody has initialised yet.
type vaultServer struct {
	address string
	ca      string // path of its CA's certificate
	root    *api.Client
	key     string // unseals it
}

func newVault(t *testing.T) *vaultServer {
	t.Helper()
	path := hashicorp(t, "vault")
	dir := t.TempDir()
	authority := newAuthority(t)
	own := issued(t, authority, "vault.example.org")
	write(t, filepath.Join(dir, "ca.pem"), string(authority.PEM))
	write(t, filepath.Join(dir, "cert.pem"), string(own.Cert))
	write(t, filepath.Join(dir, "key.pem"), string(own.Key))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	write(t, filepath.Join(dir, "vault.hcl"), fmt.Sprintf(`
storage "inmem" {}
listener "tcp" {
  address       = %q
  tls_cert_file = %q
  tls_key_file  = %q
}
disable_mlock = true
api_addr      = "https://%s"
`, address, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), address))
	cmd := exec.Command(path, "server", "-config="+filepath.Join(dir, "vault.hcl"))
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("Vault's log:\n%s", tail(log.Bytes(), 4000))
		}
	})
	v := &vaultServer{address: "https://" + address, ca: filepath.Join(dir, "ca.pem")}
	ownEnvironment(t, map[string]string{"VAULT_ADDR": v.address, "VAULT_CACERT": v.ca, "VAULT_TLS_SERVER_NAME": "vault.example.org", "VAULT_MAX_RETRIES": "0", "HOME": t.TempDir()})
	if v.root, err = api.NewClient(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Vault answers", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("vault server ended: %v\n%s", err, log.Bytes())
		default:
		}
		_, err := v.root.Sys().InitStatus()
		return err == nil
	})
	return v
}

// initialise leaves Vault sealed.
func (v *vaultServer) initialise(t *testing.T) {
	t.Helper()
	answer, err := v.root.Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		t.Fatal(err)
	}
	v.key = answer.Keys[0]
	v.root.SetToken(answer.RootToken)
}

// fill unseals Vault and puts both versions of KV into it, and returns a token
// that may read below alibuild/ in each.
func (v *vaultServer) fill(t *testing.T) (token string) {
	t.Helper()
	if _, err := v.root.Sys().Unseal(v.key); err != nil {
		t.Fatal(err)
	}
	for path, version := range map[string]string{"one": "1", "two": "2", "team/two": "2", "shut": "2"} {
		if err := v.root.Sys().Mount(path, &api.MountInput{Type: "kv", Options: map[string]string{"version": version}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.root.Sys().Mount("transit", &api.MountInput{Type: "transit"}); err != nil {
		t.Fatal(err)
	}
	entry := map[string]any{"encrypt": hostileSecret, "lines": "a\nb\n", "number": 42, "map": map[string]any{"canary": 1}, "empty": ""}
	ctx := t.Context()
	if err := v.root.KVv1("one").Put(ctx, "alibuild/consul", entry); err != nil {
		t.Fatal(err)
	}
	// A mount that was just made upgrades itself, and refuses meanwhile.
	for _, mount := range []string{"two", "team/two", "shut"} {
		eventually(t, "the mount "+mount+" is there", func() bool {
			_, err := v.root.KVv2(mount).Put(ctx, "alibuild/consul", map[string]any{"encrypt": "old"})
			return err == nil
		})
		for _, name := range []string{"alibuild/consul", "alibuild/deleted", "alibuild/destroyed", "other"} {
			if _, err := v.root.KVv2(mount).Put(ctx, name, entry); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.root.KVv2(mount).Delete(ctx, "alibuild/deleted"); err != nil {
			t.Fatal(err)
		}
		if err := v.root.KVv2(mount).Destroy(ctx, "alibuild/destroyed", []int{1}); err != nil {
			t.Fatal(err)
		}
	}
	policy := `
path "one/alibuild/*"           { capabilities = ["read"] }
path "two/data/alibuild/*"      { capabilities = ["read"] }
path "team/two/data/alibuild/*" { capabilities = ["read"] }
path "two/data/data/*"          { capabilities = ["read"] }
path "transit/*"                { capabilities = ["read"] }
`
	if err := v.root.Sys().PutPolicy("reader", policy); err != nil {
		t.Fatal(err)
	}
	secret, err := v.root.Auth().Token().Create(&api.TokenCreateRequest{Policies: []string{"reader"}, TTL: "1h"})
	if err != nil {
		t.Fatal(err)
	}
	return secret.Auth.ClientToken
}

func TestVault(t *testing.T) {
	v := newVault(t)
	const ref = plan.Ref("vault://two/alibuild/consul#encrypt")
	v.initialise(t)
	resolves(t, &secrets.Resolver{}, ref, "", "is sealed: unseal it (vault operator unseal)")

	token := v.fill(t)
	t.Setenv("VAULT_TOKEN", token)
	r := &secrets.Resolver{VaultAddress: "https://nowhere.example.org"} // VAULT_ADDR goes first
	for _, tt := range []struct {
		ref           plan.Ref
		want, wantErr string
	}{
		{"vault://one/alibuild/consul#encrypt", hostileSecret, ""},
		{"vault://two/alibuild/consul#encrypt", hostileSecret, ""},
		{"vault://team/two/alibuild/consul#encrypt", hostileSecret, ""},
		{"vault://two/alibuild/consul#lines", "a\nb\n", ""},
		{"vault://one/alibuild/consul#number", "42", ""},
		{"vault://two/alibuild/consul#map", "", "the field map is no text but a structure"},
		{"vault://two/alibuild/consul#empty", "", "it is there, but empty"},
		{"vault://two/alibuild/consul#none", "", "has no field none: there are empty, encrypt, lines, map, number"},
		{"vault://one/alibuild/consul", "", "name a field behind a #: there are empty, encrypt"},
		{"vault://one/alibuild/none#x", "", "has no entry one/alibuild/none"},
		{"vault://two/alibuild/none#x", "", "has no entry two/alibuild/none"},
		{"vault://two/data/alibuild/consul#x", "", "leave data/ out: vault://two/alibuild/consul"},
		{"vault://two/alibuild/deleted#encrypt", "", "is deleted: vault kv undelete"},
		{"vault://two/alibuild/destroyed#encrypt", "", "is destroyed: write the entry anew"},
		{"vault://two/other#encrypt", "", "doesn't let the token read two/data/other (403)"},
		{"vault://shut/alibuild/consul#encrypt", "", "doesn't let the token read shut/data/alibuild/consul (403)"},
		{"vault://nowhere/alibuild/consul#encrypt", "", "doesn't let the token read nowhere/data/alibuild/consul (403)"},
		{"vault://transit/keys/x#x", "", "transit/ is of type transit"},
	} {
		resolves(t, r, tt.ref, tt.want, tt.wantErr)
	}

	for _, tt := range []struct {
		name, want, wantErr string
		env                 map[string]string // beside the address and the CA
		fallback            string
	}{
		{"token in the file that vault login writes", hostileSecret, "", map[string]string{"HOME": tokenFile(t, ".vault-token", token)}, ""},
		{"token in a file that is named", hostileSecret, "", map[string]string{"VAULT_TOKEN_FILE": filepath.Join(tokenFile(t, "token", token), "token")}, ""},
		{"the site's address", hostileSecret, "", map[string]string{"VAULT_TOKEN": token, "VAULT_ADDR": ""}, v.address},
		{"no token", "", "wants a token: run vault login", nil, ""},
		{"a token that isn't known", "", "doesn't know the token, or it has expired", map[string]string{"VAULT_TOKEN": "hvs.canary"}, ""},
		{"a CA that isn't known", "", "name its CA's certificate in VAULT_CACERT", map[string]string{"VAULT_TOKEN": token, "VAULT_CACERT": ""}, ""},
		{"another CA", "", "name its CA's certificate in VAULT_CACERT", map[string]string{"VAULT_TOKEN": token, "VAULT_CACERT": otherCA(t)}, ""},
		{"another name", "", "set VAULT_TLS_SERVER_NAME", map[string]string{"VAULT_TOKEN": token, "VAULT_TLS_SERVER_NAME": "other.example.org"}, ""},
		{"any certificate", hostileSecret, "", map[string]string{"VAULT_TOKEN": token, "VAULT_CACERT": "", "VAULT_SKIP_VERIFY": "1"}, ""},
		{"http", "", "with https:// or http:// as it speaks", map[string]string{"VAULT_TOKEN": token, "VAULT_ADDR": "http" + strings.TrimPrefix(v.address, "https")}, ""},
		{"nobody there", "", "can't be asked", map[string]string{"VAULT_TOKEN": token, "VAULT_ADDR": "https://127.0.0.1:1"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{"VAULT_ADDR": v.address, "VAULT_CACERT": v.ca, "VAULT_TLS_SERVER_NAME": "vault.example.org", "VAULT_MAX_RETRIES": "0", "HOME": t.TempDir()}
			for name, value := range tt.env {
				env[name] = value
			}
			ownEnvironment(t, env)
			resolves(t, &secrets.Resolver{VaultAddress: tt.fallback}, ref, tt.want, tt.wantErr)
		})
	}

	if err := v.root.Sys().Seal(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Vault is sealed", func() bool {
		status, err := v.root.Sys().SealStatus()
		return err == nil && status.Sealed
	})
	resolves(t, &secrets.Resolver{}, ref, "", "is sealed")
	resolves(t, r, "vault://two/alibuild/consul#encrypt", hostileSecret, "") // was asked before
}

// tokenFile puts a token into a file, and returns its folder.
func tokenFile(t *testing.T, name, token string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, name), token+"\n")
	return dir
}

func otherCA(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ca.pem")
	write(t, path, string(newAuthority(t).PEM))
	return path
}

// What quote.Systemd writes, the real systemd reads: its manager, asked for
// nothing but what it would do, prints each unit as it understood it.
func TestSystemdReadsWhatIsQuoted(t *testing.T) {
	const manager = "/lib/systemd/systemd"
	if _, err := os.Stat(manager); err != nil {
		t.Fatalf("%v: run make setup", err)
	}
	values := []string{
		"", " ", "plain", "a b", "  a  ", `"`, `'`, `"a" 'b'`, `\`, `\\n`, "50%", "%n%%H", ";", "#", "a;b", "-x", "@x", "{{key}}", "%{\\", "a=b", "tab\there", "ü 日本 😀", "\u2028", "\u00a0",
		"\x01\x1b[31m\x7f", "line\nbreak", "end\\",
	}
	dir := t.TempDir()
	var unit strings.Builder
	unit.WriteString("[Service]\nExecStart=/bin/echo")
	quoted, err := quote.Systemd(values)
	if err != nil {
		t.Fatal(err)
	}
	unit.WriteString(" " + quoted + "\n")
	for i, v := range values {
		word, err := quote.Systemd(fmt.Sprintf("V%d=%s", i, v))
		if err != nil {
			t.Fatal(err)
		}
		unit.WriteString("Environment=" + word + "\n")
	}
	unit.WriteString("Environment=LAST=x\n")
	write(t, filepath.Join(dir, "quoted.service"), unit.String())
	dump := systemdDump(t, manager, dir)

	_, dump, ok := strings.Cut(dump, "-> Unit quoted.service:")
	if !ok {
		t.Fatal("systemd didn't load the unit")
	}
	for i, v := range values {
		_, rest, _ := strings.Cut(dump, fmt.Sprintf("\n\t\tEnvironment: V%d=", i))
		got, _, ok := strings.Cut(rest, "\n\t\tEnvironment: ")
		if !ok || got != v {
			t.Errorf("in Environment=, %q is read as %q", v, got)
		}
	}
	_, rest, _ := strings.Cut(dump, "Command Line: /bin/echo ")
	line, _, _ := strings.Cut(rest, "\n")
	if got := systemdWords(t, line); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", values) {
		t.Errorf("in ExecStart=\n%q are read as\n%q", values, got)
	}
}

// systemdDump runs a user's manager, which refuses to be tried out by root.
func systemdDump(t *testing.T, manager, units string) string {
	t.Helper()
	runtime := t.TempDir()
	cmd := exec.Command(manager, "--user", "--test", "--unit=quoted.service", "--log-target=console")
	cmd.Dir = "/"
	cmd.Env = []string{"HOME=" + runtime, "XDG_RUNTIME_DIR=" + runtime, "SYSTEMD_UNIT_PATH=" + units + ":", "PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	if os.Geteuid() == 0 {
		const nobody = 65534
		if err := os.Chown(runtime, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		for dir := runtime; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("systemd --test: %v\n%s", err, tail(log.Bytes(), 4000))
	}
	return out.String()
}

// systemdWords reads a command line as systemd prints it: words in double
// quotes have C's escapes, and those of $ and `.
func systemdWords(t *testing.T, line string) []string {
	t.Helper()
	var words []string
	for line = strings.TrimLeft(line, " "); line != ""; line = strings.TrimLeft(line, " ") {
		if line[0] != '"' {
			word, rest, _ := strings.Cut(line, " ")
			words, line = append(words, word), rest
			continue
		}
		end := 1
		for ; end < len(line) && line[end] != '"'; end++ {
			if line[end] == '\\' {
				end++
			}
		}
		if end >= len(line) {
			t.Fatalf("a word doesn't end: %s", line)
		}
		word, err := strconv.Unquote(strings.NewReplacer("\\\\", "\\\\", "\\$", "$", "\\`", "`").Replace(line[:end+1]))
		if err != nil {
			t.Fatalf("%s: %v", line[:end+1], err)
		}
		words, line = append(words, word), line[end+1:]
	}
	return words
}
