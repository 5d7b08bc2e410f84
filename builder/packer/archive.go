package packer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alisw/kiln/builder/bake"
	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

// headScript unpacks what follows it, runs applyScript there and cleans up;
// applyScript does the work.
var (
	//go:embed script/head.sh
	headScript string
	//go:embed script/apply.sh
	applyScript string
)

// newScript is one file that applies an Image half to the machine that runs it:
// headScript, and packed behind it all that is needed.
func newScript(half *Half, seal bool) ([]byte, error) {
	members, err := scriptMembers(half, seal)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(strings.ReplaceAll(headScript, "@LINE@", strconv.Itoa(strings.Count(headScript, "\n")+1)))
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o600, Size: int64(len(m.content)), ModTime: time.Unix(0, 0)}); err != nil {
			return nil, fmt.Errorf("packing %s: %w", m.name, err)
		}
		if _, err := w.Write(m.content); err != nil {
			return nil, fmt.Errorf("packing %s: %w", m.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing the image half: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("packing the image half: %w", err)
	}
	return b.Bytes(), nil
}

// member is a file of a script's archive.
type member struct {
	name    string
	content []byte
}

// scriptMembers are what applyScript finds beside it.
func scriptMembers(half *Half, seal bool) ([]member, error) {
	image := &half.Image
	// What user-data can't say, no file or account name may have here either.
	if _, err := render.ImageUserData(&plan.Plan{Image: *image}); err != nil {
		return nil, err
	}
	tree, err := render.ImageTree(image)
	if err != nil {
		return nil, err
	}
	if tree.HoldsSecrets() {
		return nil, fmt.Errorf("the image half of %s holds a secret", image.Profile)
	}
	layer := withKeys(tree, image)
	apt := &render.Tree{}
	for _, e := range layer.Entries {
		if strings.HasPrefix(e.Path, "/etc/apt/") && !e.Dir && e.Owner == "root" && e.Group == "root" {
			apt.Entries = append(apt.Entries, e)
		}
	}
	sealing, err := render.SealScript(image)
	if err != nil {
		return nil, err
	}
	list := []member{
		{"apply", []byte(applyScript)},
		{"settings", []byte(settings(image, seal))},
		{"packages", []byte(packageList(half))},
		{"locked", []byte(lockedList(half))},
		{"owners", []byte(ownerList(layer))},
		{"accounts", []byte(bake.AccountsScript(&image.Layer))},
		{"units", []byte(bake.UnitsScript(image.Units))},
		{"seal", []byte(sealing)},
	}
	for _, t := range []struct {
		name string
		tree *render.Tree
	}{{"apt.tar", apt}, {"layer.tar", layer}} {
		var b bytes.Buffer
		if err := t.tree.WriteTar(&b); err != nil {
			return nil, err
		}
		list = append(list, member{t.name, b.Bytes()})
	}
	return list, nil
}

// withKeys is the tree, and the users' SSH keys.
func withKeys(tree *render.Tree, image *plan.Image) *render.Tree {
	t := &render.Tree{Entries: slices.Clone(tree.Entries)}
	for i := range image.Users {
		u := &image.Users[i]
		if len(u.SSHKeys) == 0 {
			continue
		}
		group := u.Group
		if group == "" {
			group = u.Name
		}
		dir := path.Join(render.HomeOf(u), ".ssh")
		t.Entries = append(t.Entries,
			render.Entry{Path: dir, Owner: u.Name, Group: group, Mode: 0o700, Dir: true},
			render.Entry{Path: dir + "/authorized_keys", Owner: u.Name, Group: group, Mode: 0o600, Content: []byte(strings.Join(u.SSHKeys, "\n") + "\n")})
	}
	return t
}

// settings are what differs between applications of the script.
func settings(image *plan.Image, seal bool) string {
	yes := map[bool]string{true: "yes", false: "no"}
	steps := 5
	if seal {
		steps++
	}
	var users []string
	for i := range image.Users {
		users = append(users, image.Users[i].Name)
	}
	var b strings.Builder
	for _, s := range []struct{ name, value string }{
		{"RELEASE", image.Release.ID + " " + image.Release.Codename},
		{"ARCHITECTURE", image.Release.Architecture},
		{"USERS", " " + strings.Join(users, " ") + " "},
		{"STEPS", strconv.Itoa(steps)},
		{"SEAL", yes[seal]},
		{"ARGUMENTS", yes[len(image.KernelArguments) > 0]},
	} {
		b.WriteString(s.name + "=" + quote.Word(s.value) + "\n")
	}
	return b.String()
}

// packageList has a line for each package of the plan: its name, and its version
// where that is locked.
func packageList(half *Half) string {
	versions := map[string]string{}
	if half.Locked != nil {
		for i := range half.Locked.Packages {
			versions[half.Locked.Packages[i].Name] = half.Locked.Packages[i].Version
		}
	}
	var b strings.Builder
	for _, p := range half.Image.Packages {
		b.WriteString(strings.TrimSpace(p.Name+" "+versions[p.Name]) + "\n")
	}
	return b.String()
}

// lockedList has a line for each locked package: its name and version.
func lockedList(half *Half) string {
	if half.Locked == nil {
		return ""
	}
	var b strings.Builder
	for i := range half.Locked.Packages {
		b.WriteString(half.Locked.Packages[i].Name + " " + half.Locked.Packages[i].Version + "\n")
	}
	return b.String()
}

// ownerList has a line for each user and group that files belong to.
func ownerList(t *render.Tree) string {
	var lines []string
	for _, e := range t.Entries {
		lines = append(lines, "passwd "+e.Owner+"\n", "group "+e.Group+"\n")
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}
