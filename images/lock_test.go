package images

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func someLock() *Lock {
	return &Lock{Sets: []PackageSet{{
		Definition: "debian-12", Profiles: []string{"alissandra", "plain"}, Time: 1700000000,
		Asked: []string{"acl", "nomad"}, Firmware: []string{"firmware-linux-free"},
		Sources: []LockedSource{
			{"debian", []string{"bookworm", "bookworm-updates"}, []string{"main"}, []string{strings.Repeat("A", 40)}},
			{"hashicorp", []string{"./"}, nil, []string{strings.Repeat("1", 40)}},
		},
		Packages: []LockedPackage{
			{"acl", "2.3.1-3", "amd64", strings.Repeat("0a", 32), 58544, "debian", "pool/main/a/acl/acl_2.3.1-3_amd64.deb"},
			{"nomad", "1:1.9.7~rc+ent-1", "amd64", strings.Repeat("12", 32), 1, "hashicorp", "nomad_1.deb"},
			{"null", "1e5", "all", strings.Repeat("3", 64), 1, "debian", "pool/n: #/null.deb"},
		},
	}}}
}

func TestLockIsReadAsWritten(t *testing.T) {
	want := someLock()
	got, problems := ParseLock(want.Encode(), "kiln.lock")
	if len(problems) > 0 {
		t.Fatal(problems.Err())
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got.Encode(), want.Encode())
	}
	set := got.Find("debian-12", []string{"acl", "nomad"}, []string{"firmware-linux-free"})
	if set == nil || set.Package("nomad").Version != "1:1.9.7~rc+ent-1" || set.Package("nginx") != nil {
		t.Errorf("found %+v", set)
	}
	for name, none := range map[string]*PackageSet{
		"another definition": got.Find("debian-13", []string{"acl", "nomad"}, []string{"firmware-linux-free"}),
		"other packages":     got.Find("debian-12", []string{"acl"}, []string{"firmware-linux-free"}),
		"other firmware":     got.Find("debian-12", []string{"acl", "nomad"}, nil),
		"no lock":            (*Lock)(nil).Find("debian-12", nil, nil),
	} {
		if none != nil {
			t.Errorf("%s: found %+v", name, none)
		}
	}
}

// TestLockDiffs shows that one package's change is one line's.
func TestLockDiffs(t *testing.T) {
	a, l := someLock().Encode(), someLock()
	l.Sets[0].Packages[0].Version = "2.3.2-1"
	b := l.Encode()
	changed := 0
	for i, line := range bytes.Split(a, []byte("\n")) {
		if !bytes.Equal(line, bytes.Split(b, []byte("\n"))[i]) {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("%d lines changed", changed)
	}
}

func TestLockThatIsNone(t *testing.T) {
	good := string(someLock().Encode())
	for name, test := range map[string]struct{ old, new, want string }{
		"empty":                {good, "", "kiln.lock: this is no lock"},
		"of another version":   {"kiln_lock: 1", "kiln_lock: 2", "kiln.lock:3:12: this is no lock that this Kiln can read"},
		"an unknown key":       {"time:", "tme:", "kiln.lock:7:3"},
		"a hash cut short":     {"sha256: \"0a", "sha256: \"", "no SHA-256"},
		"a path that leads up": {"path: pool/main/a/acl", "path: ../pool/main/a/acl", "no path below its source"},
		"an option for apt":    {"name: acl", "name: -oDebug", "a name that no package can have"},
		"no version":           {`version: "2.3.1-3"`, `version: "$(id)"`, "no version"},
		"an unknown source":    {"arch: amd64, source: debian", "arch: amd64, source: elsewhere", `the source "elsewhere"`},
		"no size":              {"size: 58544", "size: 0", "no size"},
		"a package twice":      {"name: nomad, version", "name: acl, version", "the package acl twice"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, test.old) {
				t.Fatalf("no %q in\n%s", test.old, good)
			}
			l, problems := ParseLock([]byte(strings.Replace(good, test.old, test.new, 1)), "kiln.lock")
			if l != nil || problems.Err() == nil || !strings.Contains(problems.Err().Error(), test.want) {
				t.Errorf("%v; wanted %s", problems.Err(), test.want)
			}
		})
	}
}

func TestLockOfASite(t *testing.T) {
	dir := t.TempDir()
	if l, err := ReadLock(dir); l != nil || err != nil {
		t.Errorf("a site without a lock: %v, %v", l, err)
	}
	if err := os.WriteFile(filepath.Join(dir, LockFile), someLock().Encode(), 0o644); err != nil {
		t.Fatal(err)
	}
	if l, err := ReadLock(dir); err != nil || !reflect.DeepEqual(l, someLock()) {
		t.Errorf("%v, %+v", err, l)
	}
}

func FuzzLock(f *testing.F) {
	f.Add(someLock().Encode())
	f.Add([]byte("kiln_lock: 1\nimages: []\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, problems := ParseLock(data, "kiln.lock")
		if len(problems) > 0 {
			return
		}
		again, problems := ParseLock(l.Encode(), "kiln.lock")
		if len(problems) > 0 {
			t.Fatalf("what is written can't be read: %v\n%s", problems.Err(), l.Encode())
		}
		if !bytes.Equal(l.Encode(), again.Encode()) {
			t.Errorf("%s\nis read as\n%s", l.Encode(), again.Encode())
		}
	})
}
