package bake

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// remembered gives what ask said the last time, as long as the files that its
// answer depends on are the same: by their size, their inode and their times.
// Folders stand for what is in them. What can't be remembered is asked anew.
func (c *Cache) remembered(what string, files []string, ask func() ([]byte, error)) ([]byte, error) {
	h := sha256.New()
	enc := json.NewEncoder(h)
	_ = enc.Encode([]string{what, os.Getenv("APT_CONFIG"), os.Getenv("PATH")})
	for _, f := range files {
		looks := []string{f}
		if entries, err := os.ReadDir(f); err == nil {
			for _, e := range entries {
				looks = append(looks, filepath.Join(f, e.Name()))
			}
		}
		for _, l := range looks {
			_ = enc.Encode(append([]any{l}, stamp(l)...))
		}
	}
	name := filepath.Join(c.Dir, "remembered", hex.EncodeToString(h.Sum(nil))[:32])
	if answer, err := os.ReadFile(name); err == nil {
		return answer, nil
	}
	answer, err := ask()
	if err != nil {
		return nil, err
	}
	keep(name, answer)
	return answer, nil
}

// stamp is what tells a file from what it was; nothing where it isn't there.
func stamp(name string) []any {
	info, err := os.Stat(name)
	if err != nil {
		return nil
	}
	looks := []any{info.Size(), info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		looks = append(looks, st.Ino)
	}
	return looks
}

// keep writes a file that later builds are quicker by, whole or not at all. What
// can't be written is only missed.
func keep(name string, data []byte) {
	dir := filepath.Dir(name)
	if os.MkdirAll(dir, 0o755) != nil {
		return
	}
	f, err := os.CreateTemp(dir, ".new-*") // its owner's alone
	if err != nil {
		return
	}
	_, err = f.Write(data)
	if errors.Join(err, f.Close()) != nil || os.Rename(f.Name(), name) != nil {
		_ = os.Remove(f.Name())
	}
}

func keepJSON(name string, v any) {
	if data, err := json.Marshal(v); err == nil {
		keep(name, data)
	}
}

// readJSON reads a file that a step has left in its result.
func readJSON(r Result, name string, into any) error {
	data, err := os.ReadFile(filepath.Join(r.Dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
