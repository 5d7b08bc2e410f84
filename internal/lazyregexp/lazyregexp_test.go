package lazyregexp

import "testing"

func TestNew(t *testing.T) {
	word := New(`^[a-z]+$`)
	if !word().MatchString("host") || word().MatchString("host 1") {
		t.Error("the expression doesn't match what it says")
	}
	if first, second := word(), word(); first != second {
		t.Error("the expression is compiled twice")
	}
}

func TestNewPanicsOnlyWhenUsed(t *testing.T) {
	broken := New(`(`)
	defer func() {
		if recover() == nil {
			t.Error("a broken expression is accepted")
		}
	}()
	broken()
}
