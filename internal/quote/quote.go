// Package quote writes values so that the program that reads a file gets them
// back exactly: one function for each format that Kiln's templates write into.
//
// Each returns an error for what its format can't carry. None of them ever
// changes a value to make it fit.
package quote

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Format names the syntax of the place that a value lands in.
type Format string

// The formats that a template can quote for. Raw is a place without a quoting
// syntax of its own, such as a line of dnsmasq's configuration.
const (
	FormatRaw     Format = "line"
	FormatHCL     Format = "hcl"
	FormatYAML    Format = "yaml"
	FormatJSON    Format = "json"
	FormatShell   Format = "sh"
	FormatSystemd Format = "systemd"
)

// Formats lists every format, in the order that documentation shows them.
func Formats() []Format {
	return []Format{FormatHCL, FormatYAML, FormatJSON, FormatShell, FormatSystemd, FormatRaw}
}

// As writes v for a place of format f.
func As(f Format, v any) (string, error) {
	switch f {
	case FormatHCL:
		return HCL(v)
	case FormatYAML:
		return YAML(v)
	case FormatJSON:
		return JSON(v)
	case FormatShell:
		return Shell(v)
	case FormatSystemd:
		return Systemd(v)
	case FormatRaw:
		return Line(v)
	}
	return "", fmt.Errorf("no format is called %q", f)
}

// FormatOf says which quoting the file called name asks of every value in it;
// ok is false where Kiln holds the file to none.
func FormatOf(name string) (f Format, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", false
	}
	switch name[i+1:] {
	case "hcl":
		return FormatHCL, true
	case "yaml", "yml":
		return FormatYAML, true
	case "json":
		return FormatJSON, true
	case "sh":
		return FormatShell, true
	case "service", "socket", "timer", "path", "mount", "automount", "target", "slice", "link", "netdev", "network":
		return FormatSystemd, true
	}
	return "", false
}

// HCL writes v as a literal that HCL 1 (the agents' configuration) and HCL 2
// (Packer's) both read as v. Neither `${` nor `%{` survives as an opening of
// an interpolation: the character before the brace is written as \u0024 or
// \u0025, since HCL 1 keeps HCL 2's `$${` literally.
//
// Refused is what one of the two reads as something else: text that isn't in
// Unicode's normal form C, which HCL 2 would bring into it, and integers of
// more than 63 bits, which HCL 1 doesn't have.
func HCL(v any) (string, error) {
	return literal(v, syntax{hclString, hclNumber, " = "})
}

// JSON writes v as JSON that is also a YAML flow value: control characters
// that YAML forbids are escaped.
func JSON(v any) (string, error) {
	return literal(v, syntax{jsonString, anyNumber, ": "})
}

// YAML writes v as a YAML flow value, in JSON's syntax. Refused is a map's key
// of more than 1024 characters, which YAML wouldn't take for one.
func YAML(v any) (string, error) {
	if err := yamlKeys(reflect.ValueOf(v)); err != nil {
		return "", err
	}
	return JSON(v)
}

// Shell writes v as exactly one word of a POSIX shell. A list gives one word
// for each entry.
func Shell(v any) (string, error) {
	return words(v, shellWord)
}

// Systemd writes v as exactly one word of a unit file's setting: specifiers
// (%) are doubled, and what needs them gets quotes. It is for the settings
// that systemd splits into words, such as ExecStart=, Environment= and
// RequiresMountsFor=; others, such as ConditionPathExists=, would keep the
// quotes.
//
// A $ is refused: ExecStart= wants it doubled and Environment= doesn't, so no
// spelling of it means the same in both.
func Systemd(v any) (string, error) {
	return words(v, systemdWord)
}

// Line writes v as it is, and refuses what would not stay on its line.
func Line(v any) (string, error) {
	s, err := scalarText(v)
	if err != nil {
		return "", err
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return "", fmt.Errorf("a value for a line of text has the control character %U", r)
		}
	}
	return s, nil
}

var errText = errors.New("a value is not valid UTF-8, or holds a NUL byte")

func checkText(s string) error {
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return errText
	}
	return nil
}

// syntax is how one of the formats with lists and maps is written.
type syntax struct {
	text   func(string) (string, error)
	number func(digits string) error // refuses what the format doesn't have
	is     string                    // stands between a key and its value
}

// literal writes scalars, lists and maps.
func literal(v any, in syntax) (string, error) {
	if s, ok, err := scalar(v); err != nil {
		return "", err
	} else if ok {
		if s.quoted {
			return in.text(s.text)
		}
		return s.text, in.number(s.text)
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Slice, reflect.Array:
		parts := make([]string, rv.Len())
		for i := range parts {
			p, err := literal(rv.Index(i).Interface(), in)
			if err != nil {
				return "", err
			}
			parts[i] = p
		}
		return "[" + strings.Join(parts, ", ") + "]", nil
	case reflect.Map:
		return object(rv, in)
	}
	return "", fmt.Errorf("a value of type %T can't be written into a file", v)
}

// object writes a map, in the order of its keys.
func object(rv reflect.Value, in syntax) (string, error) {
	if rv.Type().Key().Kind() != reflect.String {
		return "", fmt.Errorf("a map with keys of type %s can't be written", rv.Type().Key())
	}
	keys := rv.MapKeys()
	sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
	parts := make([]string, len(keys))
	for i, k := range keys {
		if err := checkText(k.String()); err != nil {
			return "", err
		}
		key, err := in.text(k.String())
		if err != nil {
			return "", err
		}
		value, err := literal(rv.MapIndex(k).Interface(), in)
		if err != nil {
			return "", err
		}
		parts[i] = key + in.is + value
	}
	return "{" + strings.Join(parts, ", ") + "}", nil
}

// longestYAMLKey is in characters, quotes and escapes included.
const longestYAMLKey = 1024

// yamlKeys refuses keys, at any depth, that are too long for YAML.
func yamlKeys(rv reflect.Value) error {
	for rv.Kind() == reflect.Interface {
		rv = rv.Elem()
	}
	switch rv.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range rv.Len() {
			if err := yamlKeys(rv.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for _, k := range rv.MapKeys() {
			if k.Kind() == reflect.String {
				if key, _ := jsonString(k.String()); utf8.RuneCountInString(key) > longestYAMLKey {
					return fmt.Errorf("a key has %d characters: YAML takes %d at most", utf8.RuneCountInString(key), longestYAMLKey)
				}
			}
			if err := yamlKeys(rv.MapIndex(k)); err != nil {
				return err
			}
		}
	}
	return nil
}

type scalarValue struct {
	text   string
	quoted bool // a string, to be quoted
}

// scalar gives the text of strings, numbers and booleans; ok is false for
// anything else.
func scalar(v any) (s scalarValue, ok bool, err error) {
	switch v := v.(type) {
	case nil:
		return scalarValue{}, false, errors.New("there is no value to write")
	case string:
		return scalarValue{v, true}, true, checkText(v)
	case bool:
		return scalarValue{strconv.FormatBool(v), false}, true, nil
	case int:
		return scalarValue{strconv.Itoa(v), false}, true, nil
	case fmt.Stringer:
		if p := reflect.ValueOf(v); p.Kind() == reflect.Pointer && p.IsNil() {
			return scalarValue{}, false, errors.New("there is no value to write")
		}
		// Addresses, versions, secrets' references: what they print is their value.
		return scalarValue{v.String(), true}, true, checkText(v.String())
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.String:
		return scalarValue{rv.String(), true}, true, checkText(rv.String())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return scalarValue{strconv.FormatInt(rv.Int(), 10), false}, true, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return scalarValue{strconv.FormatUint(rv.Uint(), 10), false}, true, nil
	case reflect.Float32, reflect.Float64:
		if f := rv.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return scalarValue{}, false, fmt.Errorf("%v is no number that can be written", f)
		}
		return scalarValue{strconv.FormatFloat(rv.Float(), 'f', -1, rv.Type().Bits()), false}, true, nil
	}
	return scalarValue{}, false, nil
}

// scalarText is scalar for the formats that have nothing but text.
func scalarText(v any) (string, error) {
	s, ok, err := scalar(v)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", fmt.Errorf("a value of type %T can't be written into a line: write its entries one by one", v)
	}
	return s.text, nil
}

func words(v any, word func(string) (string, error)) (string, error) {
	if _, ok, _ := scalar(v); !ok && v != nil {
		if rv := reflect.ValueOf(v); rv.Kind() == reflect.Slice {
			parts := make([]string, rv.Len())
			for i := range parts {
				s, err := scalarText(rv.Index(i).Interface())
				if err != nil {
					return "", err
				}
				if parts[i], err = word(s); err != nil {
					return "", err
				}
			}
			return strings.Join(parts, " "), nil
		}
	}
	s, err := scalarText(v)
	if err != nil {
		return "", err
	}
	return word(s)
}

func anyNumber(string) error { return nil }

func hclNumber(digits string) error {
	if strings.ContainsFunc(digits, func(r rune) bool { return r != '-' && (r < '0' || r > '9') }) {
		return nil // a fraction, true, false
	}
	if _, err := strconv.ParseInt(digits, 10, 64); err != nil {
		return fmt.Errorf("the number %s is too large for HCL: write it as a text", digits)
	}
	return nil
}

var errNormal = errors.New("a value is not in Unicode's normal form C, and HCL 2 would change it: compose its characters (uconv -x any-nfc)")

func hclString(s string) (string, error) {
	if !norm.NFC.IsNormalString(s) {
		return "", errNormal
	}
	var b strings.Builder
	b.Grow(len(s) + 2)
	b.WriteByte('"')
	for i, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case (r == '$' || r == '%') && strings.HasPrefix(s[i+1:], "{"), unicode.IsControl(r), r == '\uFEFF', r == hcl1Reserved:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}

// hcl1Reserved is a character that HCL 1's scanner keeps for itself.
const hcl1Reserved = '\uE123'

func jsonString(s string) (string, error) {
	plain := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return `"` + s + `"`, nil
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	// Encoding a string never fails.
	_ = enc.Encode(s)
	quoted := strings.TrimSuffix(b.String(), "\n")
	if !strings.ContainsFunc(quoted, yamlEscapes) {
		return quoted, nil
	}
	b.Reset()
	for _, r := range quoted {
		if yamlEscapes(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String(), nil
}

// yamlEscapes are what JSON leaves as it is and YAML calls not printable, or a
// line break.
func yamlEscapes(r rune) bool {
	return r >= 0x7f && r <= 0x9f || r == '\uFEFF' || r == 0xfffe || r == 0xffff
}

func shellWord(s string) (string, error) {
	if err := checkText(s); err != nil {
		return "", err
	}
	return Word(s), nil
}

// Word is s as one word of a shell, always in quotes. It is known to be text: Shell
// is for what isn't.
func Word(s string) string {
	// Single quotes keep every byte but themselves, newlines included, in every
	// shell.
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func systemdWord(s string) (string, error) {
	if err := checkText(s); err != nil {
		return "", err
	}
	if strings.Contains(s, "$") {
		return "", errors.New("a value holds a $, which systemd reads differently in ExecStart= and in Environment=: put it into an EnvironmentFile or a script")
	}
	s = strings.ReplaceAll(s, "%", "%%")
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '"' || r == '\'' || r == '\\' || r == ';' || unicode.IsSpace(r) || unicode.IsControl(r)
	}) {
		return s, nil
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsControl(r) && r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}
