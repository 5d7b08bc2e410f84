package profiles

import (
	"bytes"
	"context"
	commandline "flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/alisw/kiln/internal/problem"
)

var update = commandline.Bool("update", false, "write what is found into testdata (the run fails all the same)")

// What an archive needn't say.
var defaults = map[string]string{
	"site.yaml":                  "domain: example.org\n",
	"profiles/tiny/profile.yaml": "description: next to nothing\n",
}

// writeFiles lays out an archive's files, and the defaults, as a site.
func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{}
	for _, m := range []map[string]string{defaults, files} {
		for name, data := range m {
			all[name] = data
		}
	}
	for name, data := range all {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// archive reads a txtar archive into a map of files.
func archive(t testing.TB, text string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, f := range txtar.Parse([]byte(text)).Files {
		if _, twice := files[f.Name]; twice {
			t.Fatalf("the archive has %s twice", f.Name)
		}
		files[f.Name] = string(f.Data)
	}
	return files
}

// lines are the problems, with the site's directory left out, and without what
// is said of the key that no test has.
func lines(dir string, problems problem.List) string {
	var b strings.Builder
	for _, p := range problems {
		if !strings.Contains(p.What, "of the apt source hashicorp") {
			b.WriteString(strings.ReplaceAll(p.Error(), dir+string(filepath.Separator), "") + "\n")
		}
	}
	return b.String()
}

// TestCheck finds each problem of each site in testdata/check: its file, line
// and column, what is wrong, and how to mend it.
func TestCheck(t *testing.T) {
	archives, err := filepath.Glob("testdata/check/*.txtar")
	if err != nil || len(archives) < 20 {
		t.Fatalf("too few archives: %v, %v", archives, err)
	}
	for _, file := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			files := archive(t, string(text))
			want := files["problems"]
			delete(files, "problems")
			dir := writeFiles(t, files)
			problems, _, err := Check(context.Background(), dir)
			if err != nil {
				t.Fatal(err)
			}
			got := lines(dir, problems)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("the problems of %s (-want +got):\n%s", file, d)
			}
			if *update && want != got {
				if i := bytes.Index(text, []byte("-- problems --\n")); i >= 0 {
					text = text[:i]
				}
				if err := os.WriteFile(file, []byte(string(text)+"-- problems --\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, p := range problems {
				if p.File == "" {
					t.Errorf("no file: %s", p.Error())
				}
			}
		})
	}
}

// TestCheckMany: warnings of many hosts fail nothing, and the problems of many
// end somewhere.
func TestCheckMany(t *testing.T) {
	for advertise, want := range map[string]int{"203.0.113.1": 0, "0.0.0.0": 1001} {
		var hosts strings.Builder
		for i := range 3000 {
			fmt.Fprintf(&hosts, "- {name: h%d, profile: tiny, advertise: %s, interfaces: {eno1: {addresses: [10.1.%d.%d/8]}}}\n", i, advertise, i/200, i%200+1)
		}
		problems, n, err := Check(context.Background(), writeFiles(t, map[string]string{"hosts.yaml": hosts.String()}))
		if err != nil {
			t.Fatal(err)
		}
		errors, warnings := 0, 0
		for _, p := range problems {
			if p.Warning {
				warnings++
			} else {
				errors++
			}
		}
		if errors != want || warnings > 1000 || (want == 0) != (n == 3000) || (want == 0) != (problems.Err() == nil) {
			t.Errorf("advertising %s: %d problems and %d warnings of %d hosts", advertise, errors, warnings, n)
		}
	}
}
