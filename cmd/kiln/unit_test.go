package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/alisw/kiln/internal/ui"
)

func testUI() *ui.UI { return &ui.UI{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}} }

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	link := filepath.Join(dir, "link")
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		to     string
		before os.FileMode // of f; 0: as it is
		secret bool
		want   os.FileMode
	}{
		{name, 0, false, 0o666 &^ umask()},
		{name, 0o644, true, 0o600},
		{name, 0o640, false, 0o640}, // an operator's own mode stays
		{name, 0o600, false, 0o600},
		{link, 0o644, true, 0o600}, // through the link
	} {
		if step.before != 0 {
			if err := os.Chmod(name, step.before); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeFile(step.to, []byte("new"), step.secret); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != step.want {
			t.Errorf("%s, secret %v, over %o: mode %o, want %o", step.to, step.secret, step.before, info.Mode(), step.want)
		}
	}
	if target, err := os.Readlink(link); err != nil || target != "f" {
		t.Errorf("the link has become %q, %v", target, err)
	}
	for _, no := range []string{dir, os.DevNull} {
		if err := writeFile(no, []byte("x"), true); err == nil {
			t.Errorf("writing to %s: no error", no)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".kiln-*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"plain é → \t": "plain é → \t",
		"\x1b[31m":     `\x1b[31m`,
		"a\u202eb":     `a\u202eb`,
		"a\rb":         `a\rb`,
	} {
		if got := visible(in); got != want {
			t.Errorf("visible(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "no hosts", 1: "1 host", 2: "2 hosts"} {
		if got := count(n, "host"); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
}
