package driver

// match is fnmatch(3) without flags, as modprobe uses it: *, ?, [a-z], [!a-z] and
// a backslash. A pattern that is malformed matches nothing. The time that it takes
// grows with the product of the lengths, whatever the pattern.
func match(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0 // where the last * is, and how far it has gone
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, i
			p++
			continue
		}
		if p < len(pattern) {
			if n, ok := matchOne(pattern[p:], s[i]); ok {
				p += n
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne compares c with what the pattern begins with, and says how long that is.
func matchOne(pattern string, c byte) (length int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) < 2 {
			return 0, false
		}
		return 2, pattern[1] == c
	case '[':
		return matchSet(pattern, c)
	}
	return 1, pattern[0] == c
}

// matchSet compares c with a set in brackets. A ] that comes first is one of the set.
func matchSet(pattern string, c byte) (length int, ok bool) {
	i := 1
	not := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if not {
		i++
	}
	found := false
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, found != not
		}
		low, high := pattern[i], pattern[i]
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			high = pattern[i+2]
			i += 2
		}
		found = found || low <= c && c <= high
		i++
	}
	return 0, false
}
