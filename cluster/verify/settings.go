package verify

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl"

	"github.com/alisw/kiln/plan"
)

// settings is the configuration of an agent: all files of its folder, merged as
// the agent merges them. A block is a map, however often it is written.
type settings map[string]any

// settingsIn merges the files below dir, in the order of their names: what a
// later one says counts. nil is that there is none.
func settingsIn(p *plan.Plan, dir string) (settings, error) {
	files := map[string]plan.File{} // the Host half has the last word
	for _, half := range [][]plan.File{p.Image.Files, p.Host.Files} {
		for _, f := range half {
			if ext := path.Ext(f.Path); path.Dir(f.Path) == dir && f.Target == "" && (ext == ".hcl" || ext == ".json") {
				files[f.Path] = f
			}
		}
	}
	var all settings
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text, err := files[name].Content.Bytes()
		if err != nil {
			return nil, fmt.Errorf("the content of %s: %w", name, err)
		}
		// Agents of HashiCorp's read their configuration as HCL 1, or as JSON.
		var m map[string]any
		if err := hcl.Unmarshal(text, &m); err != nil {
			return nil, fmt.Errorf("%s: %s as it is rendered is no HCL: %w", files[name].Origin, name, err)
		}
		if all == nil {
			all = settings{}
		}
		merge(all, block(m))
	}
	return all, nil
}

// block makes a block of what HCL read: blocks in it that were written several
// times become one.
func block(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if list, ok := v.([]map[string]any); ok {
			one := map[string]any{}
			for _, b := range list {
				merge(one, block(b))
			}
			v = one
		}
		out[k] = v
	}
	return out
}

// merge adds what from says to into.
func merge(into, from map[string]any) {
	for k, v := range from {
		old, isBlock := into[k].(map[string]any)
		if b, ok := v.(map[string]any); ok && isBlock {
			merge(old, b)
			continue
		}
		into[k] = v
	}
}

// block is the block at that path; nil where there is none.
func (s settings) block(path ...string) settings {
	for _, name := range path {
		b, _ := s[name].(map[string]any)
		s = b
	}
	return s
}

// text is the value of a setting as text; empty where it isn't set, or isn't a
// single value.
func (s settings) text(name string) string {
	switch v := s[name].(type) {
	case string:
		return v
	case int, float64, bool:
		return fmt.Sprint(v)
	}
	return ""
}

// bool is a setting that is true or false.
func (s settings) bool(name string, otherwise bool) bool {
	if v, err := strconv.ParseBool(s.text(name)); err == nil {
		return v
	}
	return otherwise
}

// number is a setting that is a whole number; ok is false where it isn't set.
func (s settings) number(name string) (n int64, ok bool) {
	n, err := strconv.ParseInt(s.text(name), 10, 64)
	return n, err == nil
}

// literal is the address that a setting names, with or without a port. It is
// invalid where none is named, or only the host itself can tell which it is
// (a go-sockaddr template, 0.0.0.0, a name).
func literal(text string) netip.Addr {
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		p, err := netip.ParseAddrPort(text)
		if err != nil {
			return netip.Addr{}
		}
		a = p.Addr()
	}
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}
