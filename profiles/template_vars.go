package profiles

import (
	"slices"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
)

// A variable that no template reads does nothing: most often its name is
// misspelt. Which ones templates read is seen in their text.

// varUse is the variables that templates read.
type varUse struct {
	names map[string]bool
	any   bool // they may read others, too: by a name that is computed, or all of them
}

func (u *varUse) read(name string) {
	if u.names == nil {
		u.names = map[string]bool{}
	}
	u.names[name] = true
}

// add adds what other templates read.
func (u *varUse) add(other varUse) {
	u.any = u.any || other.any
	for n := range other.names {
		u.read(n)
	}
}

// warn warns of variables that nothing reads and no profile declares; who is
// the subject of a sentence that says so.
func (u *varUse) warn(vars strictyaml.Map[any], who string, problems *problem.List) {
	if u.any {
		return
	}
	var known []string
	for _, e := range vars {
		if u.names[e.Key] {
			continue
		}
		if known == nil {
			for n := range u.names {
				known = append(known, n)
			}
			slices.Sort(known)
		}
		fix := "remove it, or have a template read .vars." + e.Key
		if near := strictyaml.DidYouMean(e.Key, known); strings.HasPrefix(near, "did you mean") {
			fix = near
		}
		problems.Warnf(e.Pos, fix, "the variable %q does nothing: %s declares or reads it", e.Key, who)
	}
}

// varsRead finds the variables that a template reads.
func varsRead(t *template.Template) varUse {
	var u varUse
	for _, associated := range t.Templates() {
		if associated.Tree != nil {
			u.node(associated.Tree.Root, associated.Tree == t.Tree)
		}
	}
	return u
}

// node looks through a node. atRoot is set where . is known to be the whole of
// the template's data.
func (u *varUse) node(n parse.Node, atRoot bool) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, c := range n.Nodes {
				u.node(c, atRoot)
			}
		}
	case *parse.ActionNode:
		u.pipe(n.Pipe, atRoot)
	case *parse.IfNode:
		u.pipe(n.Pipe, atRoot)
		u.node(n.List, atRoot)
		u.node(n.ElseList, atRoot)
	case *parse.RangeNode:
		u.rebinding(&n.BranchNode, atRoot)
	case *parse.WithNode:
		u.rebinding(&n.BranchNode, atRoot)
	case *parse.TemplateNode:
		// Whatever is handed over whole, the other template's text shows what of it is read.
		u.pipe(n.Pipe, false)
	}
}

func (u *varUse) rebinding(b *parse.BranchNode, atRoot bool) {
	u.pipe(b.Pipe, atRoot)
	u.node(b.List, false)
	u.node(b.ElseList, atRoot)
}

func (u *varUse) pipe(p *parse.PipeNode, atRoot bool) {
	if p == nil {
		return
	}
	for _, cmd := range p.Cmds {
		args := cmd.Args
		if id, ok := args[0].(*parse.IdentifierNode); ok && id.Ident == "index" && len(args) > 2 && isVars(args[1]) {
			if name, ok := args[2].(*parse.StringNode); ok {
				u.read(name.Text)
				args = args[3:]
			}
		}
		for _, a := range args {
			u.argument(a, atRoot)
		}
	}
}

// isVars tells whether n is .vars itself.
func isVars(n parse.Node) bool {
	switch n := n.(type) {
	case *parse.FieldNode:
		return len(n.Ident) == 1 && n.Ident[0] == "vars"
	case *parse.VariableNode:
		return len(n.Ident) == 2 && n.Ident[1] == "vars"
	}
	return false
}

func (u *varUse) argument(n parse.Node, atRoot bool) {
	switch n := n.(type) {
	case *parse.DotNode:
		u.any = u.any || atRoot
	case *parse.FieldNode:
		u.fields(n.Ident)
	case *parse.VariableNode:
		if n.Ident[0] == "$" && len(n.Ident) == 1 {
			u.any = u.any || atRoot
		}
		u.fields(n.Ident[1:])
	case *parse.ChainNode:
		if p, ok := n.Node.(*parse.PipeNode); ok && len(p.Cmds) == 1 && len(p.Cmds[0].Args) == 1 && isVars(p.Cmds[0].Args[0]) {
			u.read(n.Field[0])
			return
		}
		u.argument(n.Node, atRoot)
		u.fields(n.Field)
	case *parse.PipeNode:
		u.pipe(n, atRoot)
	}
}

// fields notes a chain of fields: .vars.NAME, or .vars as a whole.
func (u *varUse) fields(chain []string) {
	switch {
	case len(chain) == 0 || chain[0] != "vars":
	case len(chain) == 1:
		u.any = true
	default:
		u.read(chain[1])
	}
}
