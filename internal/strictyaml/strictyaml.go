// Package strictyaml decodes YAML into Go structures, strictly: each unknown
// key, wrong type and repeated key is a problem with its line and column, all
// of them are found at once, and what was decoded knows where it was written.
package strictyaml

import (
	"bytes"
	"errors"
	"io"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/problem"
)

// Value is a decoded value that knows where it was written.
type Value[T any] struct {
	V   T
	Pos problem.Position
}

// Set tells whether the value was written at all.
func (v Value[T]) Set() bool { return v.Pos.Line != 0 }

// Or is the value, or otherwise where it wasn't written.
func (v Value[T]) Or(otherwise T) T {
	if v.Set() {
		return v.V
	}
	return otherwise
}

// Entry is one key of a mapping.
type Entry[V any] struct {
	Key   string
	Pos   problem.Position // of the key
	Value V
}

// Map is a mapping whose keys the schema leaves open, in the order written.
type Map[V any] []Entry[V]

// Get finds the entry of that key.
func (m Map[V]) Get(key string) (Entry[V], bool) {
	for _, e := range m {
		if e.Key == key {
			return e, true
		}
	}
	return Entry[V]{}, false
}

// Decoder is implemented by types with a way of their own of being written,
// such as a scalar or a mapping.
type Decoder interface {
	DecodeYAML(c *Context, n *yaml.Node)
}

// Parse reads the one document in data into a node; nil where it is empty or
// isn't YAML. Lines count from line0+1.
func Parse(data []byte, file string, line0 int, problems *problem.List) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			problems.Addf(syntaxPosition(err, data, file, line0), "", "this is not valid YAML: %s", syntaxMessage(err))
		}
		return nil
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		problems.Addf(syntaxPosition(err, data, file, line0), "", "this is not valid YAML: %s", syntaxMessage(err))
		return nil
	default:
		problems.Addf(problem.Position{File: file, Line: second.Line + line0, Column: second.Column},
			"keep one document in a file: remove the --- and what follows it, or move it to a file of its own",
			"a second YAML document begins here, which would be ignored")
	}
	if len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

// Decode reads the one document in data into out, a pointer to a structure.
// The result tells whether there was a document at all; what is wrong with it
// is added to problems. Lines count from line0+1.
func Decode(data []byte, file string, line0 int, out any, problems *problem.List) bool {
	n := Parse(data, file, line0, problems)
	if n == nil {
		return false
	}
	c := &Context{file: file, line0: line0, problems: problems}
	c.Decode(n, out)
	return true
}

var yamlError = lazyregexp.New(`^yaml: (?:line \d+: )?((?s:.*))$`)

// syntaxMessage is what yaml.v3 says, without the line: that is often the line
// before, or where the surrounding mapping began, or missing.
func syntaxMessage(err error) string {
	if m := yamlError().FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return err.Error()
}

// maxSearched bounds the lines of a text in which a syntax error is searched.
const maxSearched = 4000

// syntaxPosition finds where a syntax error is: in the line without which the
// text before it would read otherwise. The column is that of the line's first
// character.
func syntaxPosition(err error, data []byte, file string, line0 int) problem.Position {
	pos := problem.Position{File: file, Line: line0 + 1, Column: 1}
	ends := []int{0}
	for i, b := range data {
		if b == '\n' || i == len(data)-1 {
			ends = append(ends, i+1)
		}
	}
	if len(ends) > maxSearched {
		return pos
	}
	message := syntaxMessage(err)
	n := len(ends) - 1
	for ; n > 1; n-- {
		if e := syntaxError(data[:ends[n-1]]); e == nil || syntaxMessage(e) != message {
			break
		}
	}
	if n < 1 {
		return pos
	}
	line := data[ends[n-1]:ends[n]]
	pos.Line = line0 + n
	pos.Column = len(line) - len(bytes.TrimLeft(line, " \t")) + 1
	return pos
}

// syntaxError is what keeps data from being YAML.
func syntaxError(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
