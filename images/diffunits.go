package images

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// UnitChange is a unit of systemd that isn't in the same state in both images.
type UnitChange struct {
	Name   string    `json:"name"`
	Before UnitState `json:"before"`
	After  UnitState `json:"after"`
}

// The states of a unit.
const (
	UnitEnabled  = "enabled"  // by a link in a .wants or .requires folder
	UnitMasked   = "masked"   // by a link to /dev/null, or an empty file, in its place
	UnitDisabled = "disabled" // it is there, and nothing in /etc starts it
	UnitAbsent   = "absent"
)

// UnitState is whether a unit starts, as /etc/systemd/system says.
type UnitState struct {
	State string   `json:"state"`
	By    []string `json:"by,omitempty"` // the units that want it, where it's enabled
}

func (s UnitState) String() string {
	if len(s.By) == 0 {
		return s.State
	}
	return s.State + " (" + strings.Join(s.By, ", ") + ")"
}

const unitDir = "/etc/systemd/system"

// unitDirs is where unit files are.
var unitDirs = []string{unitDir, "/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"}

// units are those that /etc/systemd/system says something of, and there the names
// of all unit files.
func units(files []File) (said map[string]UnitState, there map[string]bool) {
	said, there = map[string]UnitState{}, map[string]bool{}
	for i := range files {
		f := &files[i]
		dir, name := path.Split(f.Path)
		dir = path.Clean(dir)
		if slices.Contains(unitDirs, dir) && f.Type != "directory" {
			there[name] = true
			if dir == unitDir && masks(f) {
				said[name] = UnitState{State: UnitMasked}
			}
			continue
		}
		by, ok := strings.CutSuffix(path.Base(dir), ".wants")
		if !ok {
			by, ok = strings.CutSuffix(path.Base(dir), ".requires")
		}
		if !ok || path.Dir(dir) != unitDir || f.Type != "link" || said[name].State == UnitMasked {
			continue
		}
		s := UnitState{State: UnitEnabled, By: append(said[name].By, by)}
		slices.Sort(s.By)
		s.By = slices.Compact(s.By)
		said[name] = s
	}
	return said, there
}

// masks tells whether a file in a unit's place masks it.
func masks(f *File) bool {
	if f.Type == "file" {
		return f.Size == 0
	}
	target := f.Target
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(f.Path), target)
	}
	return f.Type == "link" && path.Clean(target) == "/dev/null"
}

// compareUnits finds the units that are enabled or masked in one image, and not
// in the same way in the other.
func compareUnits(before, after []File) []UnitChange {
	a, isInA := units(before)
	b, isInB := units(after)
	state := func(name string, said map[string]UnitState, there map[string]bool) UnitState {
		if s, ok := said[name]; ok {
			return s
		}
		if there[name] || there[template(name)] {
			return UnitState{State: UnitDisabled}
		}
		return UnitState{State: UnitAbsent}
	}
	var list []UnitChange
	for _, name := range slices.Sorted(maps.Keys(union(a, b))) {
		was, is := state(name, a, isInA), state(name, b, isInB)
		if was.State != is.State || !slices.Equal(was.By, is.By) {
			list = append(list, UnitChange{name, was, is})
		}
	}
	return list
}

// template is the file that an instance such as getty@tty1.service is made from.
func template(unit string) string {
	before, after, ok := strings.Cut(unit, "@")
	if !ok {
		return unit
	}
	return before + "@" + path.Ext(after)
}
