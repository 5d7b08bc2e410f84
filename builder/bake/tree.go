package bake

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

//go:embed files
var ownFiles embed.FS

// machinery is what every golden image has besides its plan: where cloud-init is
// to look for host data.
var machinery = []struct {
	path, file string
	mode       fs.FileMode
}{
	{"/etc/cloud/cloud.cfg.d/90-kiln.cfg", "90-kiln.cfg", 0o644},
	{"/etc/default/locale", "locale", 0o644},
	{"/etc/systemd/system/kiln-seed.service", "kiln-seed.service", 0o644},
	{"/usr/lib/kiln/seed", "seed", 0o755},
}

const (
	seedUnit    = "kiln-seed.service"
	networkUnit = "systemd-networkd.service"
)

// layer is all that is laid over the base tree.
type layer struct {
	files       []plan.File
	directories []plan.Directory
	groups      []plan.Group
	users       []plan.User
	enabled     []plan.Unit
	script      string          // makes the accounts, in the tree
	units       string          // tells systemd of the units, in the tree
	seal        string          // on the building machine
	keep        map[string]bool // paths that sealing leaves alone
}

// layer of the image, with the sources that its hosts' apt gets.
func (b *builder) layer(sources []source) (*layer, error) {
	files, err := b.layerFiles(sources)
	if err != nil {
		return nil, err
	}
	seal, err := render.SealScript(&b.image)
	if err != nil {
		return nil, err
	}
	l := &layer{files: files, directories: b.image.Directories, groups: b.image.Groups, users: b.image.Users, script: AccountsScript(&b.image.Layer), seal: seal, keep: map[string]bool{}}
	for i := range files {
		l.keep[files[i].Path] = true
	}
	for i := range b.image.Users {
		if u := &b.image.Users[i]; len(u.SSHKeys) > 0 {
			l.keep[path.Join(render.HomeOf(u), ".ssh/authorized_keys")] = true
		}
	}
	units := b.image.Units
	if b.withCloudInit() {
		units = append([]plan.Unit{{Name: seedUnit, State: plan.UnitEnabled}}, units...)
	}
	if slices.Contains(b.definition.Packages, "netplan.io") {
		// Debian has it disabled, and what netplan writes at the first boot is only
		// looked at by the one that runs.
		units = append([]plan.Unit{{Name: networkUnit, State: plan.UnitEnabled}}, units...)
	}
	l.enabled, l.units = units, UnitsScript(units)
	return l, nil
}

func (b *builder) withCloudInit() bool { return slices.Contains(b.definition.Packages, "cloud-init") }

// layerFiles are the plan's, and those that each golden image has, unless the plan
// has one of its own there; by path.
func (b *builder) layerFiles(sources []source) ([]plan.File, error) {
	files, err := render.ImageFiles(&b.image)
	if err != nil {
		return nil, err
	}
	if err := disableLocal(files, b.image.AptSources); err != nil {
		return nil, err
	}
	add := func(path string, mode fs.FileMode, content []byte) {
		if !slices.ContainsFunc(files, func(f plan.File) bool { return f.Path == path }) {
			files = append(files, plan.File{Path: path, Owner: "root", Group: "root", Mode: mode, Content: plan.Literal(content)})
		}
	}
	if b.withCloudInit() {
		for _, m := range machinery {
			content, err := ownFiles.ReadFile("files/" + m.file)
			if err != nil {
				return nil, err
			}
			add(m.path, m.mode, content)
		}
	}
	var stanzas []string
	for i := range sources {
		if s := &sources[i]; s.plan == nil && !s.isLocal() {
			stanzas = append(stanzas, s.deb822(s.keyring))
			if s.keyring == siteKeyring(&b.definition, s.key) {
				add(s.keyring, 0o644, s.key)
			}
		}
	}
	if len(stanzas) > 0 {
		add("/etc/apt/sources.list.d/"+b.definition.Release.ID+".sources", 0o644, []byte(strings.Join(stanzas, "\n")))
	}
	slices.SortStableFunc(files, func(x, y plan.File) int { return strings.Compare(x.Path, y.Path) })
	return files, nil
}

// inside runs a script in the tree, by the tree's own programs.
func (b *builder) inside(ctx context.Context, root, script string) error {
	if script == "" {
		return nil
	}
	return b.run.Run(ctx, isolated(run.Command{
		Name: "chroot", Args: []string{root, "/bin/sh", "-eu", "-s"}, Stdin: strings.NewReader(script),
		Env: []string{
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_OFFLINE=1",
			"SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.epoch, 10),
		},
		Without: []string{"LANG", "LANGUAGE", "TMPDIR"},
	}))
}

// sourcesAway removes the sources that the tree was made from, which are the
// building machine's: the layer has the host's.
func (b *builder) sourcesAway(root string) error {
	dir := filepath.Join(root, "etc/apt/sources.list.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(root, "etc/apt/sources.list")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// AccountsScript is a script that makes the groups and users, as far as packages
// haven't.
func AccountsScript(l *plan.Layer) string {
	var b strings.Builder
	for i := range l.Groups {
		b.WriteString(groupScript(&l.Groups[i]))
	}
	for i := range l.Users {
		b.WriteString(userScript(&l.Users[i], l.Groups))
	}
	return b.String()
}

func groupScript(g *plan.Group) string {
	var b strings.Builder
	b.WriteString("getent group " + g.Name + " >/dev/null || groupadd")
	if g.System {
		b.WriteString(" --system")
	}
	if g.GID != nil {
		fmt.Fprintf(&b, " --gid %d", *g.GID)
	}
	b.WriteString(" " + g.Name + "\n")
	return b.String()
}

func userScript(u *plan.User, groups []plan.Group) string {
	var b strings.Builder
	b.WriteString("getent passwd " + u.Name + " >/dev/null || useradd")
	switch {
	case u.System && len(u.SSHKeys) == 0:
		b.WriteString(" --system --no-create-home")
	case u.System:
		b.WriteString(" --system --create-home")
	default:
		b.WriteString(" --create-home")
	}
	if u.UID != nil {
		fmt.Fprintf(&b, " --uid %d", *u.UID)
	}
	switch {
	case u.Group != "":
		b.WriteString(" --gid " + u.Group)
	case slices.ContainsFunc(groups, func(g plan.Group) bool { return g.Name == u.Name }):
		b.WriteString(" --gid " + u.Name)
	default:
		b.WriteString(" --user-group")
	}
	b.WriteString(" --home-dir " + quote.Word(render.HomeOf(u)) + " --shell " + quote.Word(render.ShellOf(u)) + " --comment " + quote.Word(u.Comment) + " " + u.Name + "\n")
	if len(u.Groups) > 0 {
		b.WriteString("usermod --append --groups " + strings.Join(u.Groups, ",") + " " + u.Name + "\n")
	}
	return b.String()
}

// UnitsScript is a script that tells systemd of the units, in their order.
func UnitsScript(units []plan.Unit) string {
	verbs := map[plan.UnitState]string{plan.UnitEnabled: "enable", plan.UnitDisabled: "disable", plan.UnitMasked: "mask"}
	var b strings.Builder
	for _, u := range units {
		b.WriteString("systemctl --quiet " + verbs[u.State] + " -- " + quote.Word(u.Name) + "\n")
	}
	return b.String()
}

// explainUnits finds the unit that systemctl didn't know.
func (b *builder) explainUnits(err error) error {
	for _, u := range b.image.Units {
		if strings.Contains(err.Error(), "unit "+u.Name+" does not exist") || strings.Contains(err.Error(), "Unit "+u.Name+" does not exist") ||
			strings.Contains(err.Error(), "unit file "+u.Name+" does not exist") || strings.Contains(err.Error(), "Unit file "+u.Name+" does not exist") {
			return fmt.Errorf("%s: the unit %s isn't there: no package and no file of the profile brings it: does a package have another name, or install nothing?", u.Origin, u.Name)
		}
	}
	return fmt.Errorf("enabling the units: %w", err)
}

// nothingInstalled finds a package of the plan that has brought nothing: neither
// files nor other packages.
func (b *builder) nothingInstalled(root string) error {
	installed, err := readStatus(root)
	if err != nil {
		return err
	}
	for _, p := range b.image.Packages {
		i := slices.IndexFunc(installed, func(s images.Installed) bool { return s.Name == p.Name })
		if i < 0 {
			continue // a virtual package: another provides it
		}
		if installed[i].Depends {
			continue
		}
		brings := false
		lists, _ := filepath.Glob(filepath.Join(root, "var/lib/dpkg/info", p.Name+".list"))
		more, _ := filepath.Glob(filepath.Join(root, "var/lib/dpkg/info", p.Name+":*.list"))
		for _, l := range append(lists, more...) {
			text, err := os.ReadFile(l)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				name := strings.TrimSpace(line)
				if strings.HasPrefix(name, "/usr/share/doc/") || strings.HasPrefix(name, "/usr/share/lintian/") {
					continue
				}
				if info, err := os.Lstat(filepath.Join(root, name)); err == nil && !info.IsDir() {
					brings = true
				}
			}
		}
		if !brings {
			return fmt.Errorf("%s: the package %s %s installs nothing, neither files nor other packages: name the one that has the programs, or remove it from the profile", p.Origin, p.Name, installed[i].Version)
		}
	}
	return nil
}

// inTree is the real place of an absolute path of the tree's: symbolic links on
// the way lead through the tree, never out of it. The last part isn't followed.
func inTree(root, name string) (string, error) {
	dir, last := path.Split(path.Clean(name))
	at := "/"
	rest := strings.Split(strings.Trim(dir, "/"), "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := os.Lstat(root + next)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			at = next // one that isn't there yet will be a directory
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("%s: too many symbolic links on the way", name)
		}
		target, err := os.Readlink(root + next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return path.Join(root+at, last), nil
}
