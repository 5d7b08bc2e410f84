package check

// search looks for everything at once.
type search struct {
	canaries []Canary
	forms    []form
	literals *matcher // of forms
	anchors  *matcher // of patterns
	anchorOf []anchor // by the matcher's numbers
	overlap  int      // how far anything reaches, at most, in bytes
	hash     string
}

type anchor struct {
	pattern int
	text    string
}

// hit is something that was found, in bytes of what was searched.
type hit struct {
	form, pattern int // one of them is -1
	start, end    int
}

func newSearch(canaries []Canary, remembered bool) *search {
	s := &search{canaries: canaries, forms: formsOf(canaries), overlap: 2 * keyContext}
	if remembered {
		s.hash = searchHash(s.forms)
	}
	for _, f := range s.forms {
		// Line ends, of two bytes each, are at every 16th one at the most.
		s.overlap = max(s.overlap, len(f.text)+len(f.text)/8+16)
	}
	s.literals = newMatcher(windowsOf(s.forms), canaryWindow, 4)
	var windows []window
	for p, pattern := range patterns {
		for _, a := range pattern.anchors {
			windows = append(windows, window{len(s.anchorOf), a.at, a.text[a.at : a.at+anchorWindow]})
			s.anchorOf = append(s.anchorOf, anchor{p, a.text})
		}
	}
	s.anchors = newMatcher(windows, anchorWindow, 3)
	return s
}

// scan calls each for all that is found in b.
func (s *search) scan(b []byte, each func(hit)) {
	s.literals.scan(b, func(id, at int) {
		// The gram may be one of either window: all that counts is where it stands.
		if f := &s.forms[id]; !f.folded {
			if start, end, ok := f.match(b, at, 0); ok {
				each(hit{id, -1, start, end})
			}
		} else if start, end, ok := f.find(b, at); ok {
			each(hit{id, -1, start, end})
		}
	})
	s.anchors.scan(b, func(id, at int) {
		a := &s.anchorOf[id]
		if at < 0 || at+len(a.text) > len(b) || string(b[at:at+len(a.text)]) != a.text {
			return
		}
		if start, end, ok := patterns[a.pattern].verify(b, at, a.text); ok {
			each(hit{-1, a.pattern, start, end})
		}
	})
}

// find compares a form that may have line ends with what is around the place
// where it would begin if it had none.
func (f *form) find(b []byte, at int) (start, end int, ok bool) {
	for _, offset := range []int{0, canaryWindow} {
		if offset >= len(f.text) || at+offset < 0 || at+offset >= len(b) {
			continue
		}
		if start, end, ok = f.match(b, at+offset, offset); ok {
			return start, end, true
		}
	}
	return 0, 0, false
}
