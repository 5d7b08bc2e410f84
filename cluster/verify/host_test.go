package verify_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/cluster/remote"
	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/internal/lab"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// hostState is what a host shows, at the other end of ssh.
type hostState struct {
	kiln    bool
	units   map[string]string // properties, and other records, of those that don't just run
	files   map[string]string // the record of each, without kind and path: KIND\tREST
	texts   map[string]string // contents of files
	cert    string
	names   string
	fails   error
	answers string // in the place of everything
}

const active = "LoadState=loaded ActiveState=active SubState=running UnitFileState=enabled Type=simple ConditionResult=yes Result=success"

// goodHost has all that the target says, with secrets in the places of references.
func goodHost(t *testing.T, target verify.Target) *hostState {
	t.Helper()
	h := &hostState{kiln: true, units: map[string]string{}, files: map[string]string{}, texts: map[string]string{}, names: "192.0.2.62"}
	for _, f := range target.Files {
		rights := fmt.Sprintf("%o %s %s", f.Mode, f.Owner, f.Group)
		switch {
		case f.Dir:
			h.files[f.Path] = "directory\t" + rights
		case f.Target != "":
			h.files[f.Path] = "link\t" + f.Target
		default:
			text, err := f.Content.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			h.files[f.Path] = "file\t" + rights
			h.texts[f.Path] = strings.NewReplacer("kiln-secret:env://KILN_TEST_GOSSIP", gossip, "kiln-secret:env://KILN_TEST_NOMAD", token).Replace(string(text))
		}
	}
	h.cert = certificate(t)
	return h
}

// Secrets of the host's: they must never be shown.
const (
	gossip = "Zz1-canary-gossip=="
	token  = "canary-0000-1111"
)

func certificate(t *testing.T) string {
	t.Helper()
	a, err := lab.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Issue("build01.example.org") // for a day
	if err != nil {
		t.Fatal(err)
	}
	return string(c.Cert)
}

// run is the Runner of a dialer: it answers as the script does.
func (h *hostState) run(_ context.Context, c run.Command) ([]byte, error) {
	if c.Stdin == nil { // the end of the connection
		return nil, nil
	}
	if h.fails != nil {
		return nil, h.fails
	}
	script, err := io.ReadAll(c.Stdin)
	if err != nil || h.answers != "" {
		return []byte(h.answers), err
	}
	var b strings.Builder
	for line := range strings.Lines(string(script)) {
		words := strings.Fields(line)
		if len(words) == 0 || line != strings.Join(words, " ")+"\n" {
			continue // of a function
		}
		switch words[0] {
		case "mark":
			fmt.Fprintf(&b, "kiln\t%s\n", map[bool]string{true: "yes", false: "no"}[h.kiln])
		case "unit":
			state, ok := h.units[words[1]]
			if !ok {
				state = active
			}
			for i, record := range strings.Split(state, "\n") {
				if i == 0 {
					for _, property := range strings.Fields(record) {
						fmt.Fprintf(&b, "unit\t%s\t%s\n", words[1], property)
					}
					continue
				}
				kind, rest, _ := strings.Cut(record, " ")
				fmt.Fprintf(&b, "%s\t%s\t%s\n", kind, words[1], rest)
			}
		case "file":
			kind, rest, _ := strings.Cut(h.files[words[1]], "\t")
			switch text := h.texts[words[1]]; kind {
			case "":
				fmt.Fprintf(&b, "missing\t%s\n", words[1])
			case "file":
				sum, content := fmt.Sprintf("%x", sha256.Sum256([]byte(text))), ""
				if sum != words[2] {
					content = base64.StdEncoding.EncodeToString([]byte(text))
				}
				fmt.Fprintf(&b, "file\t%s\t%s\t%s\t%s\n", words[1], rest, sum, content)
			default:
				fmt.Fprintf(&b, "%s\t%s\t%s\n", kind, words[1], rest)
			}
		case "certificate":
			fmt.Fprintf(&b, "certificate\t%s\t%s\n", words[1], base64.StdEncoding.EncodeToString([]byte(h.cert)))
		case "name":
			fmt.Fprintf(&b, "name\t%s\t%s\n", words[1], h.names)
		}
	}
	return []byte(b.String() + "end\n"), nil
}

// onDisk is a target whose files are compared: those of its plan.
func onDisk(t *testing.T) verify.Target {
	p := planOf(t, 1)
	target := verify.Target{Plan: p, Versions: versions}
	for _, files := range [][]plan.File{p.Image.Files, p.Host.Files} {
		for _, f := range files {
			target.Files = append(target.Files, verify.File{File: f})
		}
	}
	for _, d := range p.Image.Directories {
		target.Files = append(target.Files, verify.File{File: plan.File{Path: d.Path, Owner: d.Owner, Group: d.Group, Mode: d.Mode}, Dir: true})
	}
	return target
}

func sshVerifier(t *testing.T, h *hostState) *verify.Verifier {
	t.Helper()
	v := verifier(t, goodState(1))
	v.Skip, v.Now, v.Expires = nil, nil, time.Hour
	v.SSH = &remote.Dialer{Runner: h.run}
	v.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("filtered") }
	return v
}

func TestAGoodHostOverSSH(t *testing.T) {
	target := onDisk(t)
	r, err := sshVerifier(t, goodHost(t, target)).Host(t.Context(), target)
	if err != nil || !r.OK || len(r.Notes) > 0 {
		t.Errorf("%v\n%s\n%v", err, found(r), r.Notes)
	}
	for _, c := range []verify.Check{verify.CheckSSH, verify.CheckUnit, verify.CheckFile, verify.CheckCertificate, verify.CheckDNS} {
		if !slices.Contains(r.Checked, c) {
			t.Errorf("%s wasn't checked", c)
		}
	}
}

const (
	nomadHCL, consulHCL, dnsmasq = "/etc/nomad.d/nomad.hcl", "/etc/consul.d/consul.hcl", "/etc/dnsmasq.d/kiln.conf"
	stopped                      = "LoadState=loaded ActiveState=inactive SubState=dead UnitFileState=enabled Type=simple ConditionResult=yes Result=success"
)

// edit changes a file of a host's.
func edit(path, old, with string) func(*hostState) {
	return func(h *hostState) {
		if !strings.Contains(h.texts[path], old) {
			panic(path + " has no " + old)
		}
		h.texts[path] = strings.Replace(h.texts[path], old, with, 1)
	}
}

// unit gives a unit another state.
func unit(name, state string) func(*hostState) { return func(h *hostState) { h.units[name] = state } }

// deviationsOnAHost are what can be wrong with a host, as it shows itself.
var deviationsOnAHost = []struct {
	name    string
	change  func(h *hostState)
	want    string
	details []string
}{
	{"stopped unit", unit("nomad.service", stopped+"\njournal 12:00 Stopped nomad.\njournal 12:01 token=canary-2"),
		"differs unit nomad.service: running | stopped", []string{"12:00 Stopped nomad.", "12:01 token=[redacted]"}},
	{"failed unit", unit("consul.service", "LoadState=loaded ActiveState=failed UnitFileState=enabled Result=exit-code\njournal 12:00 no such key"),
		"differs unit consul.service: running | failed: exit-code", []string{"12:00 no such key"}},
	{"failing unit", unit("consul.service", "LoadState=loaded ActiveState=activating SubState=auto-restart UnitFileState=enabled NRestarts=7"),
		"differs unit consul.service: running | failing and restarted, 7 times so far", nil},
	{"waiting unit", unit("nomad.service", strings.Replace(stopped, "Result=yes", "Result=no", 1)+"\nunmet ConditionPathExists=/etc/kiln/host-ready was not met"),
		"differs unit nomad.service: running | not started: ConditionPathExists=/etc/kiln/host-ready was not met", nil},
	{"not for this machine", unit("systemd-timesyncd.service", strings.Replace(stopped, "Result=yes", "Result=no", 1)+"\nunmet ConditionVirtualization=!container was not met"), "", nil},
	{"has done its work", unit("kiln-resolv.service", strings.Replace(stopped, "simple", "oneshot", 1)), "", nil},
	{"disabled unit", unit("dnsmasq.service", strings.Replace(active, "=enabled", "=disabled", 1)), "differs unit dnsmasq.service: enabled | disabled", nil},
	{"no unit", unit("dnsmasq.service", "LoadState=not-found ActiveState=inactive"), "differs unit dnsmasq.service: loaded | not-found", nil},
	{"edited file", edit(dnsmasq, "cache-size=1000\n", "cache-size=7\n"), "differs file " + dnsmasq + ": the plan's content | another", []string{"-cache-size=1000", "+cache-size=7"}},
	{"edited file with a secret", edit(nomadHCL, "leave_on_interrupt = false", "token2 = \"canary-3\""), "differs file " + nomadHCL + ": the plan's content | another",
		[]string{"-leave_on_interrupt = false", "+[a line of the host's, not shown: this file isn't for everybody]"}},
	{"lines behind a secret", edit(consulHCL, gossip+`"`, gossip+"\"\nleave_on_terminate = true"), "differs file " + consulHCL + ": the plan's content | another",
		[]string{"+[a line of the host's"}},
	{"a reference is left", edit(consulHCL, gossip, "kiln-secret:env://KILN_TEST_GOSSIP"), "differs file " + consulHCL + ": its secrets | it still waits for env://KILN_TEST_GOSSIP", nil},
	{"wrong mode", func(h *hostState) { h.files[nomadHCL] = "file\t644 root root" }, "differs file " + nomadHCL + ": 0600 root:root | 0644 root:root", nil},
	{"wrong owner", func(h *hostState) { h.files["/build/consul"] = "directory\t750 root root" }, "differs file /build/consul: 0750 consul:consul | 0750 root:root", nil},
	{"no file", func(h *hostState) { delete(h.files, dnsmasq) }, "differs file " + dnsmasq + ": a file | nothing", nil},
	{"a link", func(h *hostState) { h.files[dnsmasq] = "link\t/dev/null" }, "differs file " + dnsmasq + ": a file | a link", nil},
	{"no names", func(h *hostState) { h.names = "" }, "differs dns consul.service.consul: the addresses of Consul's servers | no answer", nil},
	{"no certificate", func(h *hostState) { h.cert = "" }, "differs certificate /etc/grid-security/hostcert.pem: a certificate | there is no certificate in it", nil},
}

// TestEachDeviationOnAHost: found, and nothing else; and no secret is shown.
func TestEachDeviationOnAHost(t *testing.T) {
	target := onDisk(t)
	for _, tt := range deviationsOnAHost {
		t.Run(tt.name, func(t *testing.T) {
			h := goodHost(t, target)
			tt.change(h)
			r, err := sshVerifier(t, h).Host(t.Context(), target)
			if got := found(r); err != nil || got != tt.want {
				t.Fatalf("%v\nfound:\n%s\nnot:\n%s", err, got, tt.want)
			}
			var details string
			for _, f := range r.Findings {
				details += strings.Join(f.Details, "\n")
			}
			for _, d := range tt.details {
				if !strings.Contains(details, d) {
					t.Errorf("%q isn't among the details:\n%s", d, details)
				}
			}
			if strings.Contains(fmt.Sprintf("%+v", r), "canary") {
				t.Errorf("a secret is shown: %+v", r)
			}
		})
	}
}

// TestSecretsAreCompared: with the secrets at hand, another one on the host is
// found; the report shows neither.
func TestSecretsAreCompared(t *testing.T) {
	target := onDisk(t)
	h := goodHost(t, target)
	resolved, err := target.Plan.WithSecrets(t.Context(), resolver{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range target.Files {
		for _, f := range resolved.Host.Files {
			if f.Path == target.Files[i].Path {
				target.Files[i].File = f
			}
		}
	}
	if r, err := sshVerifier(t, h).Host(t.Context(), target); err != nil || !r.OK {
		t.Errorf("%v\n%s", err, found(r))
	}
	const path = "/etc/consul.d/consul.hcl"
	h.texts[path] = strings.Replace(h.texts[path], gossip, "another-canary", 1)
	r, err := sshVerifier(t, h).Host(t.Context(), target)
	if want := "differs file " + path + ": the plan's content | another"; err != nil || found(r) != want {
		t.Errorf("%v\n%s", err, found(r))
	}
	if text := fmt.Sprintf("%+v", r); strings.Contains(text, "canary") || !strings.Contains(text, "[secret env://KILN_TEST_GOSSIP]") {
		t.Errorf("the report is %s", text)
	}
}

type resolver struct{}

func (resolver) Resolve(_ context.Context, ref plan.Ref) (plan.Secret, error) {
	return plan.NewSecret(map[plan.Ref]string{"env://KILN_TEST_GOSSIP": gossip, "env://KILN_TEST_NOMAD": token}[ref]), nil
}

// TestExpiringCertificate, on the host's disk.
func TestExpiringCertificate(t *testing.T) {
	target := onDisk(t)
	v := sshVerifier(t, goodHost(t, target))
	v.Expires = 48 * time.Hour
	r, err := v.Host(t.Context(), target)
	if got := found(r); err != nil || !strings.HasPrefix(got, "differs certificate /etc/grid-security/hostcert.pem: valid for 2 days more | valid until ") || len(r.Findings) != 1 {
		t.Errorf("%v\n%s", err, got)
	}
	v.Now = func() time.Time { return time.Now().Add(72 * time.Hour) }
	if r, err := v.Host(t.Context(), target); err != nil || !strings.Contains(found(r), "a certificate that is valid | expired since ") {
		t.Errorf("%v\n%s", err, found(r))
	}
}

// TestAHostOfPuppets has the agents, and nothing of Kiln's.
func TestAHostOfPuppets(t *testing.T) {
	target := onDisk(t)
	h := goodHost(t, target)
	h.kiln, h.texts = false, map[string]string{}
	for _, u := range target.Plan.Image.Units {
		if strings.HasPrefix(u.Name, "kiln-") {
			h.units[u.Name] = "LoadState=not-found ActiveState=inactive"
		}
	}
	h.units["kiln-grid.path"] = "LoadState=not-found ActiveState=inactive"
	r, err := sshVerifier(t, h).Host(t.Context(), target)
	if err != nil || !r.OK || len(r.Notes) != 1 {
		t.Errorf("%v\n%s\n%v", err, found(r), r.Notes)
	}
}

// TestAHostThatCannotBeAsked isn't taken for a good one.
func TestAHostThatCannotBeAsked(t *testing.T) {
	target := onDisk(t)
	for _, tt := range []struct {
		name string
		h    hostState
		want string
	}{
		{"unreachable", hostState{fails: errors.New("no route to host")}, "no route to host"},
		{"broken off", hostState{answers: "kiln\tyes\n"}, "its answer breaks off after 9 bytes"},
		{"a talkative shell", hostState{answers: "Welcome!\nend\n"}, `it answers "Welcome!\n"`},
		{"other programs", hostState{answers: "file\t/etc/x\t?\t?\t?\nend\n"}, "what it says of /etc/x can't be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := sshVerifier(t, &tt.h).Host(t.Context(), target)
			if got := found(r); err != nil || r.OK || len(r.Findings) != 1 || !strings.HasPrefix(got, "unknown ssh : a look at the host | ") || !strings.Contains(got, tt.want) {
				t.Errorf("%v\n%s", err, got)
			}
		})
	}
}

// TestLook has a real shell look at real files.
func TestLook(t *testing.T) {
	dir := t.TempDir()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	var files []verify.File
	for name, text := range map[string]string{"same": "text\n", "it's $HOME": "a\x00b", "edited": "old\n", "gone": "x", "mode": "m"} {
		f := plan.File{Path: filepath.Join(dir, name), Owner: me.Username, Group: group.Name, Mode: 0o640, Content: plan.Literal([]byte(text))}
		if err := os.WriteFile(f.Path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		files = append(files, verify.File{File: f})
	}
	slices.SortFunc(files, func(a, b verify.File) int { return strings.Compare(a.Path, b.Path) })
	link := plan.File{Path: filepath.Join(dir, "link"), Target: "same"}
	files = append(files, verify.File{File: link}, verify.File{File: plan.File{Path: dir, Owner: me.Username, Group: group.Name, Mode: 0o700}, Dir: true})
	if err := errors.Join(os.Symlink("same", link.Path), os.Chmod(dir, 0o700), os.Remove(filepath.Join(dir, "gone")),
		os.Chmod(filepath.Join(dir, "mode"), 0o600), os.WriteFile(filepath.Join(dir, "edited"), []byte("new\n"), 0o640)); err != nil {
		t.Fatal(err)
	}
	v := verifier(t, goodState(1))
	v.Skip = append(v.Skip, verify.CheckUnit, verify.CheckDNS)
	v.SSH = &remote.Dialer{Runner: func(ctx context.Context, c run.Command) ([]byte, error) {
		if c.Stdin == nil {
			return nil, nil
		}
		cmd := exec.CommandContext(ctx, "sh", "-s")
		script, err := io.ReadAll(c.Stdin)
		// That Kiln set the host up isn't this machine's.
		cmd.Stdin = strings.NewReader(strings.Replace(string(script), "/etc/kiln/host.manifest", dir, 1))
		out, runErr := cmd.Output()
		return out, errors.Join(err, runErr)
	}}
	r, err := v.Host(t.Context(), verify.Target{Plan: planOf(t, 1), Versions: versions, Files: files})
	owner := me.Username + ":" + group.Name
	want := "differs file " + dir + "/edited: the plan's content | another\ndiffers file " + dir + "/gone: a file | nothing\n" +
		"differs file " + dir + "/mode: 0640 " + owner + " | 0600 " + owner
	if got := found(r); err != nil || got != want {
		t.Errorf("%v\nfound:\n%s\nnot:\n%s", err, got, want)
	}
}
