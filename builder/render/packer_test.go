package render

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"

	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// base64decode is Packer's, which the standard library of functions lacks.
var base64decode = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "str", Type: cty.String}},
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		out, err := base64.StdEncoding.DecodeString(args[0].AsString())
		return cty.StringVal(string(out)), err
	},
})

// packerLocal is the value of one of the template's locals, as HCL reads it.
func packerLocal(t testing.TB, template []byte, name string) string {
	t.Helper()
	f, diagnostics := hclsyntax.ParseConfig(template, "t.pkr.hcl", hcl.InitialPos)
	if diagnostics.HasErrors() {
		t.Fatalf("%v in\n%s", diagnostics, template)
	}
	ctx := &hcl.EvalContext{Variables: map[string]cty.Value{}, Functions: map[string]function.Function{
		"base64decode": base64decode, "replace": stdlib.ReplaceFunc,
	}}
	for _, b := range f.Body.(*hclsyntax.Body).Blocks {
		if b.Type != "locals" {
			continue
		}
		data, diagnostics := b.Body.Attributes["user_data"].Expr.Value(ctx)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		ctx.Variables["local"] = cty.ObjectVal(map[string]cty.Value{"user_data": data})
		value, diagnostics := b.Body.Attributes[name].Expr.Value(ctx)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		return value.AsString()
	}
	t.Fatal("no locals")
	return ""
}

// pluginRenders is what a plugin makes of a string that it is given.
func pluginRenders(t testing.TB, s string) string {
	t.Helper()
	tmpl, err := template.New("").Parse(s)
	if err != nil {
		t.Fatalf("a plugin can't take the string: %v", err)
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, nil); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// mailContent is what a mail message carries.
func mailContent(t testing.TB, text string) string {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if kind := m.Header.Get("Content-Type"); kind != "text/cloud-config" {
		t.Fatalf("a message of type %s", kind)
	}
	b, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, m.Body))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPackerGolden(t *testing.T) {
	for _, test := range []struct {
		name, architecture string
		provisioner        Provisioner
	}{{"amd64", "amd64", ""}, {"arm64", "arm64", CloudInitProvisioner}, {"kiln", "amd64", KilnProvisioner}} {
		p := testplan.New()
		p.Image.Release.Architecture = test.architecture
		text, err := Packer(p, Options{Provisioner: test.provisioner})
		if err != nil {
			t.Fatal(err)
		}
		again, err := Packer(p, Options{Provisioner: test.provisioner})
		if err != nil || !bytes.Equal(text, again) {
			t.Error("the same plan gave other bytes")
		}
		if !bytes.Equal(text, hclwrite.Format(text)) {
			t.Error("the template isn't in its canonical form")
		}
		want := []byte(letIn)
		if test.provisioner != KilnProvisioner {
			if want, err = cloudConfig(p, imageOnly); err != nil {
				t.Fatal(err)
			}
		}
		if got := packerLocal(t, text, "user_data"); got != string(want) {
			t.Errorf("the user-data is\n%s\nwanted\n%s", got, want)
		}
		golden(t, "packer/"+test.name+".pkr.hcl", text)
	}
}

// TestPackerNoHost looks for anything of one host in the template.
func TestPackerNoHost(t *testing.T) {
	p, err := testplan.New().WithSecrets(t.Context(), oneSecret("s3cr3t"))
	if err != nil {
		t.Fatal(err)
	}
	for _, provisioner := range []Provisioner{CloudInitProvisioner, KilnProvisioner} {
		text, err := Packer(p, Options{Target: Stock, Provisioner: provisioner})
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"build01", "s3cr3t", "teigi", "alice", "192.0.2.", "nomad.hcl", "host.manifest", "S3X"} {
			if bytes.Contains(text, []byte(host)) {
				t.Errorf("the template has %s of the host", host)
			}
		}
	}
}

// TestPackerHostile sends contents through HCL and through a plugin's
// templates, and wants them back byte for byte.
func TestPackerHostile(t *testing.T) {
	contents := testplan.Hostile()
	maps.Copy(contents, map[string]string{
		"dollars": "$${x} $$${y} %%{z} %%%{z} ${\n%{\n", "heredoc": "END_OF_USER_DATA\n  END_OF_USER_DATA\nEND_OF_USER_DATA_\n",
		"braces": "{{{ {{{{ }} {{- x -}} {{ \"{{\" }}\n", "backslashes": "\\n \\u0041 \\\\ \\\"\n", "decomposed": "e\u0301 A\u030a\n",
	})
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		p := testplan.New()
		p.Image.Files = append(p.Image.Files, testplan.File("/etc/hostile", "root", "root", 0o644, contents[name]))
		want, err := cloudConfig(p, imageOnly)
		if err != nil {
			t.Fatal(err)
		}
		if len(want) > openstackSource().limit {
			want = nil // TestPackerLimit has those
		}
		text, err := Packer(p, Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want == nil {
			continue
		}
		got := packerLocal(t, text, "user_data")
		if strings.HasPrefix(got, "Content-Type:") {
			if got = mailContent(t, got); name != "decomposed" {
				t.Errorf("%s: the user-data became a mail message without need", name)
			}
		} else if plugin := pluginRenders(t, packerLocal(t, text, "user_data_protected")); plugin != got {
			t.Errorf("%s: the plugin gets\n%q, wanted\n%q", name, plugin, got)
		}
		if got != string(want) {
			t.Errorf("%s: the user-data is\n%q, wanted\n%q", name, got, want)
		}
	}
}

func FuzzPackerText(f *testing.F) {
	for _, text := range testplan.Hostile() {
		f.Add(text)
	}
	f.Add("$${x} $$${y} %%{z} ${\n")
	f.Add("END_OF_USER_DATA\n")
	f.Fuzz(func(t *testing.T, s string) {
		file := newPackerFile()
		file.block("locals").text("user_data", s)
		text, err := file.bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, hclwrite.Format(text)) {
			t.Error("not canonical")
		}
		got := packerLocal(t, text, "user_data")
		if strings.HasPrefix(got, "Content-Type: text/cloud-config\nMIME-Version: 1.0") && got != s {
			got = mailContent(t, got)
		}
		if got != s {
			t.Errorf("%q came out as %q of\n%s", s, got, text)
		}
	})
}

func TestPackerLimit(t *testing.T) {
	p := testplan.New()
	p.Image.Files = append(p.Image.Files, testplan.File("/etc/large", "root", "root", 0o644, strings.Repeat("x", 50000)+"\n"))
	text, err := Packer(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte(`source "openstack"`)) || !bytes.Contains(text, []byte("# There is no openstack source: the user-data has")) {
		t.Errorf("the openstack source is there, or nothing says why it isn't:\n%.3000s", text)
	}
	p.Host.Platform = plan.PlatformOpenStack
	var large *TooLargeError
	if _, err := Packer(p, Options{}); !errors.As(err, &large) || large.Limit != plan.PlatformOpenStack.UserDataLimit() || !strings.Contains(err.Error(), "--provisioner kiln") {
		t.Errorf("for a host in OpenStack: %v", err)
	}
	// Kiln's own provisioner doesn't bring it in user-data.
	text, err = Packer(p, Options{Provisioner: KilnProvisioner})
	if err != nil || !bytes.Contains(text, []byte(`source "openstack"`)) {
		t.Errorf("with the kiln provisioner: %v", err)
	}
}

func TestPackerErrors(t *testing.T) {
	if _, err := Packer(testplan.New(), Options{Provisioner: "puppet"}); err == nil || !strings.Contains(err.Error(), `no provisioner is called "puppet": use cloud-init`) {
		t.Errorf("an unknown provisioner: %v", err)
	}
	p := testplan.New()
	p.Image.AptSources[0].Key = nil
	if _, err := Packer(p, Options{}); err == nil || !strings.Contains(err.Error(), "has no key") {
		t.Errorf("an apt source without its key: %v", err)
	}
}

// TestPackerScripts has the shell read both scripts, and no plugin change them.
func TestPackerScripts(t *testing.T) {
	text, err := Packer(testplan.New(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"wait", "seal"} {
		script := packerLocal(t, text, name)
		if got := pluginRenders(t, script); got != script {
			t.Errorf("a plugin changes the script %s", name)
		}
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestSealScript runs the script on a tree of files.
func TestSealScript(t *testing.T) {
	p := testplan.New()
	p.Image.Packages = append(p.Image.Packages, plan.Package{Name: "vault"})
	p.Image.Directories = append(p.Image.Directories, plan.Directory{Path: "/data/a b/nomad", Owner: "root", Group: "root", Mode: 0o755})
	p.Image.Files = append(p.Image.Files,
		testplan.File("/etc/netplan/50-cloud-init.yaml", "root", "root", 0o600, "network: {}\n"),
		testplan.File("/var/lib/dhcp/kept/by the profile", "root", "root", 0o644, "x\n"))
	script, err := sealScript(p)
	if err != nil {
		t.Fatal(err)
	}
	gone := []string{
		"etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub", "etc/ssh/sshd_config.d/50-cloud-init.conf", "etc/hostname",
		"var/lib/systemd/random-seed", "var/lib/dhcp/dhclient.eth0.leases", "var/lib/dhcp/kept/other", "var/lib/cloud/instance/user-data.txt",
		"var/log/journal/0123/system.journal", "var/log/syslog.1", "var/log/apt/term.log.1.gz", "var/lib/apt/lists/example_Release",
		"var/cache/apt/pkgcache.bin", "tmp/x y", "etc/passwd-", "home/debian/.ssh/authorized_keys", "root/.ssh/authorized_keys",
		"var/lib/nomad/client/client-id", "data/a b/nomad/client/secret-id", "build/consul/node-id", "opt/nomad/data/server/raft/raft.db", "var/lib/dbus/machine-id",
		"opt/vault/tls/tls.key", "opt/vault/tls/tls.crt",
	}
	kept := map[string]string{
		"etc/netplan/50-cloud-init.yaml": "x", "var/lib/dhcp/kept/by the profile": "x", "etc/ssh/sshd_config": "x", "etc/passwd": "x",
		"home/alice/.ssh/authorized_keys": "x", "data/a b/nomad/plugins/driver": "x", "var/log/daemon.log": "", "etc/machine-id": "",
		"etc/resolv.conf": "", "etc/hosts": "127.0.0.1 localhost\n",
	}
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range gone {
		write(name, "x")
	}
	for name := range kept {
		write(name, "x")
	}
	write("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 kiln-build\n")
	for range 2 { // the second time, there is nothing left to do
		cmd := exec.Command("sh", "-eu", "-s", root)
		cmd.Stdin = strings.NewReader(script)
		cmd.Env = append(os.Environ(), "BUILD_USER=debian")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, name := range gone {
			if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
				t.Errorf("%s is still there", name)
			}
		}
		for name, want := range kept {
			if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
				t.Errorf("%s is %q (%v), wanted %q", name, got, err, want)
			}
		}
	}
}

// TestWaitScript runs the script with a cloud-init that ends in each way.
func TestWaitScript(t *testing.T) {
	script, err := waitScript(testplan.New())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, user, json string
		status           string
		fails            bool
	}{
		{"done", "debian", "{}", "0", false},
		{"error", "debian", "{}", "1", true},
		{"deprecated keys", "debian", `{"recoverable_errors": {"DEPRECATED": ["x"]}}`, "2", false},
		{"a warning", "debian", `{"recoverable_errors": {"WARNING": ["x"]}}`, "2", true},
		{"a user of the profile's", "mesosci", "{}", "0", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin := t.TempDir()
			fake := "#!/bin/sh\ncase $* in *json*) echo '" + test.json + "'; esac\nexit " + test.status + "\n"
			if err := os.WriteFile(filepath.Join(bin, "cloud-init"), []byte(fake), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", "-eu")
			cmd.Stdin = strings.NewReader(script)
			cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "BUILD_USER=" + test.user}
			if out, err := cmd.CombinedOutput(); (err != nil) != test.fails {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
