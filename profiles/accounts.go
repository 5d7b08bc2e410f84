package profiles

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/plan"
)

// accounts are the users and groups that something creates, by whom a file can
// be owned.
type accounts struct{ users, groups map[string]bool }

// Debian's base-passwd creates these everywhere, systemd and openssh-server
// the last ones.
var (
	baseUsers = strings.Fields("root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc _apt nobody " +
		"systemd-network messagebus sshd")
	baseGroups = strings.Fields("root daemon bin sys adm tty disk lp mail news uucp man proxy kmem dialout fax voice cdrom floppy tape sudo " +
		"audio dip www-data backup operator list irc src shadow utmp video sasl plugdev staff games users nogroup " +
		"systemd-journal systemd-network crontab input kvm render netdev messagebus _ssh")
)

// accounts gathers what is there for one half of a composed profile: what the
// image half and its packages create, and for the host half also what that and
// the site create.
func (s *Site) accounts(c *composed, of half) accounts {
	a := accounts{map[string]bool{}, map[string]bool{}}
	for _, u := range baseUsers {
		a.users[u] = true
	}
	for _, g := range baseGroups {
		a.groups[g] = true
	}
	for _, p := range c.packages {
		for _, u := range p.value.Creates.Users {
			a.users[u.V] = true
		}
		for _, g := range p.value.Creates.Groups {
			a.groups[g.V] = true
		}
	}
	for h := range c.half[:of+1] {
		for _, g := range c.half[h].groups {
			a.groups[g.key] = true
		}
		for _, u := range c.half[h].users {
			a.users[u.key] = true
			if !u.value.Group.Set() {
				a.groups[u.key] = true
			}
		}
	}
	if of == imageHalf {
		return a
	}
	for _, admin := range s.File.Admins {
		a.users[admin.Name.V], a.groups[admin.Name.V] = true, true
	}
	return a
}

var (
	accountName = lazyregexp.New(`^[a-z_][a-z0-9_-]*$`)
	packageName = lazyregexp.New(`^[a-z0-9][a-z0-9+.-]+$`)
	aptWord     = lazyregexp.New(`^[A-Za-z0-9./_-]+$`)
	uriPattern  = lazyregexp.New(`^(https?|file|mirror\+https?)://[^\s"'<>]+$`)
	unitName    = lazyregexp.New(`^[A-Za-z0-9:_.\\@-]+\.(service|socket|timer|path|mount|automount|target|slice|swap)$`)
)

// checkUserName checks the name of a user or a group.
func checkUserName(name text, at problem.Position, problems *problem.List) {
	if name.Set() {
		at = name.Pos
	}
	switch {
	case name.V == "":
		problems.Addf(at, "add name: …", "this user has no name")
	case len(name.V) > 32 || !accountName().MatchString(name.V):
		problems.Addf(at, "use up to 32 lower-case letters, digits, dashes and _", "%q can't name a user or group", name.V)
	}
}

func checkSSHKeys(keys []text, problems *problem.List) {
	for _, k := range keys {
		if err := checkSSHKey(k.V); err != nil && k.Set() {
			problems.Addf(k.Pos, "write a public key, a line as in ~/.ssh/id_ed25519.pub", "%s", err)
		}
	}
}

func checkSSHKey(line string) error {
	if strings.ContainsAny(line, "\n\r") {
		if strings.Contains(line, "PRIVATE KEY") {
			return fmt.Errorf("this is a private key, which must not stand here")
		}
		return fmt.Errorf("an SSH key is one line")
	}
	if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil {
		return fmt.Errorf("this is no SSH public key")
	}
	return nil
}

// clashes finds what the two halves, or two kinds of things, both claim.
func (b *builder) clashes() {
	type claim struct {
		what string
		at   plan.Origin
	}
	paths := map[string]claim{}
	layers := []*plan.Layer{&b.p.image.Layer, &b.p.layer}
	for i, l := range layers {
		for _, f := range l.Files {
			if other, twice := paths[f.Path]; twice {
				b.problems.Addf(f.Origin.Position, "remove one: remove: {files: ["+f.Path+"]} takes an inherited one out",
					"two files for one path: %s also stands in the %s, at %s", f.Path, other.what, other.at)
			}
			paths[f.Path] = claim{half(i).String(), f.Origin}
		}
	}
	for _, l := range layers {
		for _, d := range l.Directories {
			if f, ok := paths[d.Path]; ok {
				b.problems.Addf(d.Origin.Position, "remove one of the two", "%s is a directory here, and a file at %s", d.Path, f.at)
			}
		}
		for _, f := range l.Files {
			for dir := f.Path; strings.Count(dir, "/") > 1; {
				dir = dir[:strings.LastIndexByte(dir, '/')]
				if other, ok := paths[dir]; ok {
					b.problems.Addf(f.Origin.Position, "remove one of the two", "%s needs a directory %s, which is a file at %s", f.Path, dir, other.at)
				}
			}
		}
	}
	b.accountClashes(layers)
}

// accountClashes finds users and groups that are made twice, or share a number.
func (b *builder) accountClashes(layers []*plan.Layer) {
	users, uids := map[string]plan.Origin{}, map[int]string{}
	groups, gids := map[string]plan.Origin{}, map[int]string{}
	for _, l := range layers {
		for _, u := range l.Users {
			b.account("user", u.Name, u.UID, u.Origin, users, uids)
		}
		for _, g := range l.Groups {
			b.account("group", g.Name, g.GID, g.Origin, groups, gids)
		}
	}
}

func (b *builder) account(kind, name string, id *int, at plan.Origin, names map[string]plan.Origin, ids map[int]string) {
	if first, twice := names[name]; twice {
		b.problems.Addf(at.Position, "keep one of the two", "the %s %s is made twice: see %s", kind, name, first)
		return
	}
	names[name] = at
	if id == nil {
		return
	}
	switch other, taken := ids[*id]; {
	case *id < 1 || *id > 4294967293:
		b.problems.Addf(at.Position, "choose one from 1 to 4294967293", "%d can't be the ID of the %s %s", *id, kind, name)
	case taken:
		b.problems.Addf(at.Position, "choose another", "the %s %s has the ID %d, which %s has", kind, name, *id, other)
	}
	ids[*id] = name
}
