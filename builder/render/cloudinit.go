package render

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

// TooLargeError is user-data over what the host's platform takes.
type TooLargeError struct {
	Host     string
	Platform plan.Platform
	Size     int // bytes
	Limit    int // bytes
	Options  Options
}

func (e *TooLargeError) Error() string {
	var way string
	switch {
	case e.Options.Target == imageOnly:
		way = "have Kiln's plugin bring the image half (--provisioner kiln)"
	case !e.Options.Gzip:
		way = "compress it (--gzip)"
	case e.Options.Target != Golden:
		way = "boot a golden image, which has the image half already (--for golden)"
	default:
		way = "move what all hosts share into the image half, or boot from a seed, which has no limit (--format seed)"
	}
	return fmt.Sprintf("the user-data of %s has %d bytes, and %s takes %d: %s", e.Host, e.Size, e.Platform, e.Limit, way)
}

// CloudInit is the plan as cloud-init's user-data, for a platform's metadata
// service. More than that takes is a *TooLargeError.
func CloudInit(p *plan.Plan, o Options) ([]byte, error) {
	text, err := cloudConfig(p, o.Target)
	if err != nil {
		return nil, err
	}
	if o.Gzip {
		if text, err = compress(text); err != nil {
			return nil, fmt.Errorf("compressing the user-data of %s: %w", p.Host.Name, err)
		}
	}
	if limit := p.Host.Platform.UserDataLimit(); limit > 0 && len(text) > limit && o.Target.hasHost() {
		return nil, &TooLargeError{p.Host.Name, p.Host.Platform, len(text), limit, o}
	}
	return text, nil
}

// compress makes the same bytes of the same text: a gzip header has neither a
// name nor a time here.
func compress(text []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// cloudConfig is user-data without a limit.
func cloudConfig(p *plan.Plan, t Target) ([]byte, error) {
	c, err := newCloudConfig(p, t)
	if err != nil {
		return nil, err
	}
	text, err := c.text(true)
	if err == nil && looksLikeMIME(text) {
		// A file among the first ones has what cloud-init takes for the header
		// of a multipart message. In base64 it can't.
		if text, err = c.text(false); err == nil && looksLikeMIME(text) {
			err = fmt.Errorf("cloud-init takes user-data that has MIME-Version: near its beginning for a mail message: rename what has that in its name")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the user-data of %s: %w", p.Host.Name, err)
	}
	return text, nil
}

// looksLikeMIME is cloud-init's own test.
func looksLikeMIME(text []byte) bool {
	text = text[:min(len(text), 4096)]
	const header = "mime-version:"
	for {
		// Searching for the colon first is many times faster than folding case.
		i := bytes.IndexByte(text, ':')
		if i < 0 {
			return false
		}
		if start := i + 1 - len(header); start >= 0 && strings.EqualFold(string(text[start:i+1]), header) {
			return true
		}
		text = text[i+1:]
		if len(text) == 0 {
			return false
		}
	}
}

// cloudInit is what goes into one user-data.
type cloudInit struct {
	plan   *plan.Plan
	target Target
	files  []plan.File
	groups []plan.Group
	users  []plan.User
	units  []plan.Unit
}

func newCloudConfig(p *plan.Plan, t Target) (*cloudInit, error) {
	c := &cloudInit{plan: p, target: t}
	if t.hasImage() {
		files, err := ImageFiles(&p.Image)
		if err != nil {
			return nil, err
		}
		c.files = files
		c.groups, c.users, c.units = p.Image.Groups, p.Image.Users, p.Image.Units
	}
	if t.hasHost() {
		if err := checkHost(&p.Host); err != nil {
			return nil, err
		}
		files, err := hostFiles(p)
		if err != nil {
			return nil, err
		}
		c.files = mergeFiles(c.files, files)
		c.groups = mergeNamed(c.groups, p.Host.Groups, func(g plan.Group) string { return g.Name })
		c.users = mergeNamed(c.users, p.Host.Users, func(u plan.User) string { return u.Name })
		c.units = mergeNamed(c.units, p.Host.Units, func(u plan.Unit) string { return u.Name })
	}
	return c, c.check()
}

// mergeFiles puts the Host half's files, whose last is the manifest, behind the
// Image half's, leaving out what they replace.
func mergeFiles(image, host []plan.File) []plan.File {
	if len(image) == 0 {
		return host
	}
	replaced := make(map[string]bool, len(host))
	for i := range host {
		replaced[host[i].Path] = true
	}
	all := make([]plan.File, 0, len(image)+len(host))
	for i := range image {
		if !replaced[image[i].Path] {
			all = append(all, image[i])
		}
	}
	return append(all, host...)
}

// mergeNamed is both halves' list, the host's entry in the place of the image's
// where both have one of a name.
func mergeNamed[T any](image, host []T, name func(T) string) []T {
	if len(image) == 0 {
		return host
	}
	all := slices.Clone(image)
	for _, h := range host {
		if i := slices.IndexFunc(all, func(x T) bool { return name(x) == name(h) }); i >= 0 {
			all[i] = h
		} else {
			all = append(all, h)
		}
	}
	return all
}

func (c *cloudInit) check() error {
	for i := range c.files {
		if err := checkFile(&c.files[i]); err != nil {
			return err
		}
	}
	for _, g := range c.groups {
		if err := checkNames(g.Name); err != nil {
			return fmt.Errorf("%s: %w", g.Origin, err)
		}
	}
	for i := range c.users {
		if err := c.checkUser(&c.users[i]); err != nil {
			return err
		}
	}
	for _, u := range c.units {
		if !isPlain(u.Name, `:_.\@-`) || u.Name[0] == '-' {
			return fmt.Errorf("%s: %q is no name of a unit", u.Origin, u.Name)
		}
	}
	for _, pkg := range c.plan.Image.Packages {
		if c.target.hasImage() && (!isPlain(pkg.Name, "+.:=~-") || pkg.Name[0] == '-') {
			return fmt.Errorf("%s: %q is no name of a package", pkg.Origin, pkg.Name)
		}
	}
	if c.target.hasHost() && len(c.plan.Host.Disks) > 0 && !hasUnit(c.plan, hostUnit) {
		return fmt.Errorf("%s: %s has data disks, and its profile has nothing that mounts them: extend the profile base, which has %s",
			c.plan.Host.Disks[0].Origin, c.plan.Host.Name, hostUnit)
	}
	return nil
}

// checkHost refuses names that no resolver could ask for.
func checkHost(h *plan.Host) error {
	for _, name := range []string{h.Name, h.Hostname} {
		for label := range strings.SplitSeq(name, ".") {
			if len(label) > 63 || !isPlain(label, "-") || label[0] == '-' || label[len(label)-1] == '-' {
				return fmt.Errorf("%s: %q is no host name: its labels have letters, digits and - alone", h.Origin, name)
			}
		}
	}
	return nil
}

// text writes it all. Without literals, no content is readable in it.
func (c *cloudInit) text(literals bool) ([]byte, error) {
	y := yamlText{b: make([]byte, 0, c.size()), literals: literals}
	c.head(&y)
	y.commands("bootcmd", c.bootCommands())
	c.accounts(&y)
	if err := c.writeFiles(&y); err != nil {
		return nil, err
	}
	if c.target.hasImage() && len(c.plan.Image.Packages) > 0 {
		y.line("package_update: true")
		y.line("packages:")
		for _, pkg := range c.plan.Image.Packages {
			y.line("- ", y.scalar(pkg.Name))
		}
	}
	y.commands("runcmd", c.runCommands())
	if c.target == Stock && len(c.plan.Image.KernelArguments) > 0 {
		y.line("power_state:")
		y.line("  mode: reboot")
		y.entry("  ", "message", "the kernel's command line has changed")
		y.entry("  ", "condition", "! "+argumentsTest)
	}
	return y.b, y.err
}

// size estimates the length of the text.
func (c *cloudInit) size() int {
	n := 1024
	for i := range c.files {
		if b, err := c.files[i].Content.Bytes(); err == nil {
			n += len(b)*5/4 + 128
		}
	}
	return n
}

func (c *cloudInit) head(y *yamlText) {
	y.line("#cloud-config")
	h := &c.plan.Host
	switch c.target {
	case Golden:
		y.line("# The host half of ", h.Name, ", for a golden image that has the image half already.")
	case Stock:
		y.line("# Both halves of ", h.Name, ", for a stock cloud image.")
	case imageOnly:
		y.line("# The image half, for a machine that becomes a golden image.")
		return
	}
	y.line("# Made by kiln: change the site, not this.")
	if len(h.Network.Interfaces) > 0 {
		y.line("# Its network is in network-config, which a seed carries.")
	}
	y.entry("", "hostname", h.Hostname)
	y.entry("", "fqdn", h.Name)
	y.line("preserve_hostname: false")
	y.line("prefer_fqdn_over_hostname: false")
	if !slices.ContainsFunc(c.files, func(f plan.File) bool { return f.Path == "/etc/hosts" }) {
		// A line for 127.0.1.1, as Debian's installer writes it, so that the host
		// finds its own full name without DNS.
		y.line("manage_etc_hosts: localhost")
	}
	if c.target == Golden {
		// A golden image has no host keys; those that a host has made itself stay
		// when it is given a new seed. A stock image may hold somebody else's.
		y.line("ssh_deletekeys: false")
	}
}

// writeFiles lists the files. All wait until users and packages are there: an
// owner that doesn't exist would end the whole list, and packages write over
// some files, or give them to somebody else, as HashiCorp's do with their whole
// configuration folders. Waiting together also keeps a host that is given new
// data on its old data until then: agents that the boot starts mustn't find
// half of each. Only what apt needs comes first. The manifest comes last: it is
// written when all the rest has been tried, and if anything is missing then, its
// hashes keep the agents from starting.
func (c *cloudInit) writeFiles(y *yamlText) error {
	first := true
	for i := range c.files {
		f := &c.files[i]
		if f.Target != "" {
			continue
		}
		content, err := f.Content.Bytes()
		if err != nil {
			return fmt.Errorf("the content of %s: %w", f.Path, err)
		}
		if first {
			y.line("write_files:")
			first = false
		}
		y.entry("", "- path", f.Path)
		roots := f.Owner == "root" && f.Group == "root"
		if !roots {
			y.line("  owner: ", y.scalar(f.Owner+":"+f.Group))
		}
		y.b = append(y.b, `  permissions: "`...)
		y.b = appendMode(y.b, f.Mode)
		y.b = append(y.b, "\"\n"...)
		if !roots || !c.target.hasImage() || !strings.HasPrefix(f.Path, "/etc/apt/") {
			y.line("  defer: true")
		}
		y.content(content)
	}
	return nil
}

// content adds a file's content, readable where that is exact.
func (y *yamlText) content(content []byte) {
	switch {
	case len(content) == 0:
		y.line(`  content: ""`)
	case y.literals && isLiteral(content):
		y.line("  content: |")
		y.block("    ", content)
	default:
		y.line("  encoding: b64")
		y.b = append(y.b, "  content: "...)
		y.base64(content)
		y.b = append(y.b, '\n')
	}
}

// MetaData is the host's meta-data for a seed. Its instance-id is a hash of the
// host's name, user-data and network: cloud-init runs again at the next boot
// exactly if one of them has changed, and not when the same seed is put in
// place once more.
func MetaData(p *plan.Plan, o Options) ([]byte, error) {
	userData, err := cloudConfig(p, o.Target)
	if err != nil {
		return nil, err
	}
	network, err := NetworkConfig(p)
	if err != nil {
		return nil, err
	}
	return metaData(p, userData, network), nil
}

// ImageMetaData is meta-data for a machine that becomes a golden image, to go with
// ImageUserData.
func ImageMetaData(p *plan.Plan) ([]byte, error) {
	userData, err := ImageUserData(p)
	if err != nil {
		return nil, err
	}
	return namedMetaData(buildHost, userData, nil), nil
}

// buildHost is what a machine is called that becomes a golden image.
const buildHost = "kiln-build"

func metaData(p *plan.Plan, userData, network []byte) []byte {
	return namedMetaData(p.Host.Name, userData, network)
}

func namedMetaData(host string, userData, network []byte) []byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(host), userData, network} {
		// The lengths keep two hosts apart whose parts differ only in where one ends.
		_, _ = io.WriteString(h, strconv.Itoa(len(part))+":")
		_, _ = h.Write(part)
	}
	var y yamlText
	y.entry("", "instance-id", fmt.Sprintf("kiln-%x", h.Sum(nil)[:10]))
	y.entry("", "local-hostname", host)
	return y.b
}
