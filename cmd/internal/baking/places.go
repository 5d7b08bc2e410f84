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

// OpenStore is the user's store of finished images.
func OpenStore() (*images.Store, error) {
	cache, err := images.CacheDir()
	if err != nil {
		return nil, err
	}
	return &images.Store{Dir: filepath.Join(cache, "images")}, nil
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
