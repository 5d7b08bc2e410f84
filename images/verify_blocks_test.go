package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// TestCheckBlocks: a disk is what its blocks' hashes say, to the last byte.
func TestCheckBlocks(t *testing.T) {
	data := []byte("aaaabbbbcc")
	d := &Disk{Size: 10, BlockSize: 4}
	for _, b := range []string{"aaaa", "bbbb", "cc"} {
		d.Blocks = append(d.Blocks, fmt.Sprintf("%x", sha256.Sum256([]byte(b))))
	}
	check := func(data []byte, d *Disk) string {
		t.Helper()
		what, err := checkBlocks(context.Background(), bytes.NewReader(data), d, nil)
		if err != nil {
			t.Fatal(err)
		}
		return what
	}
	if what := check(data, d); what != "" {
		t.Errorf("it is as it was, but %s", what)
	}
	for i := range data {
		other := bytes.Clone(data)
		other[i] ^= 1
		if what := check(other, d); !strings.Contains(what, fmt.Sprintf("from %d on", i/4*4)) {
			t.Errorf("byte %d is another: %s", i, what)
		}
	}
	for n := range data {
		if check(data[:n], d) == "" {
			t.Errorf("the first %d bytes are enough", n)
		}
	}
	for name, what := range map[string]string{"longer": check(append(data, "ccdddd"...), d), "no disk": check(data, nil), "no blocks": check(data, &Disk{BlockSize: 4})} {
		if what == "" {
			t.Errorf("%s: that is found nowhere", name)
		}
	}
}
