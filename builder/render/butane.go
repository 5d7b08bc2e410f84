package render

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

// Variant is the operating system that a Butane or Ignition config is for.
type Variant string

// The variants. Both come out as Ignition 3.3.0, which every Ignition since
// 2.11 reads.
const (
	Flatcar Variant = "flatcar" // the default: systemd-networkd sets the network up
	FCOS    Variant = "fcos"    // Fedora CoreOS: NetworkManager does
)

// ParseVariant reads a variant as the command line spells it; an empty one is
// the default.
func ParseVariant(s string) (Variant, error) {
	switch Variant(s) {
	case "", Flatcar:
		return Flatcar, nil
	case FCOS:
		return FCOS, nil
	}
	return "", fmt.Errorf("no Butane variant is called %q: use flatcar or fcos", s)
}

// version is the Butane version that gives Ignition 3.3.0.
func (v Variant) version() string {
	if v == FCOS {
		return "1.4.0"
	}
	return "1.0.0"
}

// Butane is the plan as a Butane config, which people can read and change
// before butane(1) turns it into an Ignition config. For a golden image it has
// the Host half, for a stock one both halves.
//
// What Ignition can't say is an error, never left out: for a stock image that
// is each package and each apt source.
func Butane(p *plan.Plan, o Options) ([]byte, error) {
	variant, err := ParseVariant(string(o.Variant))
	if err != nil {
		return nil, err
	}
	l, err := ignitionLayer(p, o.Target)
	if err != nil {
		return nil, err
	}
	network, err := ignitionNetwork(&p.Host.Network, variant)
	if err != nil {
		return nil, err
	}
	l.Files = addMissing(l.Files, append(network, hostnameFile(&p.Host)))
	if err := checkIgnition(p, &l, o, variant); err != nil {
		return nil, err
	}
	doc := mapping("variant", string(variant), "version", variant.version())
	if o.Target.hasImage() {
		add(doc, "kernel_arguments", kernelArgumentsNode(p.Image.KernelArguments))
	}
	add(doc, "passwd", passwdNode(ignitionAccounts(p, &l, o.Target)))
	storage, err := storageNode(&l, p.Host.Disks)
	if err != nil {
		return nil, err
	}
	add(doc, "storage", storage)
	add(doc, "systemd", systemdNode(l.Units))
	header := fmt.Sprintf("# Butane config of the host %q (profile %q), for a %s image. Made by kiln: change the\n"+
		"# profile, not this file.\n", p.Host.Name, p.Image.Profile, o.Target)
	return encodeYAML(header, doc)
}

// ignitionLayer is what a target gets of both halves.
func ignitionLayer(p *plan.Plan, target Target) (plan.Layer, error) {
	files, err := hostFiles(p)
	if err != nil {
		return plan.Layer{}, err
	}
	l := p.Host.Layer
	l.Files = files
	if target.hasImage() {
		image := p.Image.Layer
		image.Files = append(slices.Clone(image.Files), sudoFiles(image.Users)...)
		return mergeLayers(&l, &image), nil
	}
	// The image has these groups already, and Ignition's groupadd fails on one
	// that is there.
	l.Groups = slices.DeleteFunc(slices.Clone(l.Groups), func(g plan.Group) bool {
		return slices.ContainsFunc(p.Image.Groups, func(have plan.Group) bool { return have.Name == g.Name })
	})
	return l, nil
}

// mergeLayers is both layers as one; the host's word counts where both name a
// thing.
func mergeLayers(host, image *plan.Layer) plan.Layer {
	return plan.Layer{
		Groups:      mergeNamed(image.Groups, host.Groups, func(g plan.Group) string { return g.Name }),
		Users:       mergeNamed(image.Users, host.Users, func(u plan.User) string { return u.Name }),
		Units:       mergeNamed(image.Units, host.Units, func(u plan.Unit) string { return u.Name }),
		Files:       mergeFiles(image.Files, host.Files),
		Directories: mergeDirectories(image.Directories, host.Directories),
	}
}

// addMissing is files and those of more whose paths they don't have, sorted by
// path.
func addMissing(files, more []plan.File) []plan.File {
	have := make(map[string]bool, len(files))
	for i := range files {
		have[files[i].Path] = true
	}
	all := slices.Clone(files)
	for _, f := range more {
		if !have[f.Path] {
			have[f.Path] = true
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b plan.File) int { return strings.Compare(a.Path, b.Path) })
	return all
}

// hostnameFile names the host: Ignition has no other way to.
func hostnameFile(h *plan.Host) plan.File {
	f := rootFile("/etc/hostname", 0o644, []byte(h.Hostname+"\n"))
	f.Origin = h.Origin
	return f
}

// checkIgnition finds everything that an Ignition config can't say, or that
// the variant's first boot would fail on.
func checkIgnition(p *plan.Plan, l *plan.Layer, o Options, variant Variant) error {
	var problems problem.List
	if o.Target.hasImage() {
		checkStockIgnition(&p.Image, l, variant, &problems)
	}
	for i := range l.Files {
		f := &l.Files[i]
		if mount := onDisk(f.Path, p.Host.Disks); mount != "" {
			problems.Addf(f.Origin.Position, "keep it elsewhere, and link to it",
				"the file %s lies on the data disk at %s, which isn't mounted yet when Ignition writes files", f.Path, mount)
		}
		if f.Target == "" && f.Mode&0o7000 != 0 {
			problems.Addf(f.Origin.Position, "leave those bits out, or set them with a line in /etc/tmpfiles.d",
				"the file %s has mode %04o, and Ignition 3.3.0 can't set setuid, setgid or sticky bits", f.Path, uint32(f.Mode))
		}
	}
	problems.Sort()
	if err := problems.Err(); err != nil {
		return err
	}
	if err := checkHost(&p.Host); err != nil {
		return err
	}
	return ignitionAccounts(p, l, o.Target).check()
}

// ignitionAccounts is the layer as cloud-init's renderer has it, whose rules
// for names, users and homes are Ignition's as well.
func ignitionAccounts(p *plan.Plan, l *plan.Layer, t Target) *cloudInit {
	return &cloudInit{plan: p, target: t, files: l.Files, groups: l.Groups, users: l.Users, units: l.Units}
}

// kernelArgument is what an argument may have but letters and digits: nothing
// that a boot loader would take for more than the argument.
const kernelArgument = "/_.@+:=,%~^-"

// checkStockIgnition finds what a stock image can't be given by Ignition.
func checkStockIgnition(image *plan.Image, l *plan.Layer, variant Variant, problems *problem.List) {
	instead := "bring it as a system extension in /etc/extensions"
	if variant == FCOS {
		instead = "layer it with rpm-ostree from a oneshot unit, or run it from a container"
	}
	for _, s := range image.AptSources {
		problems.Addf(s.Origin.Position, "remove it in a profile that extends this one, or render --for golden, for an image that has it",
			"Ignition can't add the apt source %s: %s has no apt", s.Name, variant)
	}
	for _, pkg := range image.Packages {
		problems.Addf(pkg.Origin.Position, "remove it in a profile that extends this one and "+instead+"; or render --for golden, for an image that has it",
			"Ignition can't install the package %s", pkg.Name)
	}
	for _, a := range image.KernelArguments {
		if !isPlain(a.Value, kernelArgument) {
			problems.Addf(a.Origin.Position, "write each argument as an entry of its own, without quotes", "the kernel argument %q isn't one word", a.Value)
		}
	}
	refuse := func(origin plan.Origin, what, path string) {
		if readOnly(path, variant) {
			problems.Addf(origin.Position, "give it a path below /etc, /opt or /var",
				"Ignition can't write the %s %s: /usr is read-only on %s", what, path, variant)
		}
	}
	for _, f := range l.Files {
		refuse(f.Origin, "file", f.Path)
	}
	for _, d := range l.Directories {
		refuse(d.Origin, "directory", d.Path)
	}
}

// readOnly tells whether path lies on the file system that an image of that
// variant never changes.
func readOnly(path string, variant Variant) bool {
	if variant == FCOS && within(path, "/usr/local") {
		return false // a link to /var/usrlocal
	}
	for _, top := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		if within(path, top) {
			return true
		}
	}
	return false
}

// within tells whether path is dir, or lies below it.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

func kernelArgumentsNode(args []plan.Text) *yaml.Node {
	var values []string
	for _, a := range args {
		values = append(values, a.Value)
	}
	if values == nil {
		return nil
	}
	return mapping("should_exist", values)
}

func passwdNode(c *cloudInit) *yaml.Node {
	groups, users := sequence(), sequence()
	for _, g := range c.groups {
		push(groups, mapping("name", g.Name, "gid", g.GID, "system", g.System))
	}
	for i := range c.users {
		u := &c.users[i]
		push(users, mapping(
			"name", u.Name,
			"uid", u.UID,
			"gecos", u.Comment,
			"primary_group", c.primaryGroup(u),
			"groups", u.Groups,
			"home_dir", homeOf(u),
			"no_create_home", u.System && u.Home == "",
			"shell", shellOf(u),
			"system", u.System,
			"ssh_authorized_keys", u.SSHKeys,
		))
	}
	return mapping("groups", groups, "users", users)
}

// onDisk is the mount point of the data disk that path lies on, or empty. The
// mount point itself lies on none.
func onDisk(path string, disks []plan.DataDisk) string {
	for _, d := range disks {
		if path != d.Mount && within(path, d.Mount) {
			return d.Mount
		}
	}
	return ""
}

func storageNode(l *plan.Layer, disks []plan.DataDisk) (*yaml.Node, error) {
	directories, files, links := sequence(), sequence(), sequence()
	for _, d := range l.Directories {
		if err := checkNames(d.Owner, d.Group); err != nil {
			return nil, fmt.Errorf("%s: the directory %q: %w", d.Origin, d.Path, err)
		}
		if onDisk(d.Path, disks) != "" {
			continue // kiln-host.service makes it, when the disk is mounted
		}
		// Ignition 3.3.0 has no setuid, setgid and sticky bits: systemd-tmpfiles,
		// whose list has the directory too, sets them.
		push(directories, owned(mapping("path", d.Path, "mode", d.Mode&0o777), d.Owner, d.Group))
	}
	for i := range l.Files {
		f := &l.Files[i]
		if f.Target != "" {
			push(links, owned(mapping("path", f.Path, "target", f.Target, "overwrite", true), f.Owner, f.Group))
			continue
		}
		content, err := f.Content.Bytes()
		if err != nil {
			return nil, fmt.Errorf("the content of %s: %w", f.Path, err)
		}
		// Without overwrite, a file that the image has already fails the boot.
		n := owned(mapping("path", f.Path, "mode", f.Mode, "overwrite", true), f.Owner, f.Group)
		add(n, "contents", contentsNode(content))
		push(files, n)
	}
	return mapping("directories", directories, "files", files, "links", links), nil
}

// owned adds an owner and a group, but for root, whose everything is that
// Ignition makes.
func owned(n *yaml.Node, owner, group string) *yaml.Node {
	if owner != "root" {
		add(n, "user", mapping("name", owner))
	}
	if group != "root" {
		add(n, "group", mapping("name", group))
	}
	return n
}

// systemdNode says what becomes of units. Their files stand among the files,
// with owner and mode; here they are only enabled, by presets at the first
// boot, or masked.
func systemdNode(units []plan.Unit) *yaml.Node {
	list := sequence()
	for _, u := range units {
		n := mapping("name", u.Name)
		switch u.State {
		case plan.UnitEnabled:
			add(n, "enabled", true)
		case plan.UnitDisabled:
			addAlways(n, "enabled", boolNode(false))
		case plan.UnitMasked:
			add(n, "mask", true)
		}
		push(list, n)
	}
	return mapping("units", list)
}
