package baking

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/alisw/kiln/images"
)

// OpenStore is the user's store of finished images, which keeps what hosts are about
// to be installed with.
func OpenStore() (*images.Store, error) {
	cache, err := images.CacheDir()
	if err != nil {
		return nil, err
	}
	store := &images.Store{Dir: filepath.Join(cache, "images")}
	store.Held = func(id string) error { return heldByHosts(store, id) }
	return store, nil
}

// StateDir is where a server keeps its state, unless told otherwise.
func StateDir() (string, error) {
	if dir := os.Getenv("KILN_STATE"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/kiln", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "kiln"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("there is no place for the server's state: name one with --state DIR: %w", err)
	}
	return filepath.Join(home, ".local/state/kiln"), nil
}

// CacheDir is the folder that builds keep their steps and packages in.
func CacheDir() (string, error) {
	dir, err := images.CacheDir()
	return filepath.Join(dir, "build"), err
}

// defaultCacheSize is how many bytes builds keep: a dozen images' worth.
const defaultCacheSize = 40_000_000_000

// CacheSize is how many bytes of the cache builds keep, as KILN_CACHE_SIZE says:
// 500MB or 20GB; empty is the default.
func CacheSize() (int64, error) { return parseSize(os.Getenv("KILN_CACHE_SIZE")) }

func parseSize(s string) (int64, error) {
	if s == "" {
		return defaultCacheSize, nil
	}
	number, unit := strings.TrimRight(s, "kKMGTB "), strings.TrimLeft(s, "0123456789")
	n, err := strconv.ParseInt(number, 10, 64)
	factor, ok := map[string]int64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[strings.ToUpper(strings.TrimSpace(unit))]
	if err != nil || !ok || n <= 0 || n > math.MaxInt64/factor {
		return 0, fmt.Errorf("KILN_CACHE_SIZE is %q: write how much builds may keep, such as 20GB", s)
	}
	return n * factor, nil
}
