package importing

import (
	"strconv"
	"strings"

	"github.com/alisw/kiln/internal/problem"
)

// value is an expression as a template writes it.
type value struct {
	code string // .vars.port, or: join "," .vars.servers
	atom bool   // can be an argument as it is, without parentheses
	kind valueKind
	// variable is the variable of .vars that it is, and nothing more.
	variable string
}

type valueKind int

const (
	valueAny    valueKind = iota // whatever somebody sets
	valueString                  // surely a string
	valueNumber                  // surely a number
	valueBool
	valueList  // written as JSON, or as Ruby inspects it
	valueInner // a list's entries with something between them
)

func (v value) arg() string {
	if v.atom {
		return v.code
	}
	return "(" + v.code + ")"
}

// facts are what Puppet's facts are called in a template's data, where both
// mean the same. They stand under their structured names.
var facts = map[string]string{
	"networking.fqdn":     ".host.name",
	"networking.hostname": ".host.hostname",
	"networking.domain":   ".site.domain",
	"networking.ip":       ".host.advertise",
	"processors.count":    ".host.facts.cores",
	"memory.system.total": ".host.facts.memory_mib",
	"os.distro.codename":  ".release.codename",
	"os.release.major":    ".release.version",
}

// legacyFacts have names of their own.
var legacyFacts = map[string]string{
	"fqdn":                      "networking.fqdn",
	"hostname":                  "networking.hostname",
	"domain":                    "networking.domain",
	"ipaddress":                 "networking.ip",
	"processorcount":            "processors.count",
	"memorysize_mb":             "memory.system.total",
	"lsbdistcodename":           "os.distro.codename",
	"operatingsystemmajrelease": "os.release.major",
}

// otherFacts are names of facts that a template's data has nothing for.
var otherFacts = map[string]bool{
	"ipaddress6": true, "macaddress": true, "netmask": true, "memorysize": true, "memoryfree_mb": true, "architecture": true,
	"osfamily": true, "operatingsystem": true, "operatingsystemrelease": true, "kernel": true, "kernelversion": true,
	"kernelrelease": true, "physicalprocessorcount": true, "virtual": true, "is_virtual": true, "uptime": true, "uuid": true,
	"interfaces": true, "blockdevices": true, "mountpoints": true, "networking": true, "processors": true, "os": true, "memory": true,
	"disks": true, "trusted": true, "environment": true,
}

// compile writes e for a template.
func (t *translator) compile(e expr) (value, error) {
	switch e := e.(type) {
	case variable, index:
		return t.compilePath(e)
	case text:
		return t.compileText(e)
	case number:
		return value{code: string(e), atom: true, kind: valueNumber}, nil
	case truth:
		return value{code: strconv.FormatBool(bool(e)), atom: true, kind: valueBool}, nil
	case nothing:
		return value{code: "nil", atom: true}, nil
	case not:
		x, err := t.compileCondition(e.x)
		return value{code: "not " + x.arg(), kind: valueBool}, err
	case binary:
		return t.compileBinary(e)
	case call:
		return t.compileCall(e)
	}
	return value{}, errRuby
}

// compileCondition writes e where only its truth counts.
func (t *translator) compileCondition(e expr) (value, error) {
	switch e := e.(type) {
	case text, number, nothing:
		return value{}, errRuby // always the same: not worth a wrong guess
	case binary:
		if e.op == "&&" || e.op == "||" {
			return t.compileLogic(e, t.compileCondition)
		}
	case variable, index:
		v, err := t.compile(e)
		if err != nil {
			return v, err
		}
		if v.variable != "" {
			t.use(v.variable, KindSwitch)
			t.warnTruth(v.variable, "give it true or false")
		}
		return v, nil
	}
	return t.compile(e)
}

func (t *translator) warnTruth(name, fix string) {
	if t.warnedTruth[name] {
		return
	}
	t.warnedTruth[name] = true
	t.problems.Warnf(t.position(t.at), fix,
		"whether %s is set decides something here: Ruby takes an empty string, an empty list and 0 as set, a template takes them as not set", ".vars."+name)
}

func (t *translator) compileLogic(e binary, side func(expr) (value, error)) (value, error) {
	a, err := side(e.a)
	if err != nil {
		return a, err
	}
	b, err := side(e.b)
	if err != nil {
		return b, err
	}
	name := "and"
	if e.op == "||" {
		name = "or"
	}
	return value{code: name + " " + a.arg() + " " + b.arg()}, nil
}

var comparisons = map[string]string{"==": "eq", "!=": "ne", "<": "lt", ">": "gt", "<=": "le", ">=": "ge"}

func (t *translator) compileBinary(e binary) (value, error) {
	switch e.op {
	case "||", "&&":
		v, err := t.compileLogic(e, t.compile)
		if err == nil {
			if a, aerr := t.compile(e.a); aerr == nil && a.variable != "" {
				t.warnTruth(a.variable, "leave it empty to get the other")
			}
		}
		return v, err
	case "+":
		return t.compileSum(e)
	}
	a, err := t.compile(e.a)
	if err != nil {
		return a, err
	}
	b, err := t.compile(e.b)
	if err != nil {
		return b, err
	}
	for _, v := range []value{a, b} {
		if v.kind == valueNumber && e.op != "==" && e.op != "!=" {
			for _, other := range []value{a, b} {
				t.use(other.variable, KindNumber)
			}
		}
		if v.kind == valueList || v.kind == valueInner {
			return v, errRuby
		}
	}
	for _, v := range []value{a, b} {
		t.use(v.variable, KindSwitch)
	}
	return value{code: comparisons[e.op] + " " + a.arg() + " " + b.arg(), kind: valueBool}, nil
}

// compileSum takes a + b where one of them is surely a string: then both are.
func (t *translator) compileSum(e binary) (value, error) {
	var parts text
	isText := false
	var collect func(e expr)
	collect = func(e expr) {
		switch x := e.(type) {
		case binary:
			if x.op == "+" {
				collect(x.a)
				collect(x.b)
				return
			}
		case text:
			isText = true
			parts = append(parts, x...)
			return
		}
		parts = append(parts, e)
	}
	collect(e)
	if !isText {
		return value{}, errRuby
	}
	return t.compileText(parts)
}

// plain tells whether the text s, which Ruby would write into the file as it
// is, means itself there. Where it is part of the file's syntax, a quoted s
// would be something else.
func (t *translator) plain(s string) bool {
	return !t.writing || !t.held || !strings.ContainsAny(s, "\"\\'`$%\n\r\t")
}

// compileText writes a string of parts.
func (t *translator) compileText(parts text) (value, error) {
	if s, ok := literal(parts); ok {
		if !t.plain(s) {
			return value{}, errRuby
		}
		return value{code: strconv.Quote(s), atom: true, kind: valueString}, nil
	}
	var values []any
	for _, p := range parts {
		if s, ok := p.(string); ok {
			if !t.plain(s) {
				return value{}, errRuby
			}
			values = append(values, s)
			continue
		}
		v, err := t.compile(p)
		if err != nil {
			return v, err
		}
		values = append(values, v)
	}
	return t.concat(values)
}

// concat joins strings and values into one string.
func (t *translator) concat(parts []any) (value, error) {
	var format strings.Builder
	var args []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			format.WriteString(strings.ReplaceAll(p, "%", "%%"))
		case value:
			s, err := t.asText(p)
			if err != nil {
				return s, err
			}
			if len(parts) == 1 {
				return s, nil
			}
			format.WriteString("%s")
			args = append(args, s.arg())
		}
	}
	return value{code: strings.Join(append([]string{"printf", strconv.Quote(format.String())}, args...), " "), kind: valueString}, nil
}

// asText makes a string of v. line does it for values of which it isn't known
// what they are: printf would write a number as %!s(int=8500), and a missing
// value as if it were one.
func (t *translator) asText(v value) (value, error) {
	t.use(v.variable, KindText)
	switch v.kind {
	case valueString:
		return v, nil
	case valueList, valueInner:
		return v, errRuby
	}
	return value{code: "line " + v.arg(), kind: valueString}, nil
}

// prefix stands before the names of a template's data: within range, the dot
// is something else.
func (t *translator) prefix() string {
	for _, b := range t.blocks {
		if b.loop {
			return "$"
		}
	}
	return ""
}

// compilePath writes a variable, a fact, or an entry of one.
func (t *translator) compilePath(e expr) (value, error) {
	var keys []expr
	for {
		x, ok := e.(index)
		if !ok {
			break
		}
		keys = append([]expr{x.key}, keys...)
		e = x.x
	}
	v, ok := e.(variable)
	if !ok {
		return value{}, errRuby
	}
	if v.local && v.name == "scope" && len(keys) > 0 {
		name, ok := literal(keys[0])
		if !ok {
			return value{}, errRuby
		}
		v, keys = variable{name: name}, keys[1:]
	}
	if v.local {
		if !t.locals[v.name] {
			return value{}, errRuby
		}
		return t.entry(value{code: "$" + v.name, atom: true}, keys)
	}
	name := strings.TrimPrefix(v.name, "::")
	if name == "facts" || otherFacts[name] || legacyFacts[name] != "" {
		if f, ok, err := t.compileFact(name, keys); ok || err != nil {
			return f, err
		}
	}
	return t.compileVar(v.name, name, keys)
}

// fact is the structured name that name and keys stand for, and how many of
// the keys it took.
func factName(name string, keys []expr) (string, bool) {
	var parts []string
	if name != "facts" {
		parts = append(parts, name)
	}
	for _, k := range keys {
		s, ok := literal(k)
		if !ok {
			return "", false
		}
		parts = append(parts, s)
	}
	full := strings.Join(parts, ".")
	if structured := legacyFacts[full]; structured != "" {
		full = structured
	}
	return full, full != ""
}

func (t *translator) compileFact(name string, keys []expr) (v value, ok bool, err error) {
	full, ok := factName(name, keys)
	if !ok {
		return v, false, errRuby
	}
	code := facts[full]
	if code == "" {
		goName := strings.NewReplacer(".", "_", "::", "_", "-", "_").Replace(full)
		if nameLength(goName) != len(goName) {
			return v, false, errRuby
		}
		if !t.warnedFact[full] {
			t.warnedFact[full] = true
			t.problems.Warnf(t.position(t.at), "set it for each host, under vars: in hosts.yaml", "the fact %s is nothing that Kiln knows of a host: it became .vars.%s", full, goName)
		}
		v, err = t.compileVar(full, goName, nil)
		return v, true, err
	}
	code = t.prefix() + code
	switch full {
	case "networking.ip":
		t.usesAddress = true
	case "processors.count":
		// 0 is a host whose inventory doesn't say.
		return value{code: "or " + code + ` (fail "the inventory has no facts: cores: for this host")`, kind: valueNumber}, true, nil
	case "memory.system.total":
		if !t.warnedFact[full] {
			t.warnedFact[full] = true
			t.problems.Warnf(t.position(t.at), "check the number that comes of it", "memorysize_mb became .host.facts.memory_mib, the memory that the inventory names: Facter has what the kernel leaves of it, with decimals")
		}
		return value{code: "or " + code + ` (fail "the inventory has no facts: memory: for this host")`, kind: valueNumber}, true, nil
	}
	return value{code: code, atom: true, kind: valueString}, true, nil
}

func (t *translator) compileVar(ruby, name string, keys []expr) (value, error) {
	goName := strings.ReplaceAll(name, "::", "_")
	if goName == "" || nameLength(goName) != len(goName) {
		return value{}, errRuby
	}
	if !t.claim(goName, strings.TrimPrefix(ruby, "::")) {
		return value{}, errRuby
	}
	v := value{code: t.prefix() + ".vars." + goName, atom: true, variable: goName}
	t.use(goName, 0)
	return t.entry(v, keys)
}

// entry is v's entry under keys.
func (t *translator) entry(v value, keys []expr) (value, error) {
	for _, k := range keys {
		if s, ok := literal(k); ok {
			t.use(v.variable, KindMap)
			if v.atom && nameLength(s) == len(s) && s != "" {
				// A missing one fails, as a missing variable does.
				v = value{code: v.code + "." + s, atom: true}
				continue
			}
		}
		key, err := t.compile(k)
		if err != nil {
			return key, err
		}
		if key.kind == valueNumber {
			t.use(v.variable, KindList)
		}
		v = value{code: "index " + v.arg() + " " + key.arg()}
	}
	return v, nil
}

func (t *translator) compileCall(c call) (value, error) {
	if c.params != nil {
		return value{}, errRuby // map: only within join
	}
	if c.method == "join" {
		return t.compileJoin(c)
	}
	if len(c.args) > 0 {
		return value{}, errRuby
	}
	x, err := t.compile(c.x)
	if err != nil {
		return x, err
	}
	if x.kind == valueInner {
		return x, errRuby
	}
	switch c.method {
	case "to_s":
		return t.asText(x)
	case "to_i":
		if x.kind == valueString || x.kind == valueList {
			return x, errRuby
		}
		t.use(x.variable, KindNumber)
		x.kind = valueNumber
		return x, nil
	case "to_json", "to_pson", "inspect":
		return value{code: x.code, atom: x.atom, kind: valueList, variable: x.variable}, nil
	case "length", "size", "count":
		if x.kind != valueAny {
			return x, errRuby
		}
		t.use(x.variable, KindList)
		return value{code: "len " + x.arg(), kind: valueNumber}, nil
	case "empty?":
		if x.kind != valueAny {
			return x, errRuby
		}
		return value{code: "eq (len " + x.arg() + ") 0", kind: valueBool}, nil
	case "nil?":
		return value{code: "eq " + x.arg() + " nil", kind: valueBool}, nil
	case "first":
		t.use(x.variable, KindList)
		return value{code: "index " + x.arg() + " 0"}, nil
	}
	return value{}, errRuby
}

// compileJoin writes a list as one string. Where it is several values of the
// target's syntax instead, joinedList has seen to it before.
func (t *translator) compileJoin(c call) (value, error) {
	separator := ""
	if len(c.args) > 1 {
		return value{}, errRuby
	}
	if len(c.args) == 1 {
		s, ok := literal(c.args[0])
		if !ok || !t.plain(s) {
			return value{}, errRuby
		}
		separator = s
	}
	list, err := t.compile(c.x)
	if err != nil {
		return list, err
	}
	if list.kind != valueAny {
		return list, errRuby
	}
	t.use(list.variable, KindList)
	return value{code: "join " + strconv.Quote(separator) + " " + list.arg(), kind: valueString}, nil
}

// position is where in the ERB template offset is.
func (t *translator) position(offset int) problem.Position {
	before := t.src[:min(offset, len(t.src))]
	return problem.Position{File: t.name, Line: strings.Count(before, "\n") + 1, Column: offset - strings.LastIndexByte(before, '\n')}
}
