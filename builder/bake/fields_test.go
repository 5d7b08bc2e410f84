package bake

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/plan"
)

// recipe is all that an image is made from.
type recipe struct {
	Image      plan.Image
	Definition images.Definition
	Mirror     Mirror
	Packages   []images.LockedPackage
	Time       int64
}

// wholeRecipe has a value in every field.
func wholeRecipe(t *testing.T) *recipe {
	t.Helper()
	entity, err := openpgp.NewEntity("test", "", "test@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	var key bytes.Buffer
	if err := entity.Serialize(&key); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "debian.gpg")
	if err := os.WriteFile(keyFile, key.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	id := 9001
	at := func(name string) plan.Origin { return plan.Origin{Profile: name} }
	release := plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"}
	return &recipe{
		Image: plan.Image{
			Profile: "p", Definition: "d", Release: release,
			AptSources: []plan.AptSource{{
				Name: "own", URIs: []string{"https://deb.example.org/own"}, Suites: []string{"bookworm"}, Components: []string{"main"},
				Fingerprint: strings.Repeat("A", 40), Key: []byte("a key"), KeyFile: "keys/own.asc", KeyURL: "https://example.org/key", Origin: at("p"),
			}},
			Packages:        []plan.Package{{Name: "acl", Origin: at("p")}},
			KernelArguments: []plan.Text{{Value: "quiet", Origin: at("p")}},
			Layer: plan.Layer{
				Groups: []plan.Group{{Name: "ops", GID: &id, System: true, Origin: at("p")}},
				Users: []plan.User{{
					Name: "op", UID: &id, Group: "ops", Groups: []string{"adm"}, Home: "/srv/op", Shell: "/bin/sh", Comment: "an op", System: true, Sudo: true,
					SSHKeys: []string{"ssh-ed25519 A"}, Origin: at("p"),
				}},
				Directories: []plan.Directory{{Path: "/srv/a", Owner: "root", Group: "root", Mode: 0o755, Origin: at("p")}},
				Files: []plan.File{
					{Path: "/etc/a", Owner: "root", Group: "root", Mode: 0o644, Content: plan.Literal([]byte("a")), Origin: at("p")},
					{Path: "/etc/l", Owner: "root", Group: "root", Mode: 0o644, Target: "a", Origin: at("p")},
				},
				Units: []plan.Unit{{Name: "a.service", State: plan.UnitEnabled, Origin: at("p")}},
			},
		},
		Definition: images.Definition{
			Name: "d", Description: "a definition", Release: release, Kernel: "linux-image-amd64", Firmware: []string{"firmware-misc"}, Packages: []string{"cloud-init"},
			Suites: []string{"bookworm"}, SecuritySuites: []string{"bookworm-security"}, Components: []string{"main"}, Keyring: "/usr/share/keyrings/debian.gpg", KeyringPackage: "debian-archive-keyring",
		},
		Mirror:   Mirror{URI: "http://deb.example.org/debian", Security: "http://deb.example.org/security", Key: keyFile},
		Packages: []images.LockedPackage{{Name: "acl", Version: "2.3", Architecture: "amd64", SHA256: strings.Repeat("a", 64), Size: 7, Source: "debian", Path: "pool/acl.deb"}},
		Time:     1700000000,
	}
}

// keys of the steps that an image is made by. The layer's content is taken to be
// another for another key: that the same content is the same disk is
// TestExplainedBuild's.
func (r *recipe) keys(t *testing.T) map[string]string {
	t.Helper()
	b := newBuilder(&Options{Image: r.Image, Definition: r.Definition, Mirror: r.Mirror, Lock: &images.Lock{}, Cache: t.TempDir(), Store: &images.Store{}})
	b.tools, b.epoch = map[string]string{"mmdebstrap": "1", "apt-get": "1", "mke2fs": "1", "qemu-img": "1", "tar": "1", "zstd": "1"}, r.Time
	sources, err := b.sourceList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set := &images.PackageSet{Time: r.Time, Packages: r.Packages}
	set.Asked, set.Firmware = packagesOf(&b.definition, &b.image)
	b.locked = set
	base := b.lockedBase(sources, set)
	layer, err := b.layerStep(Result{Key: base.Key()}, sources)
	if err != nil {
		t.Fatal(err)
	}
	made := &parts{base: Result{Key: base.Key()}, hash: layer.Key(), size: 1}
	baseDisk := b.baseDiskStep(made)
	disk := b.diskStep(Result{Key: baseDisk.Key()}, made)
	qcow2, tarball := b.qcow2Step(Result{Key: disk.Key()}), b.tarStep(made)
	keys := map[string]string{}
	for _, s := range []Step{base, layer, baseDisk, disk, qcow2, tarball} {
		keys[s.Name] = s.Key()
	}
	return keys
}

const (
	everything = "base layer basedisk disk qcow2 tar"
	theLayer   = "layer disk qcow2 tar"
	nothing    = ""
)

// fieldSteps says which steps another value of a field makes run again; the first
// line that matches counts.
var fieldSteps = []struct{ field, steps string }{
	{`\.Origin\.`, nothing},
	{`^Image\.(Profile|Definition)$`, nothing},
	// The release is the definition's; what templates make of it is in the files.
	{`^Image\.Release\.`, nothing},
	// Which packages a source has is the lock's affair, and where the key was got
	// nobody's.
	{`^Image\.AptSources\[0\]\.(Fingerprint|KeyFile|KeyURL)$`, nothing},
	{`^Image\.AptSources\[0\]\.`, theLayer},
	{`^Image\.Packages\[0\]\.Name$`, everything},
	{`^Image\.KernelArguments\[0\]\.Value$`, theLayer},
	{`^Image\.Layer\.`, theLayer},
	{`^Definition\.(Name|Description|Shipped|Pos\..*)$`, nothing},
	{`^Definition\.(Kernel|Firmware\[0\]|Packages\[0\])$`, everything},
	{`^Definition\.Release\.Codename$`, everything},
	// It's the name of the ESP's folder, and of the file with the image's sources.
	{`^Definition\.Release\.ID$`, "layer basedisk disk qcow2 tar"},
	{`^Definition\.Release\.(Version|Architecture)$`, nothing},
	{`^Definition\.(Suites|SecuritySuites|Components)\[0\]$`, theLayer},
	// The site has a key of its own here.
	{`^Definition\.(Keyring|KeyringPackage)$`, nothing},
	{`^Mirror\.(URI|Security)$`, theLayer},
	{`^Mirror\.Key$`, theLayer},
	{`^Packages\[0\]\.(Name|Version|Architecture|SHA256)$`, everything},
	// A package is its hash, wherever it's from.
	{`^Packages\[0\]\.(Size|Source|Path)$`, nothing},
	{`^Time$`, everything},
}

// TestEveryField changes every field that an image is made from, one at a time, and
// sees that exactly the right steps are others. A field that is new needs a line
// above.
func TestEveryField(t *testing.T) {
	r := wholeRecipe(t)
	before := r.keys(t)
	if again := r.keys(t); !reflect.DeepEqual(before, again) {
		t.Fatalf("the keys of the same differ: %v, %v", before, again)
	}
	used := make([]bool, len(fieldSteps))
	everyField(t, reflect.ValueOf(r).Elem(), "", func(field string, change func() (undo func())) {
		i := slices.IndexFunc(fieldSteps, func(f struct{ field, steps string }) bool { return regexp.MustCompile(f.field).MatchString(field) })
		if i < 0 {
			t.Errorf("%s: which steps does another value of it make run again? Write a line for it", field)
			return
		}
		used[i] = true
		undo := change()
		after := r.keys(t)
		undo()
		var changed []string
		for _, s := range strings.Fields(everything) {
			if before[s] != after[s] {
				changed = append(changed, s)
			}
		}
		if got := strings.Join(changed, " "); got != fieldSteps[i].steps {
			t.Errorf("%s: another value makes %q run again, not %q", field, got, fieldSteps[i].steps)
		}
	})
	for i, was := range used {
		if !was {
			t.Errorf("no field is called %s", fieldSteps[i].field)
		}
	}
}

// everyField calls visit for each value below v, with a way to change it.
func everyField(t *testing.T, v reflect.Value, name string, visit func(field string, change func() (undo func()))) {
	t.Helper()
	set := func(to reflect.Value) func() func() {
		return func() func() {
			was := reflect.New(v.Type()).Elem()
			was.Set(v)
			v.Set(to)
			return func() { v.Set(was) }
		}
	}
	switch value := v.Interface().(type) {
	case plan.Content:
		if out, err := value.Bytes(); err == nil && len(out) > 0 {
			visit(name, set(reflect.ValueOf(plan.Literal([]byte("other")))))
		}
		return
	case []byte:
		visit(name, set(reflect.ValueOf(append(slices.Clone(value), 'x'))))
		return
	case fs.FileMode:
		// A link has no mode.
		visit(name, set(reflect.ValueOf(value^0o100)))
		return
	case plan.UnitState:
		visit(name, set(reflect.ValueOf(plan.UnitMasked)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				everyField(t, v.Field(i), strings.TrimPrefix(name+"."+f.Name, "."), visit)
			}
		}
	case reflect.Slice:
		if v.Len() == 0 {
			t.Errorf("%s is empty", name)
			return
		}
		everyField(t, v.Index(0), name+"[0]", visit)
	case reflect.Pointer:
		everyField(t, v.Elem(), name, visit)
	case reflect.String:
		other := v.String() + "x"
		if name == "Mirror.Key" {
			other = otherKey(t)
		}
		visit(name, set(reflect.ValueOf(other).Convert(v.Type())))
	case reflect.Int, reflect.Int64:
		visit(name, set(reflect.ValueOf(v.Int()+1).Convert(v.Type())))
	case reflect.Bool:
		visit(name, set(reflect.ValueOf(!v.Bool())))
	default:
		t.Errorf("%s is a %s, which is nothing that is known here", name, v.Type())
	}
}

// otherKey is a file with another key.
func otherKey(t *testing.T) string {
	t.Helper()
	return wholeRecipe(t).Mirror.Key
}
