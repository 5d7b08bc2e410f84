//go:build integration

package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// packerDir is a folder with a template, a key and the plugins, and what runs
// Packer there.
type packerDir struct {
	t       *testing.T
	dir     string
	plugins string
	env     []string
	wrap    []string // what runs it, if anything
}

const templateName = "template.pkr.hcl"

// stockPlugins are HashiCorp's, which rendered templates ask for.
var stockPlugins = []string{"qemu", "openstack"}

// newPacker installs Kiln's plugin and those of HashiCorp's, as packer init would
// have from the network.
func newPacker(t *testing.T, stock ...string) *packerDir {
	t.Helper()
	p := &packerDir{t: t, dir: t.TempDir(), plugins: t.TempDir()}
	for _, plugin := range stock {
		p.must("plugins", "install", "--path", hashicorp(t, "packer-plugin-"+plugin), "github.com/hashicorp/"+plugin)
	}
	p.must("plugins", "install", "--path", kilnPlugin(t), "github.com/alisw/kiln")
	key := filepath.Join(p.dir, "build_key")
	if out, err := exec.Command(program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "packer", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	write(t, filepath.Join(p.dir, "base.qcow2"), "")
	return p
}

// kilnPlugin builds Kiln's own plugin, once.
func kilnPlugin(t *testing.T) string {
	t.Helper()
	pluginOnce.Do(func() {
		name := filepath.Join(testCache(t), "packer/packer-plugin-kiln")
		build := exec.Command("go", "build", "-trimpath", "-o", name, "./cmd/packer-plugin-kiln")
		build.Dir = repository(t)
		if out, err := build.CombinedOutput(); err != nil {
			pluginErr = fmt.Errorf("%w\n%s", err, out)
		}
		plugin = name
	})
	if pluginErr != nil {
		t.Fatal(pluginErr)
	}
	return plugin
}

var (
	pluginOnce sync.Once
	plugin     string
	pluginErr  error
)

// command is a call of Packer.
func (p *packerDir) command(args ...string) *exec.Cmd {
	args = append(append(slices.Clone(p.wrap), hashicorp(p.t, "packer")), args...)
	cmd := exec.CommandContext(p.t.Context(), args[0], args[1:]...)
	cmd.Dir = p.dir
	// Nothing of the machine's own settings, and no calls home.
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "TMPDIR=" + p.t.TempDir(),
		"PACKER_PLUGIN_PATH=" + p.plugins, "PACKER_CONFIG_DIR=" + p.plugins, "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1",
	}, p.env...)
	return cmd
}

// run runs Packer, and gives what it printed.
func (p *packerDir) run(args ...string) (string, error) {
	out, err := p.command(args...).CombinedOutput()
	return string(out), err
}

func (p *packerDir) must(args ...string) {
	p.t.Helper()
	if out, err := p.run(args...); err != nil {
		p.t.Fatalf("packer %s: %v\n%s", args[0], err, out)
	}
}

// template writes the template of a plan's profile.
func (p *packerDir) template(of *plan.Plan, provisioner render.Provisioner) {
	p.t.Helper()
	text, err := render.Packer(of, render.Options{Provisioner: provisioner})
	if err != nil {
		p.t.Fatal(err)
	}
	write(p.t, filepath.Join(p.dir, templateName), string(text))
}

// variables are what a site has to give for each source.
func variables() []string {
	var args []string
	for _, v := range []string{
		"base_image_url=base.qcow2", "base_image_checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"efi_boot=false", "flavor=m1.small", "source_image=0c1b3a36-0000-4000-8000-000000000001",
	} {
		args = append(args, "-var", v)
	}
	return args
}

func TestPackerTakesTheTemplate(t *testing.T) {
	p := newPacker(t, stockPlugins...)
	for _, profile := range shippedProfiles {
		t.Run(profile, func(t *testing.T) {
			of := shippedHost(t, profile)
			for i := range of.Image.AptSources {
				of.Image.AptSources[i].Key = []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnone\n-----END PGP PUBLIC KEY BLOCK-----\n")
			}
			checkPacker(t, p, of)
		})
	}
	t.Run("all that a plan can say", func(t *testing.T) { checkPacker(t, p, testplan.New()) })
	for _, bad := range []string{"disk_size=ten", "ssh_username=a b", "image_name=../x", "image_visibility=everyone", "base_image_checksum=none"} {
		args := append(append([]string{"validate", "-only=qemu.*"}, variables()...), "-var", bad, templateName)
		if out, err := p.run(args...); err == nil || !strings.Contains(out, "Invalid value for") {
			t.Errorf("%s is taken, or refused for another reason (%v):\n%s", bad, err, out)
		}
	}
}

// checkPacker has Packer look at the template of a plan's profile.
func checkPacker(t *testing.T, p *packerDir, of *plan.Plan) {
	t.Helper()
	for _, provisioner := range []render.Provisioner{render.KilnProvisioner, render.CloudInitProvisioner} {
		p.template(of, provisioner)
		p.must("fmt", "-check", "-diff", templateName)
		// The openstack plugin logs in before it looks at anything.
		cloud := newCloud(t)
		p.env = cloud.env()
		p.must(append(append([]string{"validate"}, variables()...), templateName)...)
		cloud.Lock()
		if cloud.logins == 0 {
			t.Errorf("%s: the openstack source wasn't looked at", provisioner)
		}
		cloud.Unlock()
	}
	// The plugin is there, and so packer init has nothing to fetch.
	p.must("init", templateName)
}

// hostileImage has contents that HCL, Packer's plugins and YAML would each
// change, were they given the chance. They fit into OpenStack's limit.
func hostileImage() *plan.Plan {
	p := testplan.New()
	for name, text := range testplan.Hostile() {
		if len(text) < 1000 {
			p.Image.Files = append(p.Image.Files, testplan.File("/etc/hostile/"+name, "root", "root", 0o644, text))
		}
	}
	p.Image.Files = append(p.Image.Files, testplan.File("/etc/hostile/dollars", "root", "root", 0o644, "$${x} $$${y} %%{z} {{{ {{- .Vars }}\nEND_OF_USER_DATA\n"))
	return p
}

// TestPackerSeed runs the build up to where the machine starts, and looks at
// the CD that it would start with.
func TestPackerSeed(t *testing.T) {
	of := hostileImage()
	p := newPacker(t, stockPlugins...)
	p.template(of, render.CloudInitProvisioner)
	bin, iso := t.TempDir(), filepath.Join(t.TempDir(), "seed.iso")
	// In the places of the machine, and of what copies its disk.
	for name, script := range map[string]string{
		"qemu-system-x86_64": `case $* in -version) echo QEMU emulator version 7.2.0; exit;; esac
for arg; do case $arg in file=*,media=cdrom) arg=${arg#file=}; cp "${arg%,media=cdrom}" '` + iso + `';; esac; done
exit 1`,
		"qemu-img": `for last; do :; done; : >"$last"`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
	program(t, "xorriso")
	args := append(append([]string{"build", "-only=qemu.*"}, variables()...), templateName)
	out, err := p.run(args...)
	if err == nil {
		t.Errorf("a build without a machine succeeded:\n%s", out)
	}
	for name, want := range map[string]string{"user-data": string(imageUserData(t, of)), "meta-data": ""} {
		path := filepath.Join(t.TempDir(), name)
		if out2, err := exec.Command("xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/"+name, path).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s\npacker said:\n%s", err, out2, out)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want != "" && string(got) != want {
			t.Errorf("the CD's %s is\n%q, wanted\n%q", name, got, want)
		}
		if name == "meta-data" {
			checkBuildMetaData(t, p, got)
		}
	}
}

func checkBuildMetaData(t *testing.T, p *packerDir, text []byte) {
	t.Helper()
	var meta struct {
		Instance string   `json:"instance-id"`
		Keys     []string `json:"public-keys"`
	}
	if err := json.Unmarshal(text, &meta); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(p.dir, "build_key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if len(meta.Keys) != 1 || meta.Keys[0] != strings.TrimSpace(string(key)) || meta.Instance == "" {
		t.Errorf("meta-data is %s", text)
	}
}

// TestPackerServer has the openstack source ask a cloud for a server, and looks
// at the user-data that it asks with.
func TestPackerServer(t *testing.T) {
	of := hostileImage()
	p := newPacker(t, stockPlugins...)
	p.template(of, render.CloudInitProvisioner)
	cloud := newCloud(t)
	p.env = cloud.env()
	args := append(append([]string{"build", "-only=openstack.*"}, variables()...), templateName)
	out, err := p.run(args...)
	if err == nil {
		t.Errorf("a build without a server succeeded:\n%s", out)
	}
	cloud.Lock()
	defer cloud.Unlock()
	got, err := base64.StdEncoding.DecodeString(cloud.userData)
	if err != nil {
		t.Fatal(err)
	}
	if want := imageUserData(t, of); string(got) != string(want) {
		t.Errorf("the server's user-data is\n%q, wanted\n%q\npacker said:\n%s", got, want, out)
	}
}

// imageUserData is the user-data of the Image half, read from the one other
// place that shows it.
func imageUserData(t *testing.T, p *plan.Plan) []byte {
	t.Helper()
	text, err := render.ImageUserData(p)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// cloud answers as an OpenStack does, up to the moment when a server is to be
// made.
type cloud struct {
	sync.Mutex
	*httptest.Server
	logins   int
	userData string
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{}
	mux := http.NewServeMux()
	mux.HandleFunc("/v3/auth/tokens", func(w http.ResponseWriter, _ *http.Request) {
		c.Lock()
		defer c.Unlock()
		c.logins++
		w.Header().Set("X-Subject-Token", "token")
		w.WriteHeader(http.StatusCreated)
		type m map[string]any
		var catalog []m
		for _, kind := range []string{"compute", "image", "network"} {
			catalog = append(catalog, m{"type": kind, "name": kind, "endpoints": []m{
				{"interface": "public", "region": "one", "region_id": "one", "url": c.URL + "/" + kind + "/"},
			}})
		}
		_ = json.NewEncoder(w).Encode(m{"token": m{"expires_at": "2099-01-01T00:00:00.000000Z", "catalog": catalog}})
	})
	mux.HandleFunc("/compute/flavors/m1.small", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"flavor": {"id": "m1.small", "name": "m1.small"}}`))
	})
	mux.HandleFunc("/compute/os-keypairs", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"keypair": {"name": "packer", "public_key": "x"}}`))
	})
	mux.HandleFunc("/compute/servers", func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Server struct {
				UserData string `json:"user_data"`
			} `json:"server"`
		}
		_ = json.NewDecoder(r.Body).Decode(&asked)
		c.Lock()
		defer c.Unlock()
		c.userData = asked.Server.UserData
		http.Error(w, `{"badRequest": {"message": "no servers today", "code": 400}}`, http.StatusBadRequest)
	})
	c.Server = httptest.NewServer(mux)
	t.Cleanup(c.Close)
	return c
}

func (c *cloud) env() []string {
	return []string{
		"OS_AUTH_URL=" + c.URL + "/v3", "OS_USERNAME=kiln", "OS_PASSWORD=x", "OS_PROJECT_NAME=ci",
		"OS_USER_DOMAIN_NAME=Default", "OS_PROJECT_DOMAIN_NAME=Default", "OS_REGION_NAME=one",
	}
}
