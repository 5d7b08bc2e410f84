package bake

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alisw/kiln/images"
)

// aPackage makes a package, and what a lock says of it.
func aPackage(t *testing.T, name, version string) (file string, p images.LockedPackage) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(filepath.Join(dir, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := "Package: " + name + "\nVersion: " + version + "\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: test\n"
	if err := os.WriteFile(filepath.Join(dir, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	file = dir + ".deb"
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", dir, file).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, images.LockedPackage{
		Name: name, Version: version, Architecture: "all", SHA256: hash(data), Size: int64(len(data)), Source: "own", Path: name + ".deb",
	}
}

// packagesOn is a cache, and a mirror that has two packages.
func packagesOn(t *testing.T) (*packageCache, []images.LockedPackage, map[string][]string) {
	t.Helper()
	if _, err := os.Stat(aptHelper); err != nil {
		t.Fatalf("packages are fetched by apt's own helper: %v", err)
	}
	mirror, dir := t.TempDir(), t.TempDir()
	var list []images.LockedPackage
	for _, name := range []string{"one", "two"} {
		file, p := aPackage(t, name, "1:1.0-1")
		if err := os.Rename(file, filepath.Join(mirror, p.Path)); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return &packageCache{dir: packagesDir(dir), cache: &Cache{Dir: dir}}, list, map[string][]string{"own": {"file://" + mirror}}
}

func nobody(int64, int64) {}

func TestPackagesAreFetchedOnce(t *testing.T) {
	c, list, uris := packagesOn(t)
	if err := c.fetch(t.Context(), list, uris, nobody); err != nil {
		t.Fatal(err)
	}
	// From here on, nothing has to be reached.
	if err := c.fetch(t.Context(), list, map[string][]string{"own": {"file:///nowhere"}}, nobody); err != nil {
		t.Error(err)
	}
	// What was altered in the cache is fetched anew.
	if err := os.WriteFile(c.path(list[0], ".deb"), []byte("altered"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.fetch(t.Context(), list, uris, nobody); err != nil {
		t.Error(err)
	}
	if err := verify(t.Context(), c.path(list[0], ".deb"), list[0]); err != nil {
		t.Error(err)
	}
	// So is what a full disk or a power cut has left only a part of its description of.
	whole, err := os.ReadFile(c.path(list[1], ".control"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []int{0, 5, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(c.path(list[1], ".control"), whole[:part], 0o644); err != nil {
			t.Fatal(err)
		}
		if err := c.fetch(t.Context(), list, uris, nobody); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(c.path(list[1], ".control")); err != nil || string(got) != string(whole) {
			t.Errorf("%d bytes of it were there, and now it's %q, %v", part, got, err)
		}
	}
	dir := t.TempDir()
	if err := c.repository(t.Context(), dir, "bookworm", list); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "Packages"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Package: one\nVersion: 1:1.0-1\n", "Filename: ./two_1%3a1.0-1_all.deb\n", "SHA256: " + list[1].SHA256 + "\n"} {
		if !strings.Contains(string(index), want) {
			t.Errorf("no %q in\n%s", want, index)
		}
	}
}

// TestPackagesInterrupted: what wasn't looked at to its end is no damaged package.
func TestPackagesInterrupted(t *testing.T) {
	c, list, uris := packagesOn(t)
	if err := c.fetch(t.Context(), list, uris, nobody); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.fetch(ctx, list, nil, nobody); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted, it says %v", err)
	}
	for _, p := range list {
		if !c.has(p) {
			t.Errorf("%s is gone from the cache", &p)
		}
	}
}

func TestPackagesThatCannotBeHad(t *testing.T) {
	for name, test := range map[string]struct {
		change func(list []images.LockedPackage, mirror string)
		want   string
	}{
		"altered on the mirror": {func(list []images.LockedPackage, mirror string) {
			data, _ := os.ReadFile(filepath.Join(mirror, "one.deb"))
			data[len(data)-1] ^= 1
			_ = os.WriteFile(filepath.Join(mirror, "one.deb"), data, 0o644)
		}, "one 1:1.0-1"},
		"no longer there": {func(_ []images.LockedPackage, mirror string) { _ = os.Remove(filepath.Join(mirror, "one.deb")) }, "kiln lock --update one"},
		"of no source":    {func(list []images.LockedPackage, _ string) { list[0].Source = "other" }, "the apt source other"},
	} {
		t.Run(name, func(t *testing.T) {
			c, list, uris := packagesOn(t)
			test.change(list, strings.TrimPrefix(uris["own"][0], "file://"))
			err := c.fetch(t.Context(), list, uris, nobody)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v; wanted %s", err, test.want)
			}
			t.Log(err)
			if c.has(list[0]) {
				t.Error("it's in the cache all the same")
			}
		})
	}
}

func TestPackagesTravel(t *testing.T) {
	c, list, uris := packagesOn(t)
	if err := c.fetch(t.Context(), list, uris, nobody); err != nil {
		t.Fatal(err)
	}
	var archive, again bytes.Buffer
	from, to := filepath.Dir(c.dir), t.TempDir()
	if err := ExportPackages(from, list, &archive); err != nil {
		t.Fatal(err)
	}
	if err := ExportPackages(from, []images.LockedPackage{list[1], list[0], list[1]}, &again); err != nil || !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Errorf("the same packages give other bytes: %v", err)
	}
	n, err := ImportPackages(t.Context(), to, bytes.NewReader(archive.Bytes()))
	if err != nil || n != 2 {
		t.Fatalf("%d packages, %v", n, err)
	}
	there := &packageCache{dir: packagesDir(to), cache: &Cache{Dir: to}}
	if err := there.fetch(t.Context(), list, nil, nobody); err != nil {
		t.Errorf("a build would need a mirror: %v", err)
	}
}

func TestImportOfSomethingElse(t *testing.T) {
	one := func(name, content string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
		_, _ = w.Write([]byte(content))
		_ = w.Close()
		return b.Bytes()
	}
	sum := strings.Repeat("0", 64)
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":             {nil, "no package is in it"},
		"no archive":          {bytes.Repeat([]byte("x"), 2000), "no whole archive"},
		"a path that goes up": {one("../../"+sum+".deb", "x"), "doesn't write"},
		"another hash":        {one(sum+".deb", "x"), "hasn't the hash that is its name"},
		"cut short":           {one(sum+".deb", strings.Repeat("x", 4000))[:1500], "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			n, err := ImportPackages(t.Context(), cache, bytes.NewReader(test.data))
			if err == nil || n != 0 || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%d, %v; wanted %s", n, err, test.want)
			}
			for _, dir := range []string{"debs", "tmp"} {
				if left, _ := os.ReadDir(filepath.Join(cache, dir)); len(left) > 0 {
					t.Errorf("left in %s: %v", dir, left)
				}
			}
		})
	}
}
