package ramdisk

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// archive is a cpio archive of files.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := &writer{w: &b}
	for _, e := range entries {
		w.add(e)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string) entry {
	return entry{name: name, mode: typeFile | 0o644, data: []byte(content)}
}

const modules = "usr/lib/modules/6.1.0-1-amd64/"

// initrd is like one of initramfs-tools.
func initrd(t testing.TB, more ...entry) []byte {
	t.Helper()
	return archive(t, append([]entry{
		{name: ".", mode: typeDirectory | 0o755}, {name: "lib", mode: typeLink | 0o777, data: []byte("usr/lib")},
		file("init", "#!/bin/sh"), file("bin/sh", "shell"), file("conf/secret", "a secret"),
		file(modules+"modules.dep", "kernel/e1000e.ko:\n"), file(modules+"modules.dep.bin", "binary"), file(modules+"modules.alias", "alias a e1000e\n"),
		file(modules+"kernel/e1000e.ko", strings.Repeat("module", 1000)), file(modules+"kernel/xhci-hcd.ko.zst", "packed"),
		{name: "usr/lib/firmware/b.bin", mode: typeLink | 0o777, data: []byte("a.bin")}, file("usr/lib/firmware/a.bin", "firmware"),
	}, more...)...)
}

func packed(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(b, nil)
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

// listing reads an initramfs of Make's.
func listing(t *testing.T, b []byte) []string {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r := &reader{r: z}
	var list []string
	for {
		e, err := r.next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := r.content(e)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.name, ".ko.zst") && len(data) > 10 {
			d, err := zstd.NewReader(nil)
			if err != nil {
				t.Fatal(err)
			}
			if data, err = d.DecodeAll(data, nil); err != nil {
				t.Fatal(err)
			}
			data = []byte(fmt.Sprint(len(data), " bytes"))
		}
		list = append(list, strings.TrimSpace(fmt.Sprintf("%06o %s %s", e.mode, e.name, data)))
	}
}

var wantListing = []string{
	"040755 dev", "020600 dev/console", "100755 init the installer", "040755 lib", "040755 lib/firmware", "100644 lib/firmware/a.bin firmware",
	"120755 lib/firmware/b.bin a.bin", "040755 lib/modules", "040755 lib/modules/6.1.0-1-amd64", "040755 lib/modules/6.1.0-1-amd64/kernel",
	"100644 lib/modules/6.1.0-1-amd64/kernel/e1000e.ko.zst 6000 bytes", "100644 lib/modules/6.1.0-1-amd64/kernel/xhci-hcd.ko.zst packed",
	"100644 lib/modules/6.1.0-1-amd64/modules.alias alias a e1000e", "100644 lib/modules/6.1.0-1-amd64/modules.dep kernel/e1000e.ko:",
	"040755 mnt", "040755 proc", "040755 run", "040755 sys",
}

func TestMake(t *testing.T) {
	plain := initrd(t)
	microcode := append(archive(t, file("kernel/x86/microcode/GenuineIntel.bin", "microcode")), make([]byte, 512)...)
	var first []byte
	for name, in := range map[string][]byte{
		"zstd": packed(t, plain), "gzip": gzipped(plain), "not compressed": plain,
		"microcode before": append(bytes.Clone(microcode), packed(t, plain)...),
		"two of them":      append(bytes.Clone(microcode), append(bytes.Clone(microcode), gzipped(append(plain, make([]byte, 100)...))...)...),
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c, err := Make(t.Context(), &out, bytes.NewReader(in), []byte("the installer"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(wantListing, listing(t, out.Bytes())); diff != "" {
				t.Errorf("got, other than wanted:\n%s", diff)
			}
			if c.Kernel != "6.1.0-1-amd64" || strings.Join(c.Modules, " ") != "e1000e xhci_hcd" || c.Firmware != 1 || c.Unpacked == 0 {
				t.Errorf("%+v", c)
			}
			if first == nil {
				first = out.Bytes()
			}
			if !bytes.Equal(first, out.Bytes()) {
				t.Error("the same files aren't the same bytes")
			}
		})
	}
}

// TestCPIO has cpio(1) read an archive, where it is installed.
func TestCPIO(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio(1) isn't installed: make setup installs it")
	}
	cmd := exec.Command("cpio", "-itv", "--quiet", "--numeric-uid-gid")
	cmd.Stdin = bytes.NewReader(archive(t, file("a", "12345"), entry{name: "dev/console", mode: typeCharacter | 0o600, device: [2]uint32{5, 1}}))
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "-rw-r--r--   1 0        0               5 Jan  1  1970 a\n") || !strings.Contains(string(out), "5,   1 Jan  1  1970 dev/console") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestHardLinks: the content of names for one file comes with the last of them.
func TestHardLinks(t *testing.T) {
	b := initrd(t, file("usr/lib/firmware/one", ""), file("usr/lib/firmware/two", "content"))
	for _, name := range []string{"usr/lib/firmware/one", "usr/lib/firmware/two"} {
		at := bytes.Index(b, []byte(name)) - headerSize
		copy(b[at+6:], "00000777") // inode
		copy(b[at+6+8*4:], "00000002")
	}
	var out bytes.Buffer
	if _, err := Make(t.Context(), &out, bytes.NewReader(b), nil); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(listing(t, out.Bytes()), "\n")
	if !strings.Contains(got, "firmware/one content\n") || !strings.Contains(got, "firmware/two content\n") {
		t.Error(got)
	}
}

func TestMakeRefuses(t *testing.T) {
	plain := initrd(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		in   []byte
		want string
	}{
		"nothing":       {t.Context(), nil, "it has no lib/modules/*/modules.dep"},
		"no modules":    {t.Context(), archive(t, file("init", "")), "is it one of initramfs-tools?"},
		"two kernels":   {t.Context(), initrd(t, file("lib/modules/7/kernel/a.ko", "")), "modules of two kernels, 6.1.0-1-amd64 and 7"},
		"xz":            {t.Context(), []byte("\xfd7zXZ\x00rest"), "COMPRESS in /etc/initramfs-tools/initramfs.conf has to be zstd or gzip"},
		"cut":           {t.Context(), plain[:len(plain)/2], "unexpected EOF"},
		"cut and zstd":  {t.Context(), packed(t, plain)[:200], "unexpected EOF"},
		"a lying size":  {t.Context(), bytes.Replace(plain, []byte("00001770"), []byte("0FFFFFFF"), 1), "unexpected EOF"},
		"a larger size": {t.Context(), bytes.Replace(plain, []byte("00001770"), []byte("FFFFFFFF"), 1), "a content of 4294967295"},
		"interrupted":   {ended, plain, "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Make(c.ctx, io.Discard, bytes.NewReader(c.in), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, not %q", err, c.want)
			}
		})
	}
}

func FuzzMake(f *testing.F) {
	plain := initrd(f)
	f.Add(plain)
	f.Add(packed(f, plain))
	f.Add(plain[:300])
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Make(t.Context(), io.Discard, bytes.NewReader(in), nil)
		if err == nil && c.Kernel == "" {
			t.Errorf("%+v", c)
		}
	})
}
