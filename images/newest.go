package images

import "strings"

// Newest is the last of the files whose path begins so, as versions are ordered.
func Newest(files []File, prefix string) string {
	best := ""
	for _, f := range files {
		if strings.HasPrefix(f.Path, prefix) && f.Type == "file" && (best == "" || versionLess(best, f.Path)) {
			best = f.Path
		}
	}
	return best
}

// versionLess compares runs of digits as numbers.
func versionLess(a, b string) bool {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da > 0 && db > 0 {
			na, nb := strings.TrimLeft(a[:da], "0"), strings.TrimLeft(b[:db], "0")
			if len(na) != len(nb) {
				return len(na) < len(nb)
			}
			if na != nb {
				return na < nb
			}
			a, b = a[da:], b[db:]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
