package profiles

import (
	"fmt"
	"strings"
	"text/template/parse"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

// positionIn is the line and column of the byte at offset i.
func positionIn(file, text string, i int) problem.Position {
	before := text[:min(i, len(text))]
	return problem.Position{File: file, Line: strings.Count(before, "\n") + 1, Column: i - strings.LastIndexByte(before, '\n')}
}

// treeCheck looks through a parsed template for what must not stand there.
type treeCheck struct {
	t        *fileTemplate
	text     string
	format   quote.Format
	held     bool
	line     string // what the file has so far on the line that is being written
	problems *problem.List
}

func (c *treeCheck) list(l *parse.ListNode) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
			c.line += string(n.Text)
			c.line = c.line[strings.LastIndexByte(c.line, '\n')+1:]
		case *parse.ActionNode:
			c.action(n)
		case *parse.IfNode:
			c.branch(&n.BranchNode)
		case *parse.RangeNode:
			c.branch(&n.BranchNode)
		case *parse.WithNode:
			c.branch(&n.BranchNode)
		case *parse.TemplateNode:
			c.pipe(n.Pipe, false)
		}
	}
}

func (c *treeCheck) branch(b *parse.BranchNode) {
	c.pipe(b.Pipe, false)
	line := c.line
	c.list(b.List)
	if b.ElseList != nil {
		c.line = line
		c.list(b.ElseList)
	}
}

// action checks one action that writes something: in a format with a quoting
// of its own, that function must have the last word.
func (c *treeCheck) action(n *parse.ActionNode) {
	writes := len(n.Pipe.Decl) == 0
	c.pipe(n.Pipe, writes)
	if !c.held || !writes {
		return
	}
	last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1]
	id, ok := last.Args[0].(*parse.IdentifierNode)
	if ok && id.Ident == "fail" {
		return
	}
	if ok && id.Ident == string(c.format) {
		c.within(n)
		return
	}
	c.problems.Addf(positionIn(c.t.name, c.text, int(n.Pos)),
		fmt.Sprintf("end it in | %s", c.format),
		"the action %s writes a value into a %s file without quoting it", strings.TrimSpace(n.Pipe.String()), c.format)
}

// within checks that a quoted value stands where a value begins.
func (c *treeCheck) within(n *parse.ActionNode) {
	at := positionIn(c.t.name, c.text, int(n.Pos))
	switch place(c.format, c.line) {
	case inQuotes:
		c.problems.Addf(at, fmt.Sprintf("%s writes its own: let it write the whole text, built with printf", c.format), "the action %s stands within quotes", strings.TrimSpace(n.Pipe.String()))
	case inComment:
		if c.format == quote.FormatShell {
			c.problems.Addf(at, "take it out of the comment", "the action %s stands in a comment, which a newline in its value would end", strings.TrimSpace(n.Pipe.String()))
		}
	}
	c.line += "x"
}

// pipe checks what a pipeline names. A secret may go nowhere but into a
// quoting function: any other would see its reference, not its value.
func (c *treeCheck) pipe(p *parse.PipeNode, writes bool) {
	if p == nil {
		return
	}
	for i, cmd := range p.Cmds {
		for j, arg := range cmd.Args {
			c.argument(arg)
			id, ok := arg.(*parse.IdentifierNode)
			if !ok || id.Ident != "secret" {
				continue
			}
			at := positionIn(c.t.name, c.text, int(id.Pos))
			if j != 0 || !writes || !c.deliversSecret(p, i) {
				c.problems.Addf(at, `write {{ secret "NAME" | `+string(c.quoting())+` }}, with nothing between`, "a secret can only be written, through its quoting")
			}
			c.secretName(cmd, at)
		}
	}
}

func (c *treeCheck) quoting() quote.Format {
	if c.held {
		return c.format
	}
	return quote.FormatRaw
}

// deliversSecret tells whether the command after p's ith is its quoting, and
// the last; or the ith is the last, in a file without a quoting of its own.
func (c *treeCheck) deliversSecret(p *parse.PipeNode, i int) bool {
	rest := p.Cmds[i+1:]
	switch {
	case len(rest) == 0:
		return !c.held
	case len(rest) == 1:
		id, ok := rest[0].Args[0].(*parse.IdentifierNode)
		return ok && len(rest[0].Args) == 1 && isFormat(id.Ident)
	}
	return false
}

func isFormat(name string) bool {
	for _, f := range quote.Formats() {
		if name == string(f) {
			return true
		}
	}
	return false
}

// secretName notes where a secret is used by name.
func (c *treeCheck) secretName(cmd *parse.CommandNode, at problem.Position) {
	var s *parse.StringNode
	if len(cmd.Args) == 2 {
		s, _ = cmd.Args[1].(*parse.StringNode)
	}
	if s == nil {
		if c.t.computed.Line == 0 {
			c.t.computed = at
		}
		return
	}
	if strings.Contains(s.Text, "://") {
		if _, err := plan.ParseRef(s.Text); err != nil {
			c.problems.Addf(at, "", "%s", err)
		}
		c.t.uris[s.Text] = at
	} else if _, seen := c.t.places[s.Text]; !seen {
		c.t.places[s.Text] = at
	}
}

// argument looks for what the image half can't know.
func (c *treeCheck) argument(n parse.Node) {
	switch n := n.(type) {
	case *parse.PipeNode:
		c.pipe(n, false)
	case *parse.ChainNode:
		c.argument(n.Node)
	case *parse.FieldNode:
		c.imageFact(n.Ident, int(n.Pos))
	case *parse.VariableNode:
		if len(n.Ident) > 1 && n.Ident[0] == "$" {
			c.imageFact(n.Ident[1:], int(n.Pos))
		}
	case *parse.IdentifierNode:
		if c.t.image && (n.Ident == "secret" || n.Ident == "hasSecret") {
			c.problems.Addf(positionIn(c.t.name, c.text, int(n.Pos)), "move the file to the profile's host/ folder", "an image never holds a secret")
		}
	}
}

func (c *treeCheck) imageFact(ident []string, offset int) {
	if c.t.image && ident[0] == "host" {
		c.problems.Addf(positionIn(c.t.name, c.text, offset), "move the file to the profile's host/ folder",
			"the image half is the same for each host: it can't know .%s", strings.Join(ident, "."))
	}
}

// What surrounds a place in a line of a file.
const (
	inText = iota
	inQuotes
	inComment
)

// place tells what surrounds the end of line, the beginning of one in a file of
// that format. Quotes that were opened on a line before aren't seen.
func place(f quote.Format, line string) int {
	var open []byte // the quotes around, and shell's $( within them
	in := func() byte {
		if len(open) == 0 {
			return 0
		}
		return open[len(open)-1]
	}
	for i := 0; i < len(line); i++ {
		b := line[i]
		switch q := in(); {
		case q == '"' || q == '\'':
			escapes := q == '"' || f == quote.FormatSystemd
			switch {
			case b == '\\' && escapes:
				i++
			case b == q:
				open = open[:len(open)-1]
			case f == quote.FormatShell && q == '"' && strings.HasPrefix(line[i:], "$("):
				open = append(open, '(')
				i++
			}
		case b == '\\' && f != quote.FormatYAML:
			i++
		case q == '(' && b == ')':
			open = open[:len(open)-1]
		case b == '"' || b == '\'' && f != quote.FormatHCL && f != quote.FormatJSON:
			if f != quote.FormatYAML || i == 0 || strings.IndexByte(" \t[{,", line[i-1]) >= 0 {
				open = append(open, b)
			}
		case b == '#' && f != quote.FormatJSON && (f == quote.FormatHCL || i == 0 || line[i-1] == ' ' || line[i-1] == '\t'), f == quote.FormatHCL && strings.HasPrefix(line[i:], "//"):
			return inComment
		}
	}
	if q := in(); q == '"' || q == '\'' {
		return inQuotes
	}
	return inText
}
