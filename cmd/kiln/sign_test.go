package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
)

// TestSignAfterABuild: what kiln build --sign does with a built image, and what it
// says without.
func TestSignAfterABuild(t *testing.T) {
	key := ownKey(t)
	pub, err := images.ReadPublicKey("../../images/testdata/plain.pub")
	if err != nil {
		t.Fatal(err)
	}
	store := &images.Store{Dir: filepath.Join(t.TempDir(), "images")}
	var said bytes.Buffer
	u := &ui.UI{Err: &said}
	for _, step := range []struct {
		key    string
		signed bool
		want   string
	}{
		{"", false, ""},
		{key, true, "signed "},
		{"", false, "isn't signed any more, since its manifest is a new one: kiln images sign "},
		{"", false, ""},
		{key, true, "signed "},
		{key, true, "signed "},
	} {
		said.Reset()
		sign, err := newSigner(t.Context(), step.key, store, u)
		if err != nil {
			t.Fatal(err)
		}
		m := rebuilt(t, store)
		if err := sign.built(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		_, _, err = store.Verified(m.ID, []images.PublicKey{pub})
		if (err == nil) != step.signed || !step.signed && !errors.Is(err, images.ErrUnsigned) {
			t.Errorf("signed: %v, want %v", err, step.signed)
		}
		if got := said.String(); !strings.Contains(got, step.want) || step.want == "" && got != "" {
			t.Errorf("it says %q, want %q", got, step.want)
		}
	}
}

// rebuilt puts an image of no files into the store, as another build would.
func rebuilt(t *testing.T, store *images.Store) *images.Manifest {
	t.Helper()
	work, err := store.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer work.Remove()
	m := &images.Manifest{Profile: "plain", Definition: "debian-12", Created: time.Now()}
	m.ID = m.ContentID()
	if err := store.Put(m, work.Path); err != nil {
		t.Fatal(err)
	}
	return m
}

// ownKey is a copy of the test's secret key, since git keeps no modes.
func ownKey(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../images/testdata/plain.key")
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return key
}

// TestSignInterrupted: ^C while files are compared leaves the image unsigned.
func TestSignInterrupted(t *testing.T) {
	store := &images.Store{Dir: filepath.Join(t.TempDir(), "images")}
	sign, err := newSigner(t.Context(), ownKey(t), store, testUI())
	if err != nil {
		t.Fatal(err)
	}
	m := rebuilt(t, store)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sign.built(ctx, m); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := store.Signature(m.ID); !errors.Is(err, images.ErrUnsigned) {
		t.Errorf("interrupted, it has signed: %v", err)
	}
}

func TestBetween(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	long := strings.Repeat("word ", 20)
	for _, c := range [][3]string{
		{"", "new", "none → new"},
		{hash, strings.Repeat("0b", 32), "0a0a0a0a0a0a → 0b0b0b0b0b0b"},
		{long + "a b", long + "b c", "-a +c"},
		{"x\ny\n", "x\nz w\n", "-y; +z w"},
		{long + "a b", long + "b a", "in another order"},
		{"1.9.6-1 amd64 " + hash, "1.9.7-1 amd64 " + hash, "-1.9.6-1 +1.9.7-1"},
	} {
		if got := between(c[0], c[1]); got != c[2] {
			t.Errorf("%q and %q: got %q, want %q", c[0], c[1], got, c[2])
		}
	}
	if got := between(long, strings.Repeat("é", 1000)); len([]rune(got)) > 250 {
		t.Errorf("it has %d characters", len(got))
	}
}
