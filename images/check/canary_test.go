package check

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
)

// value is a secret whose base64 has characters of both alphabets.
const value = "s3cr3t?~\xff\xfe of a site\xfb\xef\xbe"

var canaries = []Canary{secret("teigi://site/one", value), secret("env://OTHER", "another one that is nowhere")}

func zstandard(t *testing.T, text string) string {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(z.EncodeAll([]byte(text), nil))
}

// initramfs is two archives: one as it is, and one compressed.
func initramfs(t *testing.T, text string) string {
	member := func(name, content string) string {
		s := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
		s += strings.Repeat("\x00", -len(s)&3) + content
		return s + strings.Repeat("\x00", -len(s)&3)
	}
	return member("microcode", "12345") + member("TRAILER!!!", "") + strings.Repeat("\x00", 512) + zstandard(t, member("etc/secret", text)+member("TRAILER!!!", ""))
}

func TestCanaries(t *testing.T) {
	in := func(prefix string, e *base64.Encoding) string {
		return e.EncodeToString([]byte(prefix + value + "..."))
	}
	wrapped := func(s string, at int) string { return s[:at] + "\n" + s[at:] }
	tests := map[string]string{
		"raw":        "x" + value,
		"base64 0":   in("", base64.StdEncoding),
		"base64 1":   in("a", base64.StdEncoding),
		"base64 2":   in("ab", base64.StdEncoding),
		"base64 url": in("", base64.URLEncoding), "base64 url 1": in("a", base64.URLEncoding), "base64 url 2": in("ab", base64.RawURLEncoding),
		"wrapped 3": wrapped(in("", base64.StdEncoding), 3), "wrapped 12": wrapped(in("", base64.StdEncoding), 12), "wrapped 20": wrapped(in("", base64.StdEncoding), 20),
		"hex": hex.EncodeToString([]byte(value)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(value))),
		"gzip": gzipped(t, strings.Repeat("far into it ", 1<<18)+value), "zstd": zstandard(t, "x"+value), "gzip, base64": gzipped(t, in("a", base64.StdEncoding)),
		"initramfs": initramfs(t, value),
		// Between two of the pieces in which streams are searched.
		"gzip, border": gzipped(t, strings.Repeat("x", streamPiece+2*newSearch(canaries, false).overlap-5)+value),
	}
	i := newImage(t)
	for name, content := range tests {
		i.file("srv/"+name, content, 0o644)
	}
	i.file("srv/with "+strings.ToValidUTF8(value[:8], "")+hex.EncodeToString([]byte(value)), "in a name", 0o644)
	found := map[string]bool{}
	for _, f := range findingsOf(t, i.disk(), Options{Canaries: canaries}) {
		if f.Check != Canaries || !strings.Contains(f.What, "teigi://site/one") {
			t.Errorf("found %s", f.String())
		}
		found[strings.TrimPrefix(f.Path, "/srv/")] = true
		for _, form := range formsOf(canaries) {
			if b, err := json.Marshal(f); err != nil || strings.Contains(fmt.Sprintf("%v %+v %s", f, f, b), form.text) {
				t.Errorf("the secret is shown: %v", err)
			}
		}
	}
	for name := range tests {
		if !found[name] {
			t.Errorf("%s: nothing is found", name)
		}
		delete(found, name)
	}
	if !found["/srv"] || len(found) != 1 {
		t.Errorf("found %v, and the folder with the name in it it should be", found)
	}
}

// TestPlaces has the secret where no file is.
func TestPlaces(t *testing.T) {
	i := newImage(t)
	i.file("srv/file", strings.Repeat(value, 1000), 0o644)
	i.file("srv/file.gz", gzipped(t, value), 0o644)
	i.file("srv/pieces", strings.Repeat("x", 4*4096), 0o644)
	clean := i.disk()
	canary := Options{Canaries: canaries}
	change := func(name string, change func(*os.File, int64), prefix string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "disk")
		b, err := os.ReadFile(clean)
		i.do(err)
		i.do(os.WriteFile(file, b, 0o644))
		debugfs(t, file, "rm srv/file")
		debugfs(t, file, "rm srv/file.gz")
		if change == nil {
			only(t, findingsOf(t, file, canary), Canaries, prefix)
			return
		}
		// Of the files that were removed, nothing is to be left.
		b, err = os.ReadFile(file)
		i.do(err)
		b = bytes.ReplaceAll(b, []byte(value), make([]byte, len(value)))
		b = bytes.ReplaceAll(b, []byte(gzipped(t, value)), make([]byte, len(gzipped(t, value))))
		i.do(os.WriteFile(file, b, 0o644))
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		i.do(err)
		defer f.Close()
		change(f, int64(len(b)))
		if found := findingsOf(t, file, canary); len(found) == 0 {
			t.Errorf("%s: nothing is found", name)
		} else {
			only(t, found, Canaries, prefix)
		}
	}
	at := func(offset func(int64) int64) func(*os.File, int64) {
		return func(f *os.File, size int64) {
			_, err := f.WriteAt([]byte(value), offset(size))
			i.do(err)
		}
	}
	change("deleted", nil, "a block that no file has any more")
	change("BIOS", at(func(int64) int64 { return 3 << 20 }), "the partition bios")
	change("ESP", at(func(int64) int64 { return disk.Block + 100 }), "the partition esp")
	change("across a border", at(func(int64) int64 { return 2*disk.Block - 7 }), "the partition esp")
	change("tail", at(func(size int64) int64 { return size - disk.Block + 100 }), "outside the partitions")
	change("gap", at(func(int64) int64 { return 100 << 10 }), "outside the partitions")
	change("slack", func(f *os.File, size int64) {
		d, err := openDisk(f.Name())
		i.do(err)
		defer d.Close()
		tree, err := readTree(t.Context(), d)
		i.do(err)
		n := tree.stat("/etc/hosts")
		for _, p := range tree.pieces {
			if p.inode == n.inode {
				_, err := f.WriteAt([]byte(value), p.start+1000)
				i.do(err)
			}
		}
	}, "behind the end of /etc/hosts")
	// A file in two pieces, with the secret half in each.
	change("pieces", func(f *os.File, size int64) { inPieces(t, f) }, "/srv/pieces")
}

// inPieces exchanges two blocks of a file in its list of extents, and puts a
// secret where they meet.
func inPieces(t *testing.T, f *os.File) {
	t.Helper()
	var block uint32
	if _, err := fmt.Sscan(debugfs(t, f.Name(), "bmap srv/pieces 0"), &block); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	extent := func(b []byte, logical uint32, blocks uint16, physical uint32) []byte {
		b = le.AppendUint16(le.AppendUint32(b, logical), blocks)
		return le.AppendUint32(le.AppendUint16(b, 0), physical)
	}
	table := make([]byte, 16<<20)
	if _, err := f.ReadAt(table, rootAt); err != nil {
		t.Fatal(err)
	}
	// The list stands behind a header of 12 bytes, whose third is their number.
	at := bytes.Index(table, extent(nil, 0, 4, block))
	if at < 12 || table[at-10] != 1 {
		t.Fatalf("the file's list of extents isn't found: %d", at)
	}
	table[at-10] = 3
	copy(table[at:], extent(extent(extent(nil, 0, 1, block), 1, 1, block+2), 2, 1, block+1))
	copy(table[int64(block+1)*4096-9:], value[:9])
	copy(table[int64(block+2)*4096:], value[9:])
	if _, err := f.WriteAt(table, rootAt); err != nil {
		t.Fatal(err)
	}
}

func TestDeletedGzip(t *testing.T) {
	i := newImage(t)
	i.file("srv/file.gz", gzipped(t, value), 0o644)
	file := i.disk()
	debugfs(t, file, "rm srv/file.gz")
	found := findingsOf(t, file, Options{Canaries: canaries})
	only(t, found, Canaries, "a block that no file has any more")
	if len(found) != 1 || !strings.HasSuffix(found[0].What, "in gzip") {
		t.Errorf("found %v", found)
	}
}

func TestTooShort(t *testing.T) {
	list := []Canary{secret("a", "1234567\n"), secret("b", "12345678"), secret("c", ""), {Name: "d"}}
	if got := fmt.Sprint(TooShort(list)); got != "[a c d]" {
		t.Errorf("TooShort() = %s", got)
	}
}

// memory is Verdicts, and what was asked for.
type memory struct {
	mu    sync.Mutex
	keys  map[string]bool
	asked int
	new   int
}

func (m *memory) Known(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	return m.keys[key]
}

func (m *memory) Store(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[key] = true
	m.new++
}

// TestVerdicts has only what is new searched, and all of it when another secret is
// searched for.
func TestVerdicts(t *testing.T) {
	i := newImage(t)
	file := i.disk()
	hashes := func() *images.Manifest {
		t.Helper()
		b, err := os.ReadFile(file)
		i.do(err)
		m := &images.Manifest{Disk: &images.Disk{Size: int64(len(b)), BlockSize: images.BlockSize}}
		for ; len(b) > 0; b = b[min(len(b), images.BlockSize):] {
			m.Disk.Blocks = append(m.Disk.Blocks, fmt.Sprintf("%x", sum(b[:min(len(b), images.BlockSize)])))
		}
		return m
	}
	v := &memory{keys: map[string]bool{}}
	run := func(c []Canary, m *images.Manifest) ([]Finding, int) {
		v.new = 0
		return findingsOf(t, file, Options{Canaries: c, Manifest: m, Verdicts: v}), v.new
	}
	m := hashes()
	if found, n := run(canaries, m); len(found) > 0 || n == 0 {
		t.Errorf("at first: %v, %d verdicts", found, n)
	}
	if found, n := run(canaries, m); len(found) > 0 || n > 0 {
		t.Errorf("the same again: %v, %d verdicts", found, n)
	}
	if found, n := run(canaries, nil); len(found) > 0 || n > 3 {
		t.Errorf("without hashes: %v, %d verdicts", found, n) // of files, which have other keys
	}
	if found, n := run(canaries[:1], m); len(found) > 0 || n == 0 {
		t.Errorf("for other secrets: %v, %d verdicts", found, n)
	}
	for key := range v.keys {
		for _, form := range formsOf(canaries) {
			if strings.Contains(key, form.text) {
				t.Error("a verdict's key has the secret")
			}
		}
	}
	// A block that changes is searched anew, and what has something each time.
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	i.do(err)
	_, err = f.WriteAt([]byte(value), 2*disk.Block-7)
	i.do(err)
	_, err = f.WriteAt([]byte(value), 3*disk.Block+7)
	i.do(err)
	i.do(f.Close())
	m = hashes()
	for range 2 {
		found, _ := run(canaries, m)
		only(t, found, Canaries, "the partition esp")
		if len(found) != 2 {
			t.Errorf("found %v", found)
		}
	}
	m.Disk.Blocks = m.Disk.Blocks[1:]
	if _, err := Disk(t.Context(), file, Options{Manifest: m}); err == nil || !strings.Contains(err.Error(), "the manifest is another image's") {
		t.Errorf("with another image's manifest: %v", err)
	}
}

func TestFormMatch(t *testing.T) {
	for shift := range 3 {
		text := "12345678"
		b := inBase64(text, shift)
		if len(b) < canaryWindow {
			t.Errorf("%d: only %d characters", shift, len(b))
		}
		for _, tail := range []string{"", "a", "ab", "abc"} {
			if all := base64.StdEncoding.EncodeToString([]byte("xyz"[:shift] + text + tail)); !strings.Contains(all, b) {
				t.Errorf("%s isn't in %s", b, all)
			}
		}
	}
}
