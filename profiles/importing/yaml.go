package importing

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/alisw/kiln/internal/quote"
)

// yaml is the profile's profile.yaml.
func (p Profile) yaml(d Delimiters) string {
	var b strings.Builder
	description := oneLine(p.Description)
	if description == "" {
		description = "imported"
	}
	fmt.Fprintf(&b, "description: %s\n", scalar(description))
	if len(p.Extends) > 0 {
		names := make([]string, len(p.Extends))
		for i, name := range p.Extends {
			names[i] = scalar(name)
		}
		fmt.Fprintf(&b, "extends: [%s]\n", strings.Join(names, ", "))
	} else {
		b.WriteString("# extends: [plain]   # to have all that plain sets up, with these files in place of its own\n")
	}
	if d != DefaultDelimiters {
		b.WriteString("\n# The imported templates hold {{ or }} themselves.\n")
		fmt.Fprintf(&b, "delimiters: [%s, %s]\n", scalar(d.Left), scalar(d.Right))
	}
	p.yamlVars(&b)
	p.yamlSecrets(&b)
	p.yamlHost(&b)
	return b.String()
}

// yamlVars writes a comment for each variable. None is set: a template that
// uses one which isn't fails, where a made-up value would reach hosts.
func (p Profile) yamlVars(b *strings.Builder) {
	vars := p.vars()
	if len(vars) == 0 {
		return
	}
	b.WriteString("\n# Each of these has to be set: here, in site.yaml or for a host. Until it is, the\n" +
		"# templates that use it fail. Puppet's values are not in its templates.\n# vars:\n")
	for _, v := range vars {
		fmt.Fprintf(b, "#   %s: %s   # %s: %s\n", v.Name, v.Kind.example(), v.Kind, oneLine(strings.Join(v.at, ", ")))
	}
}

// example is a value of the kind, as YAML.
func (k Kind) example() string {
	switch {
	case k&KindMap != 0:
		return "{}"
	case k&KindList != 0:
		return "[]"
	case k&(KindBare|KindNumber) != 0:
		return "0"
	case k&KindText == 0 && k&KindSwitch != 0:
		return "false"
	}
	return `""`
}

func (p Profile) yamlSecrets(b *strings.Builder) {
	var names []string
	for _, t := range p.Templates {
		for _, s := range t.Secrets {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return
	}
	b.WriteString("\n# The templates' secrets. Say in site.yaml, or for a host, where each is to be found:\n# secrets:\n")
	for _, name := range slices.Compact(names) {
		fmt.Fprintf(b, "#   %s: teigi://HOSTGROUP/%s\n", scalar(name), name)
	}
}

func (p Profile) yamlHost(b *strings.Builder) {
	files := map[string]string{}
	directories := map[string]string{}
	for _, tree := range p.Trees {
		for _, f := range tree.Files {
			switch {
			case f.Link != "":
				files[f.Path] = "{link: " + scalar(f.Link) + "}"
			case inYAML(f):
				files[f.Path] = "{content: " + scalar(string(f.Data)) + ", " + metadata(f.Owner, f.Group, f.Mode) + "}"
			case f.Owner != "root" || f.Group != "root" || f.Mode != 0o644:
				files[f.Path] = "{" + metadata(f.Owner, f.Group, f.Mode) + "}"
			}
		}
		for _, d := range tree.Directories {
			directories[d.Path] = "{" + metadata(d.Owner, d.Group, d.Mode) + "}"
		}
	}
	for _, t := range p.Templates {
		if len(t.Secrets) > 0 {
			// Whoever runs the agent has to be able to read it: the owner is theirs
			// to name.
			files[t.Path] = "{" + metadata("root", agentGroup(t.Path), 0o640) + "}   # it holds secrets"
		}
	}
	if len(files)+len(directories) == 0 {
		return
	}
	b.WriteString("\nhost:\n")
	yamlMap(b, "directories", directories)
	yamlMap(b, "files", files)
}

// agentGroup is the group of whoever reads a file with secrets in it: consul
// runs as its own user, Nomad's client as root.
func agentGroup(file string) string {
	if path.Dir(file) == "/etc/consul.d" {
		return "consul"
	}
	return "root"
}

func yamlMap(b *strings.Builder, key string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	fmt.Fprintf(b, "  %s:\n", key)
	paths := make([]string, 0, len(m))
	for p := range m {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		fmt.Fprintf(b, "    %s: %s\n", scalar(p), m[p])
	}
}

func metadata(owner, group string, mode fs.FileMode) string {
	return fmt.Sprintf("owner: %s, group: %s, mode: \"%04o\"", scalar(owner), scalar(group), mode)
}

// scalar writes s as YAML: plain where that can't be misread.
func scalar(s string) string {
	plain := s != "" && (unicode.IsLetter(rune(s[0])) || s[0] == '/') && !slices.Contains([]string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}, strings.ToLower(s))
	for _, r := range s {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r))
	}
	if plain {
		return s
	}
	// What JSON can't say was refused before it came here.
	quoted, err := quote.JSON(s)
	if err != nil {
		return `""`
	}
	return quoted
}

// oneLine makes s fit a line of YAML, also a comment's.
func oneLine(s string) string {
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\uFEFF' || r == unicode.ReplacementChar || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, s)), " ")
}
