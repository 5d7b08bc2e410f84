package render

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"strconv"

	"gopkg.in/yaml.v3"
)

// encodeYAML writes doc behind a header of comments.
func encodeYAML(header string, doc *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(header)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("writing YAML: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("writing YAML: %w", err)
	}
	return b.Bytes(), nil
}

// mapping is a YAML mapping of the keys and values that it is given in turn;
// add says what becomes of values.
func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i+1 < len(pairs); i += 2 {
		add(n, pairs[i].(string), pairs[i+1])
	}
	return n
}

func sequence() *yaml.Node { return &yaml.Node{Kind: yaml.SequenceNode} }

func push(list, n *yaml.Node) { list.Content = append(list.Content, n) }

// add puts a value into a mapping. One that says nothing is left out: an empty
// string, list or mapping, false, nil.
func add(n *yaml.Node, key string, value any) {
	var v *yaml.Node
	switch value := value.(type) {
	case string:
		if value != "" {
			v = stringNode(value)
		}
	case bool:
		if value {
			v = boolNode(true)
		}
	case fs.FileMode:
		v = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprintf("0%03o", uint32(value))}
	case *int:
		if value != nil {
			v = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(*value)}
		}
	case []string:
		v = sequence()
		for _, s := range value {
			push(v, stringNode(s))
		}
	case *yaml.Node:
		v = value
	}
	if v == nil || v.Kind != yaml.ScalarNode && len(v.Content) == 0 {
		return
	}
	addAlways(n, key, v)
}

func addAlways(n *yaml.Node, key string, v *yaml.Node) {
	n.Content = append(n.Content, stringNode(key), v)
}

func boolNode(b bool) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(b)}
}

// stringNode is a string; the encoder quotes it where YAML would read another
// type or syntax.
func stringNode(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

// contentsNode is a file's content: text as a block that can be read, all else
// as a data URL.
func contentsNode(b []byte) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if len(b) > 0 && !isLiteral(b) && !isLiteral(append(b[:len(b):len(b)], '\n')) {
		addAlways(n, "source", stringNode("data:;base64,"+base64.StdEncoding.EncodeToString(b)))
		return n
	}
	text := stringNode(string(b))
	text.Style = yaml.LiteralStyle
	if len(b) == 0 {
		text.Style = yaml.DoubleQuotedStyle
	}
	addAlways(n, "inline", text)
	return n
}
