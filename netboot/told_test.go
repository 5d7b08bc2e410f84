package netboot

import (
	"testing"
	"time"
)

// TestTold: each is told of once a day, and no more of them than can be kept.
func TestTold(t *testing.T) {
	var told Told[int]
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	count := func(from, to int) (first, last int) {
		for i := from; i < to; i++ {
			f, l := told.First(i, now)
			if f {
				first++
			}
			if l {
				last++
			}
		}
		return first, last
	}
	for i, c := range []struct{ from, to, first, last int }{
		{0, 2, 2, 0},
		{0, 2, 0, 0},
		{0, 3 * mostTold, mostTold - 2, 1},
		{0, 3 * mostTold, 0, 0},
	} {
		if first, last := count(c.from, c.to); first != c.first || last != c.last {
			t.Errorf("%d: %d are told of, and %d is the last; want %d, %d", i, first, last, c.first, c.last)
		}
	}
	if len(told.told) != mostTold {
		t.Errorf("%d are kept", len(told.told))
	}
	now = now.Add(toldFor)
	if first, _ := count(0, 2); first != 2 {
		t.Errorf("a day later, %d are told of", first)
	}
}
