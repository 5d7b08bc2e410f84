package apply

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/alisw/kiln/plan"
)

//go:embed gather.sh
var gatherScript string

// Conn runs commands on one host: a *remote.Host is one.
type Conn interface {
	// Run gives what argv writes to standard output.
	Run(ctx context.Context, stdin io.Reader, argv ...string) ([]byte, error)
	// Stream gives it line by line, while it runs.
	Stream(ctx context.Context, stdin io.Reader, line func(string), argv ...string) error
}

// State is what a host was when it was looked at, as far as a plan speaks of it.
type State struct {
	Hostname string
	Release  plan.Release // without its architecture
	Systemd  bool         // it's the host's init
	Busy     string       // who is changing the host right now; empty: nobody
	Pending  []string     // what an apply before left to do
	MACs     []string
	// Waits is set where an apply has written a network that doesn't count before
	// the next boot.
	Waits bool

	files    map[string]*entry
	large    map[string]bool // no file of Kiln's, and too large to be one
	users    map[string]*account
	groups   map[string]int
	units    map[string]string // what systemctl is-enabled says
	packages map[string]bool
	kernel   []string
}

// Format prints whose state it is, and none of it, whatever the verb: among it
// are files with secrets.
func (s State) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "the state of %s", s.Hostname) }

// entry is what stands at a path.
type entry struct {
	kind    byte // tar's: TypeReg, TypeDir, TypeSymlink
	mode    fs.FileMode
	owner   string
	group   string
	acl     string // access control list, as setfacl takes it; empty where mode says all
	target  string
	content []byte
}

type account struct {
	uid, gid    int
	home, shell string
	groups      []string
}

// Gather looks at a host, and changes nothing on it.
func Gather(ctx context.Context, c Conn, w *Want) (*State, error) {
	p := newPayload()
	p.lines("paths", w.paths())
	owners, groups := w.owners()
	p.lines("users", owners)
	p.lines("groups", groups)
	var units, packages []string
	for i := range w.Layer.Units {
		units = append(units, w.Layer.Units[i].Name)
	}
	for _, pkg := range w.Plan.Image.Packages {
		packages = append(packages, packageName(pkg.Name))
	}
	p.lines("units", units)
	p.lines("packages", packages)
	in, err := p.finish(gatherScript)
	if err != nil {
		return nil, err
	}
	out, err := c.Run(ctx, in, argv()...)
	if err != nil {
		return nil, fmt.Errorf("looking at %s: %w", w.Plan.Host.Name, explain(err))
	}
	s, err := parseState(out)
	if err != nil {
		return nil, fmt.Errorf("looking at %s: what it answers isn't understood: %w", w.Plan.Host.Name, err)
	}
	return s, nil
}

// paths are what Kiln wants to know of.
func (w *Want) paths() []string {
	paths := []string{PendingPath, manifestPath, acceptedPath, imageList, markPath, netplanPath}
	for i := range w.Layer.Files {
		paths = append(paths, w.Layer.Files[i].Path)
	}
	for i := range w.Layer.Directories {
		paths = append(paths, w.Layer.Directories[i].Path)
	}
	for i := range w.Layer.Users {
		if len(w.Layer.Users[i].SSHKeys) > 0 {
			paths = append(paths, keysFile(&w.Layer.Users[i]))
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

func keysFile(u *plan.User) string { return path.Join(u.Home, ".ssh/authorized_keys") }

// owners are the users and groups that anything is to belong to, or that are to
// be there.
func (w *Want) owners() (users, groups []string) {
	users, groups = []string{"root"}, []string{"root"}
	for i := range w.Layer.Files {
		users, groups = append(users, w.Layer.Files[i].Owner), append(groups, w.Layer.Files[i].Group)
	}
	for i := range w.Layer.Directories {
		users, groups = append(users, w.Layer.Directories[i].Owner), append(groups, w.Layer.Directories[i].Group)
	}
	for i := range w.Layer.Users {
		u := &w.Layer.Users[i]
		users, groups = append(users, u.Name), append(append(groups, u.Groups...), primaryGroup(u))
	}
	for i := range w.Layer.Groups {
		groups = append(groups, w.Layer.Groups[i].Name)
	}
	slices.Sort(users)
	slices.Sort(groups)
	return slices.Compact(users), slices.Compact(groups)
}

// packageName is a package's name without the version or the architecture that
// may be asked for.
func packageName(name string) string {
	name, _, _ = strings.Cut(name, "=")
	name, _, _ = strings.Cut(name, ":")
	return name
}

// parseState reads what gather.sh writes.
func parseState(archive []byte) (*State, error) {
	s := &State{
		files: map[string]*entry{}, large: map[string]bool{}, users: map[string]*account{}, groups: map[string]int{},
		units: map[string]string{}, packages: map[string]bool{},
	}
	r := tar.NewReader(bytes.NewReader(archive))
	facts := false
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if h.Name == "facts" {
			facts = true
			if err := s.parseFacts(string(content)); err != nil {
				return nil, err
			}
			continue
		}
		s.files[path.Join("/", h.Name)] = entryOf(h, content)
	}
	if !facts {
		return nil, errors.New("its facts are missing")
	}
	if pending := s.files[PendingPath]; pending != nil {
		s.Pending = strings.FieldsFunc(string(pending.content), func(r rune) bool { return r == '\n' })
	}
	return s, nil
}

func entryOf(h *tar.Header, content []byte) *entry {
	e := &entry{kind: h.Typeflag, mode: fs.FileMode(h.Mode & 0o7777), owner: h.Uname, group: h.Gname, target: h.Linkname, content: content}
	if e.kind == tar.TypeLink {
		// Two paths of one file: the second comes without its content, which is no
		// reason to take it for another kind.
		e.kind = tar.TypeReg
	}
	// Who has no name has a number.
	if e.owner == "" {
		e.owner = strconv.Itoa(h.Uid)
	}
	if e.group == "" {
		e.group = strconv.Itoa(h.Gid)
	}
	if acl := h.PAXRecords["SCHILY.acl.access"]; acl != "" {
		e.setACL(acl)
	}
	return e
}

// setACL takes an access control list, one entry a line. With one, what the mode
// shows for the group is the list's mask: the group's own entry counts instead.
func (e *entry) setACL(text string) {
	var entries []string
	for line := range strings.Lines(strings.ReplaceAll(text, ",", "\n")) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		line = strings.TrimSpace(line)
		if bits, ok := strings.CutPrefix(line, "group::"); ok {
			e.mode = e.mode&^0o070 | permission(bits)<<3
		}
		if line != "" {
			entries = append(entries, line)
		}
	}
	e.acl = strings.Join(entries, ",")
}

// permission reads rwx.
func permission(text string) (bits fs.FileMode) {
	for i, letter := range "rwx" {
		if strings.ContainsRune(text, letter) {
			bits |= 4 >> i
		}
	}
	return bits
}

// parseFacts reads the lines of gather.sh's fact.
func (s *State) parseFacts(text string) error {
	for line := range strings.Lines(text) {
		key, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		var err error
		switch key {
		case "hostname":
			s.Hostname = rest
		case "os":
			s.osFact(rest)
		case "systemd":
			s.Systemd = true
		case "mac":
			s.MACs = append(s.MACs, strings.ToLower(rest))
		case "network":
			s.Waits = true
		case "cmdline":
			s.kernel = strings.Fields(rest)
		case "busy":
			s.Busy = strings.TrimSpace(rest)
			if s.Busy == "" {
				s.Busy = "somebody"
			}
		case "large":
			s.large[rest] = true
		case "unit":
			name, state, _ := strings.Cut(rest, " ")
			s.units[name] = state
		case "package":
			name, state, _ := strings.Cut(rest, " ")
			s.packages[name] = state == "installed"
		case "passwd", "member", "group":
			err = s.accountFact(key, rest)
		default:
			err = fmt.Errorf("an unknown fact: %.40q", line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *State) osFact(text string) {
	key, value, _ := strings.Cut(text, "=")
	switch key {
	case "ID":
		s.Release.ID = value
	case "VERSION_ID":
		s.Release.Version = value
	case "VERSION_CODENAME":
		s.Release.Codename = value
	}
}

// accountFact reads a line of passwd or group, or the groups of a user.
func (s *State) accountFact(key, text string) (err error) {
	f := strings.Split(text, ":")
	switch {
	case key == "passwd" && len(f) == 7:
		u := &account{home: f[5], shell: f[6]}
		if u.uid, err = strconv.Atoi(f[2]); err == nil {
			u.gid, err = strconv.Atoi(f[3])
		}
		s.users[f[0]] = u
	case key == "group" && len(f) == 4:
		s.groups[f[0]], err = strconv.Atoi(f[2])
	case key == "member":
		words := strings.Fields(text)
		if len(words) == 0 || s.users[words[0]] == nil {
			return fmt.Errorf("groups of an unknown user: %.40q", text)
		}
		s.users[words[0]].groups = words[1:]
	default:
		return fmt.Errorf("an account of an unknown form: %.40q", text)
	}
	return err
}
