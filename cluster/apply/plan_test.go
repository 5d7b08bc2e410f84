package apply

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

const canary = "canary-0123456789"

// testWant is a host with a file of each kind.
func testWant(t *testing.T) *Want {
	t.Helper()
	var token plan.Content
	token.AppendText([]byte("name = web\ntoken = "))
	token.AppendSecret("env://TOKEN", quote.FormatHCL, plan.Origin{})
	token.AppendText([]byte("\n"))
	p := &plan.Plan{
		Image: plan.Image{
			Release: plan.Release{ID: "debian", Codename: "bookworm"}, Packages: []plan.Package{{Name: "nginx"}, {Name: "acl:amd64"}},
			KernelArguments: []plan.Text{{Value: "quiet"}},
			Layer: plan.Layer{
				Units: []plan.Unit{{Name: hostUnit, State: plan.UnitEnabled}, {Name: "web.service", State: plan.UnitEnabled}, {Name: "old.service", State: plan.UnitMasked}, {Name: "slow.service", State: plan.UnitDisabled}},
				Users: []plan.User{{Name: "web", System: true, Group: "web"}}, Groups: []plan.Group{{Name: "web", System: true}},
			},
		},
		Host: plan.Host{
			Name: "build01.example.org", Hostname: "build01",
			Disks: []plan.DataDisk{{Mount: "/build", Filesystem: "ext4"}},
			Layer: plan.Layer{
				Files: []plan.File{
					{Path: "/etc/web/token", Owner: "web", Group: "web", Mode: 0o640, Content: token},
					{Path: "/etc/web/current", Owner: "root", Group: "root", Target: "a"},
					{Path: "/etc/default/grub.d/x.cfg", Owner: "root", Group: "root", Mode: 0o644, Content: plan.Literal([]byte("x"))},
				},
				Directories: []plan.Directory{{Path: "/srv/web", Owner: "web", Group: "web", Mode: 0o750}, {Path: "/build/x", Owner: "root", Group: "root", Mode: 0o755}},
				Users:       []plan.User{{Name: "alice", Groups: []string{"sudo"}, SSHKeys: []string{"ssh-ed25519 AAAA1 alice", "ssh-ed25519 AAAA2 new"}}},
			},
		},
	}
	p, err := p.WithSecrets(t.Context(), resolver{})
	if err != nil {
		t.Fatal(err)
	}
	layer, err := render.OnHost(p)
	if err != nil {
		t.Fatal(err)
	}
	return &Want{Plan: p, Layer: layer}
}

// as is a host that is what w says, in every respect.
func as(t *testing.T, w *Want) *State {
	t.Helper()
	s := &State{
		Hostname: "build01", Systemd: true, Release: plan.Release{ID: "debian", Codename: "bookworm"}, kernel: []string{"quiet"},
		files: map[string]*entry{}, large: map[string]bool{}, packages: map[string]bool{"nginx": true, "acl": true},
		users:  map[string]*account{"root": {}, "web": {home: "/nonexistent", shell: "/usr/sbin/nologin"}, "alice": {home: "/home/alice", shell: "/bin/bash", groups: []string{"alice", "sudo"}}},
		groups: map[string]int{"root": 0, "web": 9, "sudo": 27, "alice": 1000},
		units:  map[string]string{hostUnit: "enabled", "web.service": "enabled", "old.service": "masked", "slow.service": "disabled"},
	}
	for _, f := range w.Layer.Files {
		b, err := f.Content.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		s.files[f.Path] = &entry{kind: tar.TypeReg, mode: f.Mode, owner: f.Owner, group: f.Group, content: b}
		if f.Target != "" {
			s.files[f.Path] = &entry{kind: tar.TypeSymlink, mode: 0o777, owner: f.Owner, group: f.Group, target: f.Target}
		}
	}
	for _, d := range w.Layer.Directories {
		s.files[d.Path] = &entry{kind: tar.TypeDir, mode: d.Mode, owner: d.Owner, group: d.Group}
	}
	s.files["/home/alice/.ssh/authorized_keys"] = &entry{kind: tar.TypeReg, mode: 0o600, owner: "alice", group: "alice", content: []byte("ssh-ed25519 AAAA1 alice\nssh-ed25519 AAAA2 new\n")}
	s.files[acceptedPath] = s.files[manifestPath]
	return s
}

func text(e string) *entry {
	return &entry{kind: tar.TypeReg, mode: 0o644, owner: "root", group: "root", content: []byte(e)}
}

// summary is a plan's result, a line for each thing.
func summary(c *Changes) string {
	var b strings.Builder
	for i := range c.List {
		fmt.Fprintf(&b, "%s %s: %s\n", c.List[i].Kind, c.List[i].Name, c.List[i].What)
	}
	for _, u := range c.Units {
		b.WriteString("then " + u + "\n")
	}
	for _, n := range c.Notes {
		b.WriteString("note " + n + "\n")
	}
	return b.String()
}

// Each single deviation is found, with what has to follow, and nothing else is.
func TestPlanFindsEachDeviation(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*State)
		want   string
	}{
		"nothing":        {func(*State) {}, ""},
		"the whole name": {func(s *State) { s.Hostname = "build01.example.org" }, ""},
		"token":          {func(s *State) { s.files["/etc/web/token"].content = []byte("old") }, "file /etc/web/token: changed\nthen restart web.service\n"},
		"token's mode":   {func(s *State) { s.files["/etc/web/token"].mode = 0o644 }, "file /etc/web/token: mode 0644 → 0640\nthen restart web.service\n"},
		"token's owner":  {func(s *State) { s.files["/etc/web/token"].owner = "1234" }, "file /etc/web/token: owner 1234:web → web:web\nthen restart web.service\n"},
		"no token":       {func(s *State) { delete(s.files, "/etc/web/token") }, "file /etc/web/token: new\nthen restart web.service\n"},
		"a link to it":   {func(s *State) { s.files["/etc/web/token"] = &entry{kind: tar.TypeSymlink, target: "x"} }, "file /etc/web/token: takes the place of a link to x\nthen restart web.service\n"},
		"a huge one":     {func(s *State) { delete(s.files, "/etc/web/token"); s.large["/etc/web/token"] = true }, "file /etc/web/token: changed; what is there is too large to be shown\nthen restart web.service\n"},
		"link":           {func(s *State) { s.files["/etc/web/current"].target = "b" }, "link /etc/web/current: b → a\nthen restart web.service\n"},
		"no link":        {func(s *State) { s.files["/etc/web/current"] = text("x") }, "link /etc/web/current: takes the place of a file, and leads to a\nthen restart web.service\n"},
		"directory":      {func(s *State) { s.files["/srv/web"].mode = 0o755 }, "directory /srv/web: mode 0755 → 0750\n"},
		"no directory":   {func(s *State) { delete(s.files, "/srv/web") }, "directory /srv/web: new\n"},
		"on a data disk": {func(s *State) { delete(s.files, "/build/x") }, "directory /build/x: new, made by kiln-host.service\nthen restart kiln-host.service\n"},
		"no user":        {func(s *State) { delete(s.users, "web"); delete(s.groups, "web") }, "group web: new\nuser web: new\n"},
		"shell":          {func(s *State) { s.users["alice"].shell = "/bin/sh" }, "user alice: shell /bin/sh → /bin/bash\n"},
		"home":           {func(s *State) { s.users["alice"].home = "/x" }, "note the user alice has the home /x, not /home/alice: " + byHand + "\n"},
		"groups":         {func(s *State) { s.users["alice"].groups = nil }, "user alice: joins sudo\n"},
		"a key less": {func(s *State) {
			s.files["/home/alice/.ssh/authorized_keys"] = text("# x\nssh-ed25519 AAAA1 other comment")
		}, "keys /home/alice/.ssh/authorized_keys: 1 more\n"},
		"a key more": {func(s *State) {
			e := s.files["/home/alice/.ssh/authorized_keys"]
			e.content = append(e.content, "no-pty ssh-rsa AAAA3 bob b\n"...)
		}, "note the user alice also lets in a key that isn't in the plan, bob b: remove it from /home/alice/.ssh/authorized_keys if nobody needs it\n"},
		"unit":            {func(s *State) { s.units["web.service"] = "disabled" }, "unit web.service: disabled → enabled\nthen start web.service\n"},
		"masked unit":     {func(s *State) { s.units["web.service"] = "masked" }, "unit web.service: masked → enabled\nthen start web.service\n"},
		"static unit":     {func(s *State) { s.units["web.service"] = "static" }, ""},
		"missing unit":    {func(s *State) { s.units["web.service"] = "not-found" }, "note web.service isn't there: the package that has it isn't installed\n"},
		"unmasked":        {func(s *State) { s.units["old.service"] = "enabled" }, "unit old.service: enabled → masked\n"},
		"enabled":         {func(s *State) { s.units["slow.service"] = "enabled" }, "unit slow.service: enabled → disabled\n"},
		"package":         {func(s *State) { delete(s.packages, "acl") }, "note the package acl:amd64 isn't installed: it needs a new image and a reinstallation, or apt by hand\n"},
		"kernel argument": {func(s *State) { s.kernel = nil }, "note the kernel was started without quiet: it needs a new image and a reinstallation, or update-grub by hand and a boot\n"},
		"release":         {func(s *State) { s.Release.Codename = "trixie" }, "note the host runs debian trixie, and its image is to be debian bookworm: a reinstallation brings that\n"},
		"boot file":       {func(s *State) { delete(s.files, "/etc/default/grub.d/x.cfg") }, "note /etc/default/grub.d/x.cfg isn't changed in place: a new image and a reinstallation bring it, or by hand with update-grub and a boot\n"},
		"manifest":        {func(s *State) { s.files[manifestPath] = text("") }, "file /etc/kiln/host.manifest: changed, mode 0644 → 0600\nthen restart kiln-host.service\n"},
		"leftover": {func(s *State) {
			s.files["/etc/web/old"] = text("old")
			s.files[acceptedPath] = text(stateOf(text("old")) + "  0644 root root /etc/web/old\n" + stateOf(text("x")) + "  0644 root root /etc/web/token\n")
		}, "file /etc/web/old: no longer delivered: removed\nthen restart web.service\n"},
		"changed leftover": {func(s *State) {
			s.files["/etc/web/old"] = text("by hand")
			s.files[acceptedPath] = text(stateOf(text("old")) + "  0644 root root /etc/web/old\n")
		}, "note /etc/web/old was delivered once, and no longer; it was changed there, so it stays: remove it if nobody needs it\n"},
		"left to do": {func(s *State) { s.Pending = []string{"restart web.service", "stale /etc/web/.token.kiln-new"} }, "then restart web.service\n"},
		"odd record": {func(s *State) { s.Pending = []string{"dance"} }, "note /var/lib/kiln/apply.pending on it has a line that isn't understood, which stays out: \"dance\"\n"},
		"busy":       {func(s *State) { s.Busy = "bob at desk" }, "note somebody is changing this host right now: bob at desk\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := testWant(t)
			s := as(t, w)
			c.change(s)
			got, err := Plan(w, s, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if summary(got) != c.want {
				t.Errorf("got\n%swant\n%s", summary(got), c.want)
			}
			if doesnt := c.want == "" || !strings.Contains("\n"+c.want, "\nthen ") && strings.HasPrefix(c.want, "note "); got.Nothing() != doesnt {
				t.Errorf("is it nothing? %v", got.Nothing())
			}
			if b, err := json.Marshal(got); err != nil || strings.Contains(string(b), canary) {
				t.Errorf("the secret shows, %v: %s", err, b)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Want, *State)
		want   string
	}{
		"another machine": {func(_ *Want, s *State) { s.Hostname = "build02" }, "the machine at build01.example.org calls itself build02: is that the one? --other-name"},
		"other MACs": {func(w *Want, s *State) {
			w.Plan.Host.Network.Interfaces = []plan.Interface{{Name: "lan", MAC: "52:54:00:00:00:01"}}
			s.MACs = []string{"52:54:00:00:00:02"}
		}, "has none of the MACs that the inventory has for it (it has 52:54:00:00:00:02)"},
		"no systemd":     {func(_ *Want, s *State) { s.Systemd = false }, "systemd isn't its init"},
		"unknown owner":  {func(w *Want, _ *State) { w.Layer.Files[0].Owner = "nobody1" }, "is to belong to the user nobody1, who isn't on the host"},
		"unknown group":  {func(w *Want, _ *State) { w.Layer.Directories[0].Group = "nobody1" }, "is to belong to the group nobody1, which isn't on the host"},
		"a folder there": {func(_ *Want, s *State) { s.files["/etc/web/token"].kind = tar.TypeDir }, "/etc/web/token is a directory there, and is to be a file"},
		"a file there":   {func(_ *Want, s *State) { s.files["/srv/web"] = text("x") }, "/srv/web is no directory there"},
		"a lost group":   {func(_ *Want, s *State) { delete(s.groups, "sudo") }, "the user alice is to be in the group sudo, which isn't on the host"},
	} {
		t.Run(name, func(t *testing.T) {
			w := testWant(t)
			s := as(t, w)
			c.change(w, s)
			if got, err := Plan(w, s, Options{}); err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v", got, err)
			}
			if strings.HasPrefix(name, "another") || strings.HasPrefix(name, "other") {
				if _, err := Plan(w, s, Options{OtherName: true}); err != nil {
					t.Errorf("even with --other-name: %v", err)
				}
			}
		})
	}
	w := testWant(t)
	w.Plan.Host.Files[0].Content.AppendSecret("env://X", quote.FormatRaw, plan.Origin{})
	if _, err := Plan(w, as(t, w), Options{}); err == nil || !strings.Contains(err.Error(), "the secret env://X isn't resolved") {
		t.Errorf("got %v", err)
	}
}

func TestPlanOfTheNetwork(t *testing.T) {
	w := testWant(t)
	w.Network = []byte("version: 2\nethernets:\n  lan:\n    addresses: [192.0.2.2/24]\n")
	s := as(t, w)
	see := func(o Options, want string) *Changes {
		t.Helper()
		c, err := Plan(w, s, o)
		if err != nil {
			t.Fatal(err)
		}
		if summary(c) != want {
			t.Errorf("got\n%swant\n%s", summary(c), want)
		}
		return c
	}
	see(Options{}, "note its network isn't compared: there is no /etc/netplan/50-cloud-init.yaml, which golden images have\n")
	s.files[netplanPath] = text("# cloud-init\nnetwork: {ethernets: {lan: {addresses: [192.0.2.2/24]}}, version: 2}\n")
	see(Options{}, "")
	s.files[netplanPath] = text("network:\n  ethernets: {lan: {addresses: [192.0.2.1/24]}}\n  version: 2\n")
	c := see(Options{}, "network /etc/netplan/50-cloud-init.yaml: changed\nnote "+networkNote+"\n")
	if same, err := sameNetwork(c.List[0].content, w.Network); err != nil || !same {
		t.Errorf("what is written isn't what is wanted: %v\n%s", err, c.List[0].content)
	}
	see(Options{Network: true}, "network /etc/netplan/50-cloud-init.yaml: changed\nthen network\n")
	// One that was written can be had at once later, too.
	is := s.files[netplanPath]
	s.files[netplanPath] = &entry{kind: tar.TypeReg, content: c.List[0].content}
	see(Options{Network: true}, "")
	s.Waits = true
	if c := see(Options{}, "note "+networkNote+"\n"); !c.Nothing() {
		t.Errorf("without --network there is something to do: %+v", c)
	}
	see(Options{Network: true}, "then network\n")
	s.files[netplanPath], s.Waits = is, false
	s.files[netplanPath] = text("{")
	if _, err := Plan(w, s, Options{}); err == nil {
		t.Error("a broken file is taken")
	}
}

// A file that is to be left alone is, whatever it is.
func TestPlanLeavesFiles(t *testing.T) {
	w := testWant(t)
	s := as(t, w)
	s.files["/etc/web/token"].content = []byte("mine")
	if c, err := Plan(w, s, Options{}); err != nil || c.Nothing() {
		t.Errorf("got %v, %v", c, err)
	}
	w.Leave = map[string]bool{"/etc/web/token": true}
	if c, err := Plan(w, s, Options{}); err != nil || !c.Nothing() || len(c.Notes) > 0 {
		t.Errorf("got %v, %v", c, err)
	}
}

// A unit that isn't restarted by itself is where that is asked for.
func TestPlanRestarts(t *testing.T) {
	w := testWant(t)
	s := as(t, w)
	c, err := Plan(w, s, Options{Restart: []string{"docker.service"}})
	if err != nil || !c.Nothing() || len(c.Notes) != 1 {
		t.Errorf("got %v, %v", c, err)
	}
	s.files["/srv/web"].mode = 0
	c, err = Plan(w, s, Options{Restart: []string{"docker.service"}})
	if err != nil || strings.Join(c.Units, ",") != "start docker.service" || !c.Restarts() {
		t.Errorf("got %v, %v", c, err)
	}
}

func TestAccessControlLists(t *testing.T) {
	e := &entry{kind: tar.TypeReg, mode: 0o660}
	e.setACL("user::rw-\nuser:daemon:rw-\t#effective:r--\ngroup::r--\nmask::rw-\nother::---\n")
	if e.mode != fs.FileMode(0o640) || e.acl != "user::rw-,user:daemon:rw-,group::r--,mask::rw-,other::---" {
		t.Errorf("got %v, %s", e.mode, e.acl)
	}
	w := testWant(t)
	s := as(t, w)
	token := s.files["/etc/web/token"]
	token.mode = 0o660
	token.setACL("user::rw-,user:daemon:r--,group::r--,mask::rw-,other::---")
	if c, err := Plan(w, s, Options{}); err != nil || !c.Nothing() {
		t.Errorf("a list is taken for another mode: %v, %v", c, err)
	}
	token.setACL("user::rw-,user:daemon:r--,group::rwx,mask::rw-,other::--x")
	c, err := Plan(w, s, Options{})
	if err != nil || !strings.Contains(c.List[0].script, "u::rw-,g::r--,o::---") {
		t.Errorf("got %+v, %v", c, err)
	}
}

// However it's printed, a secret shows nowhere.
func TestNothingShowsASecret(t *testing.T) {
	w := testWant(t)
	s := as(t, w)
	s.files["/etc/web/token"].content = []byte("old " + canary)
	c, err := Plan(w, s, Options{})
	if err != nil || len(c.List) != 1 || !strings.Contains(string(c.List[0].content), canary) {
		t.Fatalf("got %v, %v", c, err)
	}
	numbers := strings.Trim(fmt.Sprint([]byte(canary)), "[]")
	for _, v := range []any{s, *s, c, *c, c.List, c.List[0], &c.List[0], w, *w} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			text := fmt.Sprintf(verb, v)
			for _, form := range []string{canary, numbers, fmt.Sprintf("%x", canary), fmt.Sprintf("%#v", []byte(canary))} {
				if strings.Contains(text, form) {
					t.Errorf("%s of a %T shows it", verb, v)
				}
			}
		}
	}
}

type resolver struct{}
