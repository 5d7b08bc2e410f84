package apply

import (
	"bytes"
	"maps"
	"slices"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/printer"
)

// reloadable are the settings that a running Consul agent takes when it is told
// to reload; all others want a restart. Of acl it is the tokens alone.
var reloadable = []string{"acl.tokens", "check", "checks", "limits", "log_level", "node_meta", "service", "services", "watches"}

// consulReloads tells whether a file of Consul's was changed in what a reload is
// enough for. Where that can't be told, it isn't.
func consulReloads(before, after []byte) bool {
	was, ok := consulSettings(before)
	is, ok2 := consulSettings(after)
	if !ok || !ok2 {
		return false
	}
	for key := range maps.Keys(was) {
		if _, there := is[key]; !there {
			is[key] = ""
		}
	}
	for key, text := range is {
		if was[key] != text && !slices.Contains(reloadable, key) {
			return false
		}
	}
	return true
}

// consulSettings are the settings at the top of a file, and those in acl, each as
// its text in one form. No file has none.
func consulSettings(text []byte) (map[string]string, bool) {
	file, err := hcl.ParseBytes(text)
	if err != nil {
		return nil, false
	}
	list, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, false
	}
	settings := map[string]string{}
	return settings, addSettings(settings, "", list)
}

func addSettings(settings map[string]string, prefix string, list *ast.ObjectList) bool {
	for _, item := range list.Items {
		if len(item.Keys) == 0 {
			return false
		}
		key, ok := item.Keys[0].Token.Value().(string)
		if !ok {
			return false
		}
		if below, isBlock := item.Val.(*ast.ObjectType); isBlock && prefix == "" && key == "acl" && len(item.Keys) == 1 {
			if !addSettings(settings, "acl.", below.List) {
				return false
			}
			continue
		}
		var b bytes.Buffer
		if err := printer.Fprint(&b, &ast.ObjectItem{Keys: item.Keys, Val: item.Val, Assign: item.Assign}); err != nil {
			return false
		}
		settings[prefix+key] += b.String() + "\n"
	}
	return true
}
