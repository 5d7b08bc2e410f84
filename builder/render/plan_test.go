package render

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

var update = flag.Bool("update", false, "write the golden files anew, and fail")

// golden compares got with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if err == nil && string(want) == string(got) {
		return
	}
	if !*update {
		t.Fatalf("%s (%v) differs; look at it after: go test ./builder/render -update\ngot:\n%s", path, err, got)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, got, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Errorf("%s written anew: look at the difference, then run again", path)
}

// testPlan has one of everything that the types can say.
func testPlan() *plan.Plan { return testplan.New() }
