package regular

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOnlyRegularFiles: each way of reading takes a file and a link to one, and
// refuses at once what could make it wait.
func TestOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "file", "null": os.DevNull, "piped": "pipe"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": "", "link": "", "pipe": "a named pipe", "piped": "a named pipe", ".": "a directory", "null": "a device", "none": "no such file"} {
		f, err1 := Open(filepath.Join(dir, name))
		if err1 == nil {
			_ = f.Close()
		}
		a, err2 := ReadFile(filepath.Join(dir, name))
		b, err3 := ReadFS(os.DirFS(dir), name)
		for i, err := range []error{err1, err2, err3} {
			switch {
			case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%s, way %d: %v, want %q", name, i, err, want)
			case want != "" && name != "none" && !errors.Is(err, ErrNot):
				t.Errorf("%s, way %d: %v isn't ErrNot", name, i, err)
			}
		}
		if want == "" && (string(a) != "text" || string(b) != "text") {
			t.Errorf("%s: %q, %q", name, a, b)
		}
	}
}
