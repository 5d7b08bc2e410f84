package profiles

import (
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
)

// The types in this file mirror what an operator writes, key by key. What it
// means, once inherited and checked, is a plan.Plan.

type (
	text = strictyaml.Value[string]
	flag = strictyaml.Value[bool]
)

// SiteFile is site.yaml: what is true of the whole cluster.
type SiteFile struct {
	Domain       text                 `yaml:"domain" jsonschema_description:"Domain of the site: what a host's name gets behind it where it has no dot."`
	Datacenter   text                 `yaml:"datacenter" jsonschema_description:"Name of the datacenter, for Consul and Nomad. Default: dc1."`
	Region       text                 `yaml:"region" jsonschema_description:"Nomad's region. Default: global."`
	Servers      ServersFile          `yaml:"servers" jsonschema_description:"The cluster's servers."`
	VaultAddress text                 `yaml:"vault_address" jsonschema_description:"URL of the cluster's Vault. Default: https://vault.service.consul:8200."`
	DNS          DNSFile              `yaml:"dns" jsonschema_description:"Where a host's DNS queries go."`
	TimeServers  []text               `yaml:"time_servers" jsonschema_description:"NTP servers. Default: the distribution's."`
	TLS          *TLSFile             `yaml:"tls" jsonschema_description:"Certificates of the hosts. Without it the agents speak no TLS."`
	Admins       []AdminFile          `yaml:"admins" jsonschema_description:"Users on every host."`
	Apt          AptFile              `yaml:"apt" jsonschema_description:"Where packages come from."`
	Secrets      strictyaml.Map[text] `yaml:"secrets" jsonschema_description:"Names of secrets, and where each is to be found: teigi://HOSTGROUP/KEY, vault://MOUNT/PATH#FIELD, pass://NAME, age://FILE, file://FILE or env://NAME."`
	Vars         strictyaml.Map[any]  `yaml:"vars" jsonschema_description:"Variables for templates: a profile's are overridden by the site's, the site's by a host's."`
	Advertise    *AdvertiseFile       `yaml:"advertise" jsonschema_description:"How a host without an address of its own in the inventory finds the one that its agents advertise."`
	Vault        *VaultFile           `yaml:"vault" jsonschema_description:"What kiln vault sets Vault to. What isn't named here stays as it is."`
	Pos          problem.Position     `yaml:"-"`
}

// ServersFile is what the agents need to know of the cluster's servers.
type ServersFile struct {
	Join   []text `yaml:"join" jsonschema_description:"Names or addresses of the servers that the agents join."`
	Nomad  text   `yaml:"nomad" jsonschema_description:"Version of Nomad on the servers."`
	Consul text   `yaml:"consul" jsonschema_description:"Version of Consul on the servers."`
	Vault  text   `yaml:"vault" jsonschema_description:"Version of Vault on the servers."`
}

// DNSFile says where names are looked up.
type DNSFile struct {
	Consul   []text `yaml:"consul" jsonschema_description:"DNS servers for .consul, each an address, or address#port."`
	Upstream []text `yaml:"upstream" jsonschema_description:"DNS servers for all other names, likewise."`
}

// TLSFile says where a host's certificate is.
type TLSFile struct {
	Directory            text             `yaml:"directory" jsonschema_description:"Folder of the certificates on a host. Default: /etc/grid-security."`
	CA                   text             `yaml:"ca" jsonschema_description:"File of the authorities that the agents trust, in that folder or absolute. Default: ca.pem."`
	Cert                 text             `yaml:"cert" jsonschema_description:"The host's certificate. Default: hostcert.pem."`
	Key                  text             `yaml:"key" jsonschema_description:"The host's key. Default: hostkey.pem."`
	VerifyServerHostname bool             `yaml:"verify_server_hostname" jsonschema_description:"Whether servers must have certificates for server.REGION.nomad and server.DATACENTER.consul. Host certificates from a Grid CA carry the host's name only: leave it false with them."`
	Pos                  problem.Position `yaml:"-"`
}

// AdminFile is a user on every host.
type AdminFile struct {
	Name    text             `yaml:"name" jsonschema:"required" jsonschema_description:"Login name."`
	UID     *int             `yaml:"uid" jsonschema_description:"Fixed user ID."`
	Groups  []text           `yaml:"groups" jsonschema_description:"Groups that the user is in besides its own."`
	Shell   text             `yaml:"shell" jsonschema_description:"Login shell. Default: /bin/bash."`
	SSHKeys []text           `yaml:"ssh_keys" jsonschema_description:"Public keys, a line each as in authorized_keys."`
	Sudo    flag             `yaml:"sudo" jsonschema_description:"Whether the user may become root without a password."`
	Pos     problem.Position `yaml:"-"`
}

// AptFile says where packages come from.
type AptFile struct {
	Mirror   text                          `yaml:"mirror" jsonschema_description:"Mirror of the distribution, used by kiln build for golden images alone: a stock image keeps its own mirrors. Default: the building machine's own."`
	Security text                          `yaml:"security" jsonschema_description:"Mirror of the distribution's security updates, used by kiln build for golden images alone: a stock image keeps its own mirrors. Default: the building machine's own."`
	Sources  strictyaml.Map[AptSourceFile] `yaml:"sources" jsonschema_description:"Overrides of the profiles' apt sources, by name, field by field."`
}

// AptSourceFile is an apt repository, trusted through one key.
type AptSourceFile struct {
	URIs        []text           `yaml:"uris" jsonschema_description:"Addresses of the repository."`
	Suites      []text           `yaml:"suites" jsonschema_description:"Suites; $(codename) stands for the release's code name."`
	Components  []text           `yaml:"components" jsonschema_description:"Components, such as main."`
	Key         text             `yaml:"key" jsonschema_description:"File of the public key, in the site's directory. Default: keys/NAME.asc."`
	KeyURL      text             `yaml:"key_url" jsonschema_description:"Where kiln keys fetch gets the key."`
	Fingerprint text             `yaml:"fingerprint" jsonschema_description:"The key's fingerprint: 40 hexadecimal digits."`
	Pos         problem.Position `yaml:"-"`
}

// HostFile is one entry of hosts.yaml.
type HostFile struct {
	Name       text                          `yaml:"name" jsonschema:"required" jsonschema_description:"The host's name; the site's domain is added where it has no dot."`
	Profile    text                          `yaml:"profile" jsonschema:"required" jsonschema_description:"Name of the host's profile."`
	Image      text                          `yaml:"image" jsonschema_description:"Name of the image definition. Default: debian-12."`
	Platform   text                          `yaml:"platform" jsonschema:"enum=metal,enum=openstack,enum=ec2" jsonschema_description:"Where the host runs: limits the size of its user-data. Default: metal."`
	Interfaces strictyaml.Map[InterfaceFile] `yaml:"interfaces" jsonschema_description:"Network interfaces, by name. Without any, the network is left to the image: DHCP."`
	Advertise  *AdvertiseFile                `yaml:"advertise" jsonschema_description:"The address that the host's agents advertise. Default: the first address of its interfaces, else the site's advertise."`
	Disks      []DiskFile                    `yaml:"disks" jsonschema_description:"Data disks: formatted only if empty, kept when the host is installed again."`
	Install    *DiskRuleFile                 `yaml:"install" jsonschema_description:"The disk that the network installer writes the image to; the plan carries it for that, and nothing rendered has it."`
	Facts      FactsFile                     `yaml:"facts" jsonschema_description:"Facts of the hardware, where they are known."`
	Reserve    *ReserveFile                  `yaml:"reserve" jsonschema_description:"Share of the host that Nomad leaves alone, from 0 to 1. Overrides the profile's."`
	Secrets    strictyaml.Map[text]          `yaml:"secrets" jsonschema_description:"Secrets of this host: override the site's by name."`
	Vars       strictyaml.Map[any]           `yaml:"vars" jsonschema_description:"Variables of this host: override the site's by name."`
	Pos        problem.Position              `yaml:"-"`
}

// InterfaceFile is a network interface.
type InterfaceFile struct {
	MAC       text                  `yaml:"mac" jsonschema_description:"Hardware address, in any spelling. Finds the interface, whatever its kernel name."`
	DHCP4     bool                  `yaml:"dhcp4" jsonschema_description:"Whether to ask for an IPv4 address."`
	DHCP6     bool                  `yaml:"dhcp6" jsonschema_description:"Whether to ask for an IPv6 address."`
	AcceptRA  *bool                 `yaml:"accept_ra" jsonschema_description:"Whether to take IPv6 router advertisements."`
	Addresses []text                `yaml:"addresses" jsonschema_description:"Static addresses, each with its prefix length: 192.0.2.11/24."`
	Gateways  []text                `yaml:"gateways" jsonschema_description:"Default gateways, one a family at most."`
	Routes    []RouteFile           `yaml:"routes" jsonschema_description:"Static routes."`
	DNS       []text                `yaml:"dns" jsonschema_description:"DNS servers."`
	Search    []text                `yaml:"search" jsonschema_description:"DNS search domains."`
	MTU       strictyaml.Value[int] `yaml:"mtu" jsonschema_description:"Largest packet in bytes."`
	Bond      *BondFile             `yaml:"bond" jsonschema_description:"Makes this a bond of other interfaces."`
	VLAN      *VLANFile             `yaml:"vlan" jsonschema_description:"Makes this a tagged network on another interface."`
	Pos       problem.Position      `yaml:"-"`
}

// RouteFile is a static route.
type RouteFile struct {
	To  text             `yaml:"to" jsonschema:"required" jsonschema_description:"Destination network."`
	Via text             `yaml:"via" jsonschema:"required" jsonschema_description:"Address of the next router."`
	Pos problem.Position `yaml:"-"`
}

// BondFile joins interfaces.
type BondFile struct {
	Members []text           `yaml:"members" jsonschema:"required" jsonschema_description:"Names of the interfaces that it joins."`
	Mode    text             `yaml:"mode" jsonschema_description:"The kernel's name of the mode. Default: 802.3ad."`
	Pos     problem.Position `yaml:"-"`
}

// VLANFile is a tagged network.
type VLANFile struct {
	ID   strictyaml.Value[int] `yaml:"id" jsonschema:"required" jsonschema_description:"Tag, 1 to 4094."`
	Link text                  `yaml:"link" jsonschema:"required" jsonschema_description:"Name of the interface that carries it."`
	Pos  problem.Position      `yaml:"-"`
}

// AdvertiseFile is an address, or a way to find one on the host.
type AdvertiseFile struct {
	Address   text
	Interface text             `yaml:"interface" jsonschema_description:"Takes this interface's address."`
	Network   text             `yaml:"network" jsonschema_description:"Takes the host's address in this network."`
	Pos       problem.Position `yaml:"-"`
}

// DecodeYAML reads an address, or one of the two keys.
func (a *AdvertiseFile) DecodeYAML(c *strictyaml.Context, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		a.Pos = c.Pos(n)
		c.Decode(n, &a.Address)
		return
	}
	type plain struct {
		Interface text             `yaml:"interface"`
		Network   text             `yaml:"network"`
		Pos       problem.Position `yaml:"-"`
	}
	var p plain
	c.Decode(n, &p)
	a.Interface, a.Network, a.Pos = p.Interface, p.Network, p.Pos
}

// DiskFile is a data disk.
type DiskFile struct {
	Mount      text             `yaml:"mount" jsonschema:"required" jsonschema_description:"Directory that it is mounted on, such as /build."`
	Disk       DiskRuleFile     `yaml:"disk" jsonschema:"required" jsonschema_description:"Which disk it is."`
	Filesystem text             `yaml:"filesystem" jsonschema:"enum=ext4,enum=xfs" jsonschema_description:"What an empty disk is formatted with. Default: ext4."`
	Options    text             `yaml:"options" jsonschema_description:"Mount options, with commas between."`
	Pos        problem.Position `yaml:"-"`
}

// DiskRuleFile picks one disk of a host.
type DiskRuleFile struct {
	Serial  text             `yaml:"serial" jsonschema_description:"Serial number, as lsblk shows it."`
	WWN     text             `yaml:"wwn" jsonschema_description:"World-wide name, as lsblk shows it."`
	Path    text             `yaml:"path" jsonschema_description:"A path below /dev/disk."`
	MinSize text             `yaml:"min_size" jsonschema_description:"Smallest size: 500GB, 1TiB."`
	MaxSize text             `yaml:"max_size" jsonschema_description:"Largest size."`
	Pos     problem.Position `yaml:"-"`
}

// FactsFile is what the inventory knows of a host's hardware.
type FactsFile struct {
	Cores  strictyaml.Value[int] `yaml:"cores" jsonschema_description:"Processors, as the kernel counts them."`
	MHz    strictyaml.Value[int] `yaml:"mhz" jsonschema_description:"MHz of all processors together, as Nomad counts them."`
	Memory text                  `yaml:"memory" jsonschema_description:"Memory: 64GiB."`
	Pos    problem.Position      `yaml:"-"`
}

// ReserveFile is a share of a host, or one for each dimension.
type ReserveFile struct {
	CPU    strictyaml.Value[float64] `yaml:"cpu" jsonschema_description:"Share of cores and MHz."`
	Memory strictyaml.Value[float64] `yaml:"memory" jsonschema_description:"Share of the memory."`
	Disk   strictyaml.Value[float64] `yaml:"disk" jsonschema_description:"Share of the disk."`
	Pos    problem.Position          `yaml:"-"`
}

// DecodeYAML reads one number for all dimensions, or a key for each.
func (r *ReserveFile) DecodeYAML(c *strictyaml.Context, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		var all strictyaml.Value[float64]
		c.Decode(n, &all)
		*r = ReserveFile{all, all, all, c.Pos(n)}
		return
	}
	type plain ReserveFile
	c.Decode(n, (*plain)(r))
}

// ProfileFile is profile.yaml.
type ProfileFile struct {
	Description text                `yaml:"description" jsonschema_description:"What hosts of this profile are, in a line."`
	Abstract    bool                `yaml:"abstract" jsonschema_description:"Whether it is only for others to extend."`
	Extends     []text              `yaml:"extends" jsonschema_description:"Profiles that this one builds on, later ones winning."`
	Delimiters  []text              `yaml:"delimiters" jsonschema:"minItems=2,maxItems=2" jsonschema_description:"What stands around an action in this profile's .tmpl files. Default: {{ and }}."`
	Vars        strictyaml.Map[any] `yaml:"vars" jsonschema_description:"Variables for templates, with their defaults."`
	Image       ImageHalfFile       `yaml:"image" jsonschema_description:"What is baked once, the same for each host: no secret, no fact about one host."`
	Host        HostHalfFile        `yaml:"host" jsonschema_description:"What one host gets at its first boot."`
	Pos         problem.Position    `yaml:"-"`
}

// ImageHalfFile is a profile's image: section.
type ImageHalfFile struct {
	Packages        []PackageFile                 `yaml:"packages" jsonschema_description:"Packages to install, not started while installing."`
	AptSources      strictyaml.Map[AptSourceFile] `yaml:"apt_sources" jsonschema_description:"apt repositories, by name."`
	KernelArguments []text                        `yaml:"kernel_arguments" jsonschema_description:"Added to the kernel's command line."`
	Groups          strictyaml.Map[GroupFile]     `yaml:"groups" jsonschema_description:"Groups, by name."`
	Users           strictyaml.Map[UserFile]      `yaml:"users" jsonschema_description:"Users, by name."`
	Directories     strictyaml.Map[DirectoryFile] `yaml:"directories" jsonschema_description:"Directories, by path."`
	Files           strictyaml.Map[FileFile]      `yaml:"files" jsonschema_description:"Owners and modes of the files in the folder image/, links, and small files written here, by path."`
	Units           strictyaml.Map[text]          `yaml:"units" jsonschema_description:"systemd units: enabled, disabled or masked, in the order in which they start."`
	Remove          ImageRemoveFile               `yaml:"remove" jsonschema_description:"What an extended profile has and this one doesn't want."`
}

// HostHalfFile is a profile's host: section.
type HostHalfFile struct {
	Reserve     *ReserveFile                  `yaml:"reserve" jsonschema_description:"Share of the host that Nomad leaves alone, from 0 to 1."`
	Groups      strictyaml.Map[GroupFile]     `yaml:"groups" jsonschema_description:"Groups, by name."`
	Users       strictyaml.Map[UserFile]      `yaml:"users" jsonschema_description:"Users, by name."`
	Directories strictyaml.Map[DirectoryFile] `yaml:"directories" jsonschema_description:"Directories, by path."`
	Files       strictyaml.Map[FileFile]      `yaml:"files" jsonschema_description:"Owners and modes of the files in the folder host/, links, and small files written here, by path."`
	Units       strictyaml.Map[text]          `yaml:"units" jsonschema_description:"systemd units: enabled, disabled or masked, in the order in which they start."`
	Remove      RemoveFile                    `yaml:"remove" jsonschema_description:"What an extended profile has and this one doesn't want."`
}

// RemoveFile takes entries out of what was inherited.
type RemoveFile struct {
	Groups      []text `yaml:"groups" jsonschema_description:"Names of groups."`
	Users       []text `yaml:"users" jsonschema_description:"Names of users."`
	Directories []text `yaml:"directories" jsonschema_description:"Paths of directories."`
	Files       []text `yaml:"files" jsonschema_description:"Paths of files."`
	Units       []text `yaml:"units" jsonschema_description:"Names of units."`
}

// ImageRemoveFile is RemoveFile with what only the image half has.
type ImageRemoveFile struct {
	Packages        []text `yaml:"packages" jsonschema_description:"Names of packages."`
	AptSources      []text `yaml:"apt_sources" jsonschema_description:"Names of apt sources."`
	KernelArguments []text `yaml:"kernel_arguments" jsonschema_description:"Kernel arguments."`
	Groups          []text `yaml:"groups" jsonschema_description:"Names of groups."`
	Users           []text `yaml:"users" jsonschema_description:"Names of users."`
	Directories     []text `yaml:"directories" jsonschema_description:"Paths of directories."`
	Files           []text `yaml:"files" jsonschema_description:"Paths of files."`
	Units           []text `yaml:"units" jsonschema_description:"Names of units."`
}

// common is the part that both halves have.
func (r ImageRemoveFile) common() RemoveFile {
	return RemoveFile{r.Groups, r.Users, r.Directories, r.Files, r.Units}
}

// PackageFile is a package, by its name alone or with the users it creates.
type PackageFile struct {
	Name    text             `yaml:"name" jsonschema:"required" jsonschema_description:"Name of the package."`
	Creates CreatesFile      `yaml:"creates" jsonschema_description:"Users and groups that its installation creates, so that files can belong to them."`
	Pos     problem.Position `yaml:"-"`
}

// CreatesFile names users and groups.
type CreatesFile struct {
	Users  []text `yaml:"users" jsonschema_description:"Names of users."`
	Groups []text `yaml:"groups" jsonschema_description:"Names of groups."`
}

// DecodeYAML reads a name, or the keys.
func (p *PackageFile) DecodeYAML(c *strictyaml.Context, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		p.Pos = c.Pos(n)
		c.Decode(n, &p.Name)
		return
	}
	type plain PackageFile
	c.Decode(n, (*plain)(p))
}

// GroupFile is a group.
type GroupFile struct {
	GID    *int `yaml:"gid" jsonschema_description:"Fixed group ID."`
	System flag `yaml:"system" jsonschema_description:"Whether it is a system group."`
}

// UserFile is a user.
type UserFile struct {
	UID     *int   `yaml:"uid" jsonschema_description:"Fixed user ID."`
	Group   text   `yaml:"group" jsonschema_description:"Primary group. Default: one of the user's own name."`
	Groups  []text `yaml:"groups" jsonschema_description:"Further groups."`
	Home    text   `yaml:"home" jsonschema_description:"Home directory."`
	Shell   text   `yaml:"shell" jsonschema_description:"Login shell."`
	Comment text   `yaml:"comment" jsonschema_description:"The user's full name."`
	System  flag   `yaml:"system" jsonschema_description:"Whether it is a system user."`
	Sudo    flag   `yaml:"sudo" jsonschema_description:"Whether the user may become root without a password."`
	SSHKeys []text `yaml:"ssh_keys" jsonschema_description:"Public keys, a line each as in authorized_keys."`
}

// DirectoryFile is a directory.
type DirectoryFile struct {
	Owner text `yaml:"owner" jsonschema_description:"Owner. Default: root."`
	Group text `yaml:"group" jsonschema_description:"Group. Default: root."`
	Mode  text `yaml:"mode" jsonschema_description:"Mode in octal. Default: 0755."`
}

// FileFile is what is to be said of a file.
type FileFile struct {
	Owner   text `yaml:"owner" jsonschema_description:"Owner. Default: root."`
	Group   text `yaml:"group" jsonschema_description:"Group. Default: root."`
	Mode    text `yaml:"mode" jsonschema_description:"Mode in octal. Default: 0644, or 0755 if the file in the profile is executable."`
	Link    text `yaml:"link" jsonschema_description:"Makes it a symbolic link to this path."`
	Content text `yaml:"content" jsonschema_description:"The content, byte for byte, of a file that isn't in the folder."`
}
