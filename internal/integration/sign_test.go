//go:build integration

package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/plan"
)

// signing is a store with one image, and a pair of keys that minisign made.
type signing struct {
	dir, kiln, image string
}

// The password of encrypted.key; plain.key has none.
const signingPassword = "hush"

func newSigning(t *testing.T) *signing {
	t.Helper()
	program(t, "minisign")
	s := &signing{dir: t.TempDir()}
	s.kiln = filepath.Join(s.dir, "kiln")
	build := exec.Command("go", "build", "-o", s.kiln, "./cmd/kiln")
	build.Dir = repository(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	store := &images.Store{Dir: filepath.Join(s.dir, "cache", "images")}
	work, err := store.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = work.Remove() }() // what is put has gone
	m := &images.Manifest{
		Profile: "tiny", Definition: "debian-12", Created: time.Unix(1_700_000_000, 0),
		Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
		Files:   []images.File{{Path: "/etc/ü", Type: "file", Mode: "0644", Size: 3, SHA256: strings.Repeat("0a", 32), Attributes: map[string]string{"user.b": "", "user.a": "00"}}},
		Disk:    &images.Disk{Size: 9000, BlockSize: images.BlockSize, Blocks: []string{strings.Repeat("0b", 32)}},
	}
	for name, format := range map[string]images.Format{"image.raw": images.FormatRaw, "root.tar.zst": images.FormatTar, "netboot/chunks/000001.zst": images.FormatNetboot} {
		place(t, filepath.Join(work.Path, name), strings.Repeat(name, 1000))
		a, err := images.NewArtifact(work.Path, name, format)
		if err != nil {
			t.Fatal(err)
		}
		m.Artifacts = append(m.Artifacts, a)
	}
	m.ID = m.ContentID()
	if err := store.Put(m, work.Path); err != nil {
		t.Fatal(err)
	}
	s.image = store.Path(m.ID, "")
	s.must(t, "", "minisign", "-G", "-W", "-p", "plain.pub", "-s", "plain.key")
	return s
}

// try runs a program in the folder of the keys.
func (s *signing) try(input, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = s.dir, strings.NewReader(input)
	cmd.Env = append(os.Environ(), "KILN_CACHE="+filepath.Join(s.dir, "cache"), "KILN_SIGN_PASSWORD="+signingPassword)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *signing) must(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	out, err := s.try(input, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return out
}

// minisign verifies the image's manifest, as its users would by hand.
func (s *signing) minisign(key string) (string, error) {
	return s.try("", "minisign", "-V", "-p", key, "-m", filepath.Join(s.image, images.ManifestName))
}

// TestMinisignAndKiln: what kiln signs minisign verifies, and the other way round.
func TestMinisignAndKiln(t *testing.T) {
	s := newSigning(t)
	s.must(t, signingPassword+"\n"+signingPassword+"\n", "minisign", "-G", "-p", "encrypted.pub", "-s", "encrypted.key")
	manifest := filepath.Join(s.image, images.ManifestName)
	for _, key := range []string{"plain", "encrypted"} {
		s.must(t, "", s.kiln, "images", "sign", "tiny", "--key", key+".key")
		out, err := s.minisign(key + ".pub")
		if err != nil || !strings.Contains(out, "\tfile:manifest.json\timage:"+filepath.Base(s.image)) {
			t.Errorf("%s: minisign says %v\n%s", key, err, out)
		}
		// -H takes no signature but those of today's format.
		s.must(t, "", "minisign", "-V", "-H", "-p", key+".pub", "-m", manifest)
	}
	if out, err := s.minisign("plain.pub"); err == nil {
		t.Errorf("another key has signed it, and minisign takes it:\n%s", out)
	}
	// -l is the format of earlier years.
	for _, args := range [][]string{{"plain", "-S"}, {"plain", "-S", "-l"}, {"encrypted", "-S"}} {
		if err := os.Remove(manifest + ".minisig"); err != nil {
			t.Fatal(err)
		}
		key := args[0]
		s.must(t, signingPassword+"\n", "minisign", append(args[1:], "-s", key+".key", "-m", manifest)...)
		out := s.must(t, "", s.kiln, "images", "verify", "tiny", "--key", key+".pub")
		if !strings.Contains(out, "and its files are what was signed") {
			t.Errorf("%s: %s", args, out)
		}
	}
	if out, err := s.try("", s.kiln, "images", "verify", "tiny", "--key", "plain.pub"); err == nil {
		t.Errorf("another key has signed it, and kiln takes it:\n%s", out)
	}
}

// TestChangedImageIsFound changes bytes of what was signed: kiln, minisign and
// sha256sum agree.
func TestChangedImageIsFound(t *testing.T) {
	s := newSigning(t)
	s.must(t, "", s.kiln, "images", "sign", "tiny", "--key", "plain.key")
	program(t, "jq")
	// As docs/trust.md says.
	byHand := func() (string, error) {
		return s.try("", "sh", "-ec", `minisign -Q -V -p plain.pub -m "$1/manifest.json"; cd "$1"; sha256sum --quiet --strict -c SHA256SUMS
		jq -r '.artifacts[] | select(.sha256) | .sha256 + "  " + .name' manifest.json | sort -k 2 | cmp - SHA256SUMS
		test "$(jq -c '[.profile, .definition], .files, (.disk // empty)' manifest.json | sha256sum)" = "$(basename "$1")  -"`, "sh", s.image)
	}
	if out, err := byHand(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.must(t, "", s.kiln, "images", "verify", "tiny", "--key", "plain.pub")
	for _, name := range []string{"image.raw", "root.tar.zst", "netboot/chunks/000001.zst", images.ManifestName, images.SumsName} {
		file := filepath.Join(s.image, name)
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, len(good) / 3, len(good) - 2} {
			changed := bytes.Clone(good)
			changed[at] ^= 1
			if err := os.WriteFile(file, changed, 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := s.try("", s.kiln, "images", "verify", filepath.Base(s.image), "--key", "plain.pub")
			if err == nil || !strings.Contains(out, name) && name != images.ManifestName {
				t.Errorf("byte %d of %s was changed: kiln says %v\n%s", at, name, err, out)
			}
			if out, err := byHand(); err == nil {
				t.Errorf("byte %d of %s was changed: minisign and sha256sum say\n%s", at, name, out)
			}
		}
		if err := os.WriteFile(file, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.must(t, "", s.kiln, "images", "verify", "tiny", "--key", "plain.pub")
}

// TestPasswordOnATerminal: it is asked for and not shown, and ^C leaves the terminal
// as it was.
func TestPasswordOnATerminal(t *testing.T) {
	s := newSigning(t)
	program(t, "script")
	// Those that minisign makes take some seconds, and a GiB, to be decrypted.
	key, err := os.ReadFile(filepath.Join(repository(t), "images/testdata/encrypted.key"))
	if err != nil {
		t.Fatal(err)
	}
	place(t, filepath.Join(s.dir, "encrypted.key"), string(key))
	// The shell isn't to end with ^C.
	const call = `trap : INT; unset KILN_SIGN_PASSWORD; "$KILN" images sign tiny --key encrypted.key; echo "status $?"; stty -a | grep -o -- ' -\?echo '`
	place(t, filepath.Join(s.dir, "call"), call)
	for _, c := range []struct{ name, typed, want string }{
		{"the password", signingPassword + "\n", "status 0\r\n"},
		{"another", "hash and salt\n", "can't be decrypted: the password is wrong"},
		{"^C", "\x03", "status 130\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := s.onTerminal(t, c.typed)
			if !strings.Contains(got, c.want) || strings.Contains(got, strings.TrimSpace(c.typed)) && c.typed != "\x03" {
				t.Errorf("it says %q, and no %q", got, c.want)
			}
			if strings.Contains(got, "-echo ") || !strings.Contains(got, " echo ") {
				t.Errorf("the echo stays off:\n%q", got)
			}
		})
	}
}

// onTerminal signs on a terminal.
func (s *signing) onTerminal(t *testing.T, text string) string {
	t.Helper()
	env := append(os.Environ(), "KILN_CACHE="+filepath.Join(s.dir, "cache"), "KILN="+s.kiln)
	return onTerminal(t, s.dir, env, "Password of encrypted.key: ", text, true)
}

// onTerminal runs the script called call on a terminal of its own, types text once it
// is asked for, and gives all that the terminal shows. What is unseen is typed once
// the echo is off.
func onTerminal(t *testing.T, dir string, env []string, prompt, text string, unseen bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// exec: a shell between the two (dash's, where SHELL isn't set) would die of the ^C.
	cmd := exec.CommandContext(ctx, "script", "-qec", "exec sh call", "/dev/null")
	cmd.Dir, cmd.Env = dir, env
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	buf := make([]byte, 4096)
	for typed := false; ; {
		n, err := out.Read(buf)
		said.Write(buf[:n])
		if !typed && strings.Contains(said.String(), prompt) {
			typed = true
			if unseen {
				// What is typed before the echo is off would be shown.
				eventually(t, "the echo is off", func() bool { return echoOff(cmd.Process.Pid) })
			}
			if _, err := in.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, said.String())
	}
	return said.String()
}

// echoOff tells whether the terminal that a child of the process has doesn't echo.
func echoOff(pid int) bool {
	out, err := exec.Command("sh", "-c", `for p in $(ps -o pid= --ppid "$1"); do stty -a </proc/$p/fd/0; done`, "sh", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "-echo ")
}
