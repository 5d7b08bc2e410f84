// Package plan has the types that all of Kiln speaks: what a host is, once
// everything that an operator wrote about it has been resolved.
//
// A Plan has two halves. Its Image half is baked once and is the same for each
// host of a profile: it holds no secret and no fact about one host. Its Host
// half is what one host gets at its first boot. Which half a thing is in was
// written by the operator, never inferred.
//
// A Plan is a value: whoever renders or bakes it doesn't change it.
package plan

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/alisw/kiln/internal/problem"
)

// Plan is one host, resolved.
type Plan struct {
	Image Image `json:"image"`
	Host  Host  `json:"host"`
}

// Origin is where a value was written: the profile (empty for what the site or
// the inventory says) and the place in its files.
type Origin struct {
	Profile string `json:"profile,omitempty"`
	problem.Position
}

// String is the place, and the profile where there is one.
func (o Origin) String() string {
	pos := o.Position.String()
	switch {
	case o.Profile == "":
		return pos
	case pos == "":
		return o.Profile
	}
	return o.Profile + " " + pos
}

// Image is the half that is baked once.
type Image struct {
	Profile    string      `json:"profile"`    // the profile's name
	Definition string      `json:"definition"` // the image definition's name, such as debian-12
	Release    Release     `json:"release"`
	AptSources []AptSource `json:"apt_sources,omitempty"`
	Packages   []Package   `json:"packages,omitempty"`
	// KernelArguments are added to the kernel's command line, in this order.
	KernelArguments []Text `json:"kernel_arguments,omitempty"`
	Layer
}

// Release is the distribution that an image is made of.
type Release struct {
	ID           string `json:"id"`           // os-release's ID: debian, ubuntu
	Codename     string `json:"codename"`     // os-release's VERSION_CODENAME: bookworm
	Version      string `json:"version"`      // os-release's VERSION_ID: 12
	Architecture string `json:"architecture"` // Debian's name of it: amd64, arm64
}

// Text is a string with its origin.
type Text struct {
	Value  string `json:"value"`
	Origin Origin `json:"origin"`
}

// AptSource is one apt repository, trusted through exactly one key.
type AptSource struct {
	Name        string   `json:"name"` // names /etc/apt/sources.list.d/NAME.sources
	URIs        []string `json:"uris"`
	Suites      []string `json:"suites"`
	Components  []string `json:"components,omitempty"` // empty for a flat repository, whose suites end in /
	Fingerprint string   `json:"fingerprint"`          // 40 upper-case hexadecimal digits
	// Key is the public key that has this fingerprint, armored. It is empty
	// where the site doesn't hold the key yet: the sources can't be used then.
	Key     []byte `json:"-"`
	KeyFile string `json:"key_file"`          // where the site keeps the key, or would
	KeyURL  string `json:"key_url,omitempty"` // where the key can be fetched, to be checked against Fingerprint
	Origin  Origin `json:"origin"`
}

// Package is one distribution package to install.
type Package struct {
	Name   string `json:"name"`
	Origin Origin `json:"origin"`
}

// Layer is what both halves are mostly made of. Each list is sorted by name or
// path, but for Units, which stand in the order in which they are to be started.
type Layer struct {
	Groups      []Group     `json:"groups,omitempty"`
	Users       []User      `json:"users,omitempty"`
	Directories []Directory `json:"directories,omitempty"`
	Files       []File      `json:"files,omitempty"`
	Units       []Unit      `json:"units,omitempty"`
}

// Group is a group that has to exist.
type Group struct {
	Name   string `json:"name"`
	GID    *int   `json:"gid,omitempty"` // nil: any free one
	System bool   `json:"system,omitempty"`
	Origin Origin `json:"origin"`
}

// User is a user that has to exist. None ever has a password.
type User struct {
	Name    string   `json:"name"`
	UID     *int     `json:"uid,omitempty"`   // nil: any free one
	Group   string   `json:"group,omitempty"` // primary group; empty: one of the user's own name
	Groups  []string `json:"groups,omitempty"`
	Home    string   `json:"home,omitempty"` // empty: /home/NAME, or none for a system user
	Shell   string   `json:"shell,omitempty"`
	Comment string   `json:"comment,omitempty"`
	System  bool     `json:"system,omitempty"`
	Sudo    bool     `json:"sudo,omitempty"` // may become root without a password
	SSHKeys []string `json:"ssh_keys,omitempty"`
	Origin  Origin   `json:"origin"`
}

// Directory is a directory that has to exist, with this owner and mode.
type Directory struct {
	Path   string      `json:"path"`
	Owner  string      `json:"owner"`
	Group  string      `json:"group"`
	Mode   fs.FileMode `json:"mode"` // permission, setuid, setgid and sticky bits as chmod(1) numbers them
	Origin Origin      `json:"origin"`
}

// File is a regular file, or a symbolic link where Target is set.
type File struct {
	Path    string      `json:"path"`
	Owner   string      `json:"owner"`
	Group   string      `json:"group"`
	Mode    fs.FileMode `json:"mode"` // as for Directory
	Target  string      `json:"target,omitempty"`
	Content Content     `json:"content"`
	Origin  Origin      `json:"origin"`
}

// MarshalJSON writes the mode as chmod(1) takes it: "0755".
func (d Directory) MarshalJSON() ([]byte, error) {
	type plain Directory
	return json.Marshal(struct {
		plain
		Mode string `json:"mode"`
	}{plain(d), octal(d.Mode)})
}

// MarshalJSON writes the mode as chmod(1) takes it: "0644".
func (f File) MarshalJSON() ([]byte, error) {
	type plain File
	return json.Marshal(struct {
		plain
		Mode string `json:"mode"`
	}{plain(f), octal(f.Mode)})
}

func octal(m fs.FileMode) string { return fmt.Sprintf("%04o", uint32(m)) }

// Unit is what becomes of a systemd unit; its file comes from a package or
// stands among the Files.
type Unit struct {
	Name   string    `json:"name"` // with its suffix: nomad.service
	State  UnitState `json:"state"`
	Origin Origin    `json:"origin"`
}

// UnitState says what systemd is told about a unit.
type UnitState string

// The states that a unit can be put in.
const (
	UnitEnabled  UnitState = "enabled"  // started at each boot
	UnitDisabled UnitState = "disabled" // not started by itself
	UnitMasked   UnitState = "masked"   // can't be started at all
)

// Host is the half that one host gets at its first boot.
type Host struct {
	Name     string      `json:"name"`     // fully qualified where the site has a domain
	Hostname string      `json:"hostname"` // its first label
	Platform Platform    `json:"platform"`
	Network  Network     `json:"network"`
	Disks    []DataDisk  `json:"disks,omitempty"`
	Install  DiskRule    `json:"install,omitzero"`      // the disk that the network installer writes the image to
	Reserved Reservation `json:"reservation,omitempty"` // what the profile keeps from Nomad
	Layer
	Origin Origin `json:"origin"`
}

// Platform is where a host runs: it says how large its user-data may be.
type Platform string

// The platforms whose limits Kiln knows.
const (
	PlatformMetal     Platform = "metal" // its own disk or a seed volume: no limit
	PlatformOpenStack Platform = "openstack"
	PlatformEC2       Platform = "ec2"
)

// UserDataLimit is the most bytes of user-data that the platform hands to a
// host; 0 is no limit. OpenStack: nova's MAX_USERDATA_SIZE counts the base64
// form, 65535 characters. EC2 counts raw bytes, before base64.
func (p Platform) UserDataLimit() int {
	switch p {
	case PlatformOpenStack:
		return 65535 / 4 * 3
	case PlatformEC2:
		return 16 * 1024
	}
	return 0
}

// Reservation is the share of each of a host's dimensions that Nomad must
// leave alone, from 0 to 1.
type Reservation struct {
	CPU    float64 `json:"cpu"` // cores and MHz
	Memory float64 `json:"memory"`
	Disk   float64 `json:"disk"`
	Origin Origin  `json:"origin"`
}

// Network is how a host's interfaces are set up. An empty one leaves the
// network to the image.
type Network struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
}

// Interface is one network interface: hardware, a bond or a VLAN.
type Interface struct {
	Name      string         `json:"name"`
	MAC       MAC            `json:"mac,omitempty"`
	DHCP4     bool           `json:"dhcp4,omitempty"`
	DHCP6     bool           `json:"dhcp6,omitempty"`
	AcceptRA  *bool          `json:"accept_ra,omitempty"` // nil: the kernel's default
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"` // one a family at most
	Routes    []Route        `json:"routes,omitempty"`
	DNS       []netip.Addr   `json:"dns,omitempty"`
	Search    []string       `json:"search,omitempty"`
	MTU       int            `json:"mtu,omitempty"` // bytes; 0: the default
	Bond      *Bond          `json:"bond,omitempty"`
	VLAN      *VLAN          `json:"vlan,omitempty"`
	Origin    Origin         `json:"origin"`
}

// Route is a static route through one interface.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// Bond joins interfaces into one.
type Bond struct {
	Members []string `json:"members"`
	Mode    string   `json:"mode"` // the kernel's name of it: 802.3ad, active-backup
}

// VLAN is a tagged network on another interface.
type VLAN struct {
	ID   int    `json:"id"` // 1 to 4094
	Link string `json:"link"`
}

// DataDisk is a disk that a host keeps its data on: formatted only if it is
// empty, and kept when the host is installed again.
type DataDisk struct {
	Mount      string   `json:"mount"`
	Disk       DiskRule `json:"disk"`
	Filesystem string   `json:"filesystem"`        // ext4 or xfs
	Options    string   `json:"options,omitempty"` // mount options, comma-separated
	Origin     Origin   `json:"origin"`
}

// DiskRule picks exactly one disk of a host. All the conditions that are set
// must hold, and only one disk may fulfil them.
type DiskRule struct {
	Serial  string `json:"serial,omitempty"`
	WWN     string `json:"wwn,omitempty"`
	Path    string `json:"path,omitempty"`     // a path below /dev/disk
	MinSize int64  `json:"min_size,omitempty"` // bytes
	MaxSize int64  `json:"max_size,omitempty"` // bytes
}

// Words says the conditions, such as "serial S3X1, at least 100 GiB"; size writes
// bytes as the reader is used to. A rule without conditions has no words.
func (r DiskRule) Words(size func(bytes int64) string) string {
	var words []string
	for _, w := range []struct{ key, value string }{{"serial", r.Serial}, {"WWN", r.WWN}, {"path", r.Path}} {
		if w.value != "" {
			words = append(words, w.key+" "+w.value)
		}
	}
	if r.MinSize != 0 {
		words = append(words, "at least "+size(r.MinSize))
	}
	if r.MaxSize != 0 {
		words = append(words, "at most "+size(r.MaxSize))
	}
	return strings.Join(words, ", ")
}
