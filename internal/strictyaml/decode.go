package strictyaml

import (
	"bytes"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/agext/levenshtein"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
)

// maxNodes bounds what one document may expand to, aliases included: more than
// any site needs, less than an alias in an alias in an alias can do harm with.
const maxNodes = 1_000_000

// maxDepth bounds how deep a document nests: each level is a call of ours.
const maxDepth = 100

// Context is the state of decoding one document.
type Context struct {
	file     string
	line0    int
	problems *problem.List
	nodes    int
	depth    int
	aliases  int  // around the node at hand
	tooDeep  bool // that was said
}

// Pos is where n stands.
func (c *Context) Pos(n *yaml.Node) problem.Position {
	return problem.Position{File: c.file, Line: n.Line + c.line0, Column: n.Column}
}

// Addf adds a problem at n; fix may be empty.
func (c *Context) Addf(n *yaml.Node, fix, format string, args ...any) {
	c.problems.Addf(c.Pos(n), fix, format, args...)
}

// Decode reads n into out, which must be a pointer.
func (c *Context) Decode(n *yaml.Node, out any) {
	c.value(n, reflect.ValueOf(out).Elem())
}

var (
	positionType = reflect.TypeFor[problem.Position]()
	decoderType  = reflect.TypeFor[Decoder]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (c *Context) value(n *yaml.Node, out reflect.Value) {
	if n.Kind == yaml.AliasNode {
		c.aliases++
		defer func() { c.aliases-- }()
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	c.nodes++
	c.depth++
	defer func() { c.depth-- }()
	switch {
	case c.nodes > maxNodes, c.depth > maxDepth && c.aliases > 0:
		c.tooMany(n)
		return
	case c.depth > maxDepth:
		if !c.tooDeep {
			c.Addf(n, "write it flatter", "this nests too deep")
		}
		c.tooDeep = true
		return
	}
	if out.Addr().Type().Implements(decoderType) {
		out.Addr().Interface().(Decoder).DecodeYAML(c, n)
		return
	}
	if out.Addr().Type().Implements(textType) {
		if s, ok := c.Scalar(n); ok {
			if err := out.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
				c.Addf(n, "", "%s", err)
			}
		}
		return
	}
	switch out.Kind() {
	case reflect.Struct:
		c.structure(n, out)
	case reflect.Slice:
		c.list(n, out)
	case reflect.Pointer:
		p := reflect.New(out.Type().Elem())
		c.value(n, p.Elem())
		out.Set(p)
	case reflect.Interface:
		if v := c.Any(n); v != nil {
			out.Set(reflect.ValueOf(v))
		}
	case reflect.String:
		if s, ok := c.Scalar(n); ok {
			out.SetString(s)
		}
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Float64:
		c.number(n, out)
	default:
		panic(fmt.Sprintf("strictyaml: a schema has a field of type %s", out.Type()))
	}
}

// tooMany says once that the document is too much.
func (c *Context) tooMany(n *yaml.Node) {
	if c.nodes != maxNodes+2 {
		c.Addf(n, "write it out without aliases within aliases", "this repeats itself too often")
	}
	c.nodes = maxNodes + 1
}

func (c *Context) number(n *yaml.Node, out reflect.Value) {
	want := map[reflect.Kind]string{reflect.Bool: "true or false", reflect.Float64: "a number"}[out.Kind()]
	if want == "" {
		want = "a whole number"
	}
	if n.Kind != yaml.ScalarNode {
		c.Addf(n, "", "%s was expected here, not %s", want, kindName(n))
		return
	}
	ok := false
	switch tag := n.ShortTag(); out.Kind() {
	case reflect.Bool:
		ok = tag == "!!bool"
	case reflect.Float64:
		ok = tag == "!!float" || tag == "!!int"
	default:
		ok = tag == "!!int"
	}
	if !ok || n.Decode(out.Addr().Interface()) != nil {
		c.Addf(n, "", "%s was expected here, not %s", want, kindName(n))
	} else if leadingZero(n.Value) {
		c.Addf(n, "write it without the zero, or behind 0o if it is octal", "%s means one number to some readers of YAML and another to others", n.Value)
	}
}

// Scalar is the text of n, a string or a number as it was written. Anything
// else is added as a problem.
func (c *Context) Scalar(n *yaml.Node) (string, bool) {
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!str", "!!int", "!!float", "!!timestamp":
			if strings.IndexByte(n.Value, 0) >= 0 {
				c.Addf(n, "remove it", "this text has a NUL byte, which no file on a host can carry")
				return "", false
			}
			return n.Value, true
		case "!!bool":
			c.Addf(n, fmt.Sprintf("write %q in quotes if the word is meant", n.Value), "text was expected here, not %s", kindName(n))
			return "", false
		}
	}
	c.Addf(n, "", "text was expected here, not %s", kindName(n))
	return "", false
}

// Any decodes n into strings, ints, floats, booleans, []any and
// map[string]any; nil where n is something else.
func (c *Context) Any(n *yaml.Node) any {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch n.Kind {
	case yaml.SequenceNode:
		var l []any
		c.value(n, reflect.ValueOf(&l).Elem())
		if l == nil {
			l = []any{}
		}
		return l
	case yaml.MappingNode:
		var m Map[any]
		c.value(n, reflect.ValueOf(&m).Elem())
		out := make(map[string]any, len(m))
		for _, e := range m {
			out[e.Key] = e.Value
		}
		return out
	}
	var target any
	switch n.ShortTag() {
	case "!!bool":
		target = new(bool)
	case "!!int":
		if leadingZero(n.Value) {
			c.Addf(n, "write it in quotes to keep it as a text", "%s means one number to some readers of YAML and another to others", n.Value)
			return nil
		}
		target = new(int)
	case "!!float":
		if trailingZero(n.Value) {
			c.Addf(n, "write it in quotes to keep it as a text, such as a version; a number has no zero at its end", "%s is a number, which would lose its last zero", n.Value)
			return nil
		}
		target = new(float64)
	case "!!null":
		c.Addf(n, `give it a value ("" for an empty text), or remove the line`, "there is no value here")
		return nil
	default:
		if s, ok := c.Scalar(n); ok {
			return s
		}
		return nil
	}
	if err := n.Decode(target); err != nil {
		c.Addf(n, "write it in quotes to keep it as a text", "%q is a number that is too large", n.Value)
		return nil
	}
	return reflect.ValueOf(target).Elem().Interface()
}

// leadingZero tells whether a number is octal by YAML 1.1 and decimal by 1.2.
func leadingZero(s string) bool {
	s = strings.TrimLeft(s, "+-")
	return len(s) > 1 && s[0] == '0' && s[1] >= '0' && s[1] <= '9' && strings.Trim(s, "0123456789_") == ""
}

// trailingZero tells whether a number is written like a version: 1.10.
func trailingZero(s string) bool {
	_, fraction, ok := strings.Cut(s, ".")
	return ok && strings.HasSuffix(fraction, "0") && strings.Trim(s, "0123456789.") == ""
}

func (c *Context) list(n *yaml.Node, out reflect.Value) {
	if mapEntry(out.Type()) {
		c.mapping(n, out)
		return
	}
	if n.Kind != yaml.SequenceNode {
		c.Addf(n, "write its entries as a list, each behind a dash, or between [ and ]", "a list was expected here, not %s", kindName(n))
		return
	}
	l := reflect.MakeSlice(out.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		c.value(item, l.Index(i))
	}
	out.Set(l)
}

// mapEntry tells whether t is a Map.
func mapEntry(t reflect.Type) bool {
	e := t.Elem()
	return e.Kind() == reflect.Struct && e.PkgPath() == reflect.TypeFor[Context]().PkgPath() && strings.HasPrefix(e.Name(), "Entry[")
}

func (c *Context) mapping(n *yaml.Node, out reflect.Value) {
	if n.Kind != yaml.MappingNode {
		c.Addf(n, "write it as key: value", "a mapping was expected here, not %s", kindName(n))
		return
	}
	m := reflect.MakeSlice(out.Type(), 0, len(n.Content)/2)
	c.Pairs(n, func(key string, k, v *yaml.Node) {
		e := reflect.New(out.Type().Elem()).Elem()
		e.Field(0).SetString(key)
		e.Field(1).Set(reflect.ValueOf(c.Pos(k)))
		c.value(v, e.Field(2))
		m = reflect.Append(m, e)
	})
	out.Set(m)
}

// Pairs calls f for each key of the mapping n, those that a merge (<<) brings
// in included. Repeated keys are problems.
func (c *Context) Pairs(n *yaml.Node, f func(key string, k, v *yaml.Node)) {
	var seen seenKeys
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if isMerge(k) {
			merged = append(merged, v)
			continue
		}
		key, ok := c.key(k)
		if !ok {
			continue
		}
		if first := seen.add(key, k); first != nil {
			c.Addf(k, "keep one of the two", "%q stands here twice: line %d has it already", key, first.Line+c.line0)
			continue
		}
		f(key, k, v)
	}
	for _, m := range merged {
		c.merge(m, &seen, f, 0)
	}
}

// isMerge tells whether the key k is <<. Asking a node for its tag is slow, so
// the text is looked at first.
func isMerge(k *yaml.Node) bool { return k.Value == "<<" && k.ShortTag() == "!!merge" }

// key is the text of a mapping's key.
func (c *Context) key(k *yaml.Node) (string, bool) {
	at := k
	for k.Kind == yaml.AliasNode {
		k = k.Alias
	}
	switch {
	case k.Kind != yaml.ScalarNode:
		c.Addf(at, "", "a key must be a plain word, not %s", kindName(k))
		return "", false
	case strings.IndexByte(k.Value, 0) >= 0:
		c.Addf(at, "remove it", "this key has a NUL byte")
		return "", false
	}
	return k.Value, true
}

// seenKeys are the keys of one mapping so far: a list while they are few, as
// they mostly are.
type seenKeys struct {
	few  []*yaml.Node
	many map[string]*yaml.Node
}

// add notes the key; where it is there already it gives the first one.
func (s *seenKeys) add(key string, k *yaml.Node) *yaml.Node {
	for k.Kind == yaml.AliasNode {
		k = k.Alias
	}
	if s.many == nil {
		for _, f := range s.few {
			if f.Value == key {
				return f
			}
		}
		if s.few = append(s.few, k); len(s.few) > 16 {
			s.many = make(map[string]*yaml.Node, 64)
			for _, f := range s.few {
				s.many[f.Value] = f
			}
		}
		return nil
	}
	if first := s.many[key]; first != nil {
		return first
	}
	s.many[key] = k
	return nil
}

// merge adds the keys of a mapping, or of a list of them, that aren't there yet.
func (c *Context) merge(n *yaml.Node, seen *seenKeys, f func(string, *yaml.Node, *yaml.Node), depth int) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if c.nodes++; c.nodes > maxNodes || depth > 20 {
		c.tooMany(n)
		return
	}
	switch {
	case n.Kind != yaml.SequenceNode && n.Kind != yaml.MappingNode:
		c.Addf(n, "name a mapping by its anchor: <<: *name", "only a mapping can be merged in here")
	case n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			c.merge(item, seen, f, depth+1)
		}
	default:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			if key, ok := c.key(k); isMerge(k) {
				c.merge(v, seen, f, depth+1)
			} else if ok && seen.add(key, k) == nil {
				f(key, k, v)
			}
		}
	}
}

// fields are what a structure's keys decode into.
type fields struct {
	byKey    map[string]int
	keys     []string
	position int // index of the field that takes the position, or -1
}

var fieldCache sync.Map // reflect.Type → *fields

func fieldsOf(t reflect.Type) *fields {
	if f, ok := fieldCache.Load(t); ok {
		return f.(*fields)
	}
	f := &fields{byKey: map[string]int{}, position: -1}
	for i := range t.NumField() {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		switch {
		case key == "-" && t.Field(i).Type == positionType:
			f.position = i
		case key != "" && key != "-":
			f.byKey[key] = i
			f.keys = append(f.keys, key)
		}
	}
	fieldCache.Store(t, f)
	return f
}

func (c *Context) structure(n *yaml.Node, out reflect.Value) {
	t := out.Type()
	if t.NumField() == 2 && t.Field(1).Type == positionType && t.Field(0).Name == "V" && t.Field(0).Tag == "" {
		// A value that couldn't be read counts as not written: nothing that is
		// wrong with its zero value is the operator's doing.
		before := len(*c.problems)
		c.value(n, out.Field(0))
		if len(*c.problems) == before {
			out.Field(1).Set(reflect.ValueOf(c.Pos(n)))
		}
		return
	}
	f := fieldsOf(t)
	if f.position >= 0 {
		out.Field(f.position).Set(reflect.ValueOf(c.Pos(n)))
	}
	if n.Kind != yaml.MappingNode {
		c.Addf(n, "its keys are "+strings.Join(f.keys, ", "), "a mapping was expected here, not %s", kindName(n))
		return
	}
	c.Pairs(n, func(key string, k, v *yaml.Node) {
		i, ok := f.byKey[key]
		if !ok {
			c.Addf(k, DidYouMean(key, f.keys), "unknown key %q", key)
			return
		}
		if v.Kind == yaml.ScalarNode && v.ShortTag() == "!!null" {
			c.Addf(v, "give it one, or remove the line", "%s has no value", key)
			return
		}
		c.value(v, out.Field(i))
	})
}

// DidYouMean is the advice for a word that isn't among the known ones: the
// nearest of them, or all.
func DidYouMean(word string, known []string) string {
	best, distance := "", 1+max(1, len(word)/3)
	for _, k := range known {
		d := levenshtein.Distance(strings.ToLower(word), k, nil)
		if d == 2 && sameLetters(strings.ToLower(word), k) {
			d = 1 // two letters changed places
		}
		if d < distance {
			best, distance = k, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(known) == 0:
		return "there is nothing that it could be"
	case len(known) > 12:
		return "known are " + strings.Join(known[:12], ", ") + ", …"
	}
	return "known are " + strings.Join(known, ", ")
}

func sameLetters(a, b string) bool {
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return bytes.Equal(x, y)
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "the boolean " + n.Value
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!str":
		v := n.Value
		if len(v) > 40 {
			v = v[:40] + "…"
		}
		return "the text " + strconv.Quote(v)
	}
	return "a value tagged " + n.ShortTag()
}
