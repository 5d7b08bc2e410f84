package profiles

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/template"
	"text/template/parse"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// Most of what the templates of a profile say is the same for each of its
// hosts: it asks for the site, the variables, the release. These parts are run
// once, and their text put in their place; what is left for each host is little.
// A part is one that asks for no host if it runs where there is none. All this
// costs more than one host takes, so that the first one has the templates as they
// were written.

// kind is the templates of a prepared profile, for hosts that have variables of
// the same names, or none, and secrets of their own, or none.
type kind struct {
	used    atomic.Bool // by a host before
	once    sync.Once
	trees   []*parse.Tree   // of the prepared profile's dynamic files, folded
	shared  []*plan.Content // what has come out of those that hold nothing of a host
	runners sync.Pool       // of *runner
}

// hostKinds are those of one prepared profile.
type hostKinds struct {
	mu    sync.Mutex
	named map[string]*kind
	other [2]kind // for hosts with secrets of their own, or none: whatever their variables are
	// written are the templates as they were written, which serve hosts of all kinds.
	written kind
}

// maxKinds bounds how many sets of variables' names have templates of their own.
const maxKinds = 32

// kindOf gives the templates for a host with these variables, and maybe
// secrets, of its own. They are folded at the second use.
func (s *Site) kindOf(p *prepared, vars strictyaml.Map[any], ownSecrets bool) *kind {
	key := "-"
	if ownSecrets {
		key = "+"
	}
	if len(vars) > 0 {
		names := make([]string, len(vars))
		for i, e := range vars {
			names[i] = e.Key
		}
		slices.Sort(names)
		key += strings.Join(names, mark)
	}
	p.kinds.mu.Lock()
	k, known := p.kinds.named[key]
	if k == nil && len(p.kinds.named) < maxKinds {
		if p.kinds.named == nil {
			p.kinds.named = map[string]*kind{}
		}
		k, known = &kind{}, true
		p.kinds.named[key] = k
	} else if k == nil {
		k = &p.kinds.other[strings.Index("-+", key[:1])]
	}
	p.kinds.mu.Unlock()
	if !k.used.Swap(true) {
		p.kinds.written.once.Do(func() { p.kinds.written.unfolded(p) })
		return &p.kinds.written
	}
	k.once.Do(func() { s.makeKind(k, p, vars, known, ownSecrets) })
	return k
}

// unfolded makes k the templates of p as they were written.
func (k *kind) unfolded(p *prepared) {
	k.trees, k.shared = make([]*parse.Tree, len(p.dynamic)), make([]*plan.Content, len(p.dynamic))
	for i, df := range p.dynamic {
		k.trees[i] = df.template.tmpl.Tree
	}
	k.runners.New = func() any { return newRunner(p, k) }
}

// makeKind folds the templates. Without known, nothing is said of variables.
func (s *Site) makeKind(k *kind, p *prepared, vars strictyaml.Map[any], known, ownSecrets bool) {
	k.trees = make([]*parse.Tree, len(p.dynamic))
	k.shared = make([]*plan.Content, len(p.dynamic))
	f := folder{
		data:    map[string]any{"site": s.data, "release": releaseData(p.image.Release), "profile": p.image.Profile},
		ownVars: len(vars) > 0,
	}
	if known {
		shared := maps.Clone(p.vars)
		for _, e := range vars {
			delete(shared, e.Key)
		}
		f.data["vars"] = shared
	}
	sc := &scope{secrets: s.secretsOver(nil)}
	for i, df := range p.dynamic {
		k.trees[i] = f.fold(df.template.tmpl, sc, ownSecrets)
		k.shared[i] = df.constant(k.trees[i], sc, ownSecrets)
	}
	k.runners.New = func() any { return newRunner(p, k) }
}

var errUnknown = errors.New("only the host can tell")

// fold gives the tree of t with each part that asks for no host run. Where
// hosts have secrets of their own, one that the site doesn't name may be among
// those.
func (f folder) fold(t *template.Template, s *scope, ownSecrets bool) *parse.Tree {
	clone, err := t.Clone()
	if err != nil {
		return t.Tree // never: a text/template can always be cloned
	}
	fm := functions(s)
	fm["hasSecret"] = func(name string) (bool, error) {
		_, _, ok := s.secrets(name)
		if !ok && ownSecrets {
			return false, errUnknown
		}
		return ok, nil
	}
	f.t = clone.Funcs(fm)
	tree := t.Tree.Copy()
	f.list(tree.Root)
	return tree
}

type folder struct {
	t       *template.Template
	data    map[string]any // without the host, and without the variables that it has itself
	ownVars bool           // hosts have variables of their own: .vars as a whole isn't known
}

// list folds the nodes of a list in which . is still the whole of the data.
func (f *folder) list(l *parse.ListNode) {
	if l == nil {
		return
	}
	var nodes []parse.Node
	add := func(text []byte, pos parse.Pos) {
		if n := len(nodes); n > 0 {
			if last, ok := nodes[n-1].(*parse.TextNode); ok {
				last.Text = append(last.Text, text...)
				return
			}
		}
		nodes = append(nodes, &parse.TextNode{NodeType: parse.NodeText, Pos: pos, Text: bytes.Clone(text)})
	}
	var fold func(n parse.Node)
	fold = func(n parse.Node) {
		if t, ok := n.(*parse.TextNode); ok {
			add(t.Text, t.Pos)
			return
		}
		if text, ok := f.run(n); ok {
			add(text, n.Position())
			return
		}
		branch, ok := n.(*parse.IfNode)
		if !ok {
			nodes = append(nodes, n)
			return
		}
		f.list(branch.List)
		f.list(branch.ElseList)
		if taken, ok := f.taken(branch); ok {
			for _, n := range taken {
				fold(n)
			}
			return
		}
		nodes = append(nodes, n)
	}
	for _, n := range l.Nodes {
		fold(n)
	}
	l.Nodes = nodes
}

// taken gives the nodes of the branch that is taken for each host.
func (f *folder) taken(n *parse.IfNode) ([]parse.Node, bool) {
	yes := &parse.ListNode{NodeType: parse.NodeList, Nodes: []parse.Node{&parse.TextNode{NodeType: parse.NodeText, Text: []byte("yes")}}}
	text, ok := f.run(&parse.IfNode{BranchNode: parse.BranchNode{NodeType: parse.NodeIf, Pos: n.Pos, Line: n.Line, Pipe: n.Pipe, List: yes}})
	if !ok || len(n.Pipe.Decl) > 0 {
		return nil, false
	}
	l := n.ElseList
	if len(text) > 0 {
		l = n.List
	}
	if l == nil {
		return nil, true
	}
	for _, n := range l.Nodes {
		if a, ok := n.(*parse.ActionNode); ok && len(a.Pipe.Decl) > 0 {
			return nil, false // a variable must end where its branch does
		}
	}
	return l.Nodes, true
}

// run gives what the node n writes, if that is the same for each host.
func (f *folder) run(n parse.Node) ([]byte, bool) {
	if a, ok := n.(*parse.ActionNode); ok && len(a.Pipe.Decl) > 0 {
		return nil, false // what follows needs the variable
	}
	if f.takesAll(n, true) {
		return nil, false
	}
	const name = "a part"
	// A copy keeps the template's text, which its errors are looked up in.
	part := f.t.Tree.Copy()
	part.Name, part.Root = name, &parse.ListNode{NodeType: parse.NodeList, Nodes: []parse.Node{n}}
	t, err := f.t.AddParseTree(name, part)
	if err != nil {
		return nil, false
	}
	var buf bytes.Buffer
	if err := t.Execute(boundedWriter{&buf}, f.data); err != nil {
		return nil, false
	}
	return buf.Bytes(), true
}

// takesAll tells whether a node takes the whole of the data as a value, where
// it wouldn't miss the host. atRoot is set where . is that whole.
func (f *folder) takesAll(n parse.Node, atRoot bool) bool {
	any := func(nodes []parse.Node, atRoot bool) bool {
		for _, n := range nodes {
			if f.takesAll(n, atRoot) {
				return true
			}
		}
		return false
	}
	rebinding := func(b *parse.BranchNode) bool {
		return f.takesAll(b.Pipe, atRoot) || f.takesAll(b.List, false) || b.ElseList != nil && f.takesAll(b.ElseList, atRoot)
	}
	switch n := n.(type) {
	case *parse.DotNode:
		return atRoot
	case *parse.FieldNode:
		return f.ownVars && atRoot && len(n.Ident) == 1 && n.Ident[0] == "vars"
	case *parse.VariableNode:
		return n.Ident[0] == "$" && (len(n.Ident) == 1 || f.ownVars && len(n.Ident) == 2 && n.Ident[1] == "vars")
	case *parse.ListNode:
		return any(n.Nodes, atRoot)
	case *parse.ActionNode:
		return f.takesAll(n.Pipe, atRoot)
	case *parse.TemplateNode:
		return n.Pipe != nil && f.takesAll(n.Pipe, atRoot)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			if any(c.Args, atRoot) {
				return true
			}
		}
	case *parse.ChainNode:
		return f.takesAll(n.Node, atRoot)
	case *parse.IfNode:
		return f.takesAll(n.Pipe, atRoot) || f.takesAll(n.List, atRoot) || n.ElseList != nil && f.takesAll(n.ElseList, atRoot)
	case *parse.RangeNode:
		return rebinding(&n.BranchNode)
	case *parse.WithNode:
		return rebinding(&n.BranchNode)
	}
	return false
}

// constant gives what a folded template writes where that is the same for each
// host; nil where it isn't.
func (f *hostFile) constant(tree *parse.Tree, s *scope, ownSecrets bool) *plan.Content {
	var out []byte
	for _, n := range tree.Root.Nodes {
		t, ok := n.(*parse.TextNode)
		if !ok {
			return nil
		}
		out = append(out, t.Text...)
	}
	if len(out) > maxRendered {
		return nil
	}
	c, pr := f.template.content(out, f.profile, s)
	if pr != nil || ownSecrets && strings.Contains(string(out), mark) {
		return nil
	}
	return &c
}

// runner holds one goroutine's copies of a profile's templates, since their
// functions know the host at hand.
type runner struct {
	scope     scope
	templates []*template.Template
	buf       bytes.Buffer
}

func newRunner(p *prepared, k *kind) *runner {
	r := &runner{templates: make([]*template.Template, len(p.dynamic))}
	r.scope.secrets = func(string) (plan.Ref, problem.Position, bool) { return "", problem.Position{}, false }
	for i, f := range p.dynamic {
		if k.shared[i] != nil {
			continue
		}
		t, err := f.template.tmpl.Clone()
		if err == nil {
			t, err = t.Funcs(functions(&r.scope)).AddParseTree(t.Name(), k.trees[i])
		}
		if err != nil {
			// Never: a text/template can always be cloned, and takes a tree of its own.
			t = f.template.tmpl
		}
		r.templates[i] = t
	}
	return r
}
