package check

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/alisw/kiln/builder/render"
	"github.com/alisw/kiln/plan"
)

// TestSealing has a rule for all that sealing takes away: what one knows of, so does
// the other.
func TestSealing(t *testing.T) {
	script, err := render.SealScript(&plan.Image{})
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for line := range strings.Lines(script) {
		verb, rest, _ := strings.Cut(line, " ")
		if (verb == "forget" || verb == "later") && !strings.Contains(rest, "$") {
			patterns = append(patterns, strings.Fields(rest)...)
		}
	}
	fromScript := len(patterns)
	file, err := parser.ParseFile(token.NewFileSet(), "../../builder/bake/seal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != "leftovers" && spec.Names[0].Name != "alien" {
			return true
		}
		ast.Inspect(spec, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				s, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Error(err)
				}
				patterns = append(patterns, s)
			}
			return true
		})
		return false
	})
	if fromScript < 30 || len(patterns)-fromScript < 30 {
		t.Fatalf("found only %d and %d patterns of sealing's", fromScript, len(patterns)-fromScript)
	}
	table := ruleTable()
	for _, p := range patterns {
		// A file that the pattern matches.
		name := "/" + strings.NewReplacer("[0-9]", "7", "*", "any").Replace(p)
		if name == "/var/lib/dbus/machine-id" {
			continue // looked at by identity
		}
		found := false
		for at := name; at != "/" && !found; at = path.Dir(at) {
			found = ruleFor(table, strings.TrimSuffix(path.Dir(at), "/"), path.Base(at)) != nil
		}
		if !found {
			t.Errorf("sealing takes away %s, and no rule is about it", p)
		}
	}
	for _, state := range []string{"node-id", "client/client-id", "client/secret-id", "client/state.db-x", "server/x", "serf/x", "raft/x", "checks/x", "services/x"} {
		for _, dir := range []string{"/opt/nomad/data", "/opt/consul", "/var/lib/nomad", "/build/consul"} {
			if !isAgentState(dir + "/" + state) {
				t.Errorf("sealing takes away %s/%s, and it is no agent's state", dir, state)
			}
		}
	}
}

// TestDocumented has each check in the documentation.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/checks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Checks {
		if !strings.Contains(string(text), "\n| `"+c.Name+"` | ") {
			t.Errorf("docs/checks.md doesn't have the check %s", c.Name)
		}
	}
}
