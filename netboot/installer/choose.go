package installer

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/alisw/kiln/plan"
)

// Choose picks the disk that the image, of need bytes, is written to: the one that
// the rule fits. Where the rule is empty, or only has sizes, disks that are
// removable or that a rule of data fits don't count. It would rather refuse than
// take a disk that may be another one: the errors name the disks there are.
func Choose(disks []Disk, install plan.DiskRule, data []plan.DiskRule, need int64) (*Disk, error) {
	if err := checkPath(install.Path); err != nil {
		return nil, err
	}
	byName := install.Serial != "" || install.WWN != "" || install.Path != ""
	kept := map[string]plan.DiskRule{} // by the disk's name
	for _, rule := range data {
		found := fitting(disks, rule)
		for _, d := range found {
			kept[d.Name] = rule
		}
		// A data disk that isn't found may be any of them, unless the rule names its own.
		if len(found) != 1 && !byName {
			return nil, fmt.Errorf("the data disk with %s can't be told: %s: which disk is free to be written, the host's install: rule has to say by its serial or WWN", Rule(rule), these(found, disks))
		}
	}
	found := fitting(disks, install)
	if !byName {
		found = slices.DeleteFunc(found, func(d *Disk) bool {
			_, isData := kept[d.Name]
			return isData || d.Removable || d.ReadOnly
		})
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("no disk is %s: %s", wanted(install), listing(pointers(disks), kept))
	case len(found) > 1 && len(found[0].WWNs) > 0 && slices.ContainsFunc(found[1:], func(d *Disk) bool { return slices.Equal(d.WWNs, found[0].WWNs) }):
		return nil, fmt.Errorf("several disks are %s, and have one WWN: they seem to be paths to one disk, which Kiln doesn't install to: %s", wanted(install), listing(found, nil))
	case len(found) > 1:
		return nil, fmt.Errorf("%d disks are %s: give the host an install: rule with the serial or WWN of one: %s", len(found), wanted(install), listing(found, nil))
	}
	d := found[0]
	if rule, isData := kept[d.Name]; isData {
		return nil, fmt.Errorf("%s is both %s and the data disk with %s, which keeps every byte", d, wanted(install), Rule(rule))
	}
	return d, fits(d, need)
}

// fits tells why an image of need bytes can't be on a disk.
func fits(d *Disk, need int64) error {
	switch {
	case d.Sector != sectorSize:
		return fmt.Errorf("%s has sectors of %d bytes, and the image's partition table is for %d: it can't boot from there (many such disks can be set to %[3]d: nvme format, sg_format)", d, d.Sector, sectorSize)
	case d.Size < need:
		return fmt.Errorf("%s is too small: the image has %d bytes, and the disk %d", d, need, d.Size)
	case d.ReadOnly:
		return fmt.Errorf("%s is read-only", d)
	case d.Used != "":
		return fmt.Errorf("%s is in use: %s is on it", d, d.Used)
	}
	return nil
}

// partition is what links to partitions end in.
var partition = regexp.MustCompile(`-part[0-9]+$`)

// derived are the folders of /dev/disk whose links come from the disk itself.
var derived = []string{"by-id", "by-path"}

// checkPath refuses a path that can't be told without udev, or not at all.
func checkPath(p string) error {
	if p == "" {
		return nil
	}
	rest, ok := strings.CutPrefix(p, "/dev/disk/")
	folder, _, _ := strings.Cut(rest, "/")
	switch {
	case !ok:
		return fmt.Errorf("the install: rule has the path %s, which may be another disk at each boot: take one below /dev/disk/by-id", p)
	case !slices.Contains(derived, folder):
		return fmt.Errorf("the install: rule has the path %s, which is of what's on a disk: take one below /dev/disk/by-id", p)
	case partition.MatchString(p):
		return fmt.Errorf("the install: rule has the path %s, which is a partition's: take the whole disk's", p)
	}
	return nil
}

// fitting lists the disks that a rule fits; the empty one fits all.
func fitting(disks []Disk, r plan.DiskRule) []*Disk {
	var list []*Disk
	for i := range disks {
		d := &disks[i]
		if (r.Serial == "" || slices.Contains(d.Serials, strings.TrimSpace(r.Serial))) &&
			(r.WWN == "" || slices.Contains(d.WWNs, normalWWN(r.WWN))) &&
			(r.Path == "" || slices.Contains(d.Links, strings.TrimPrefix(partition.ReplaceAllString(path.Clean(r.Path), ""), "/dev/disk/"))) &&
			(r.MinSize == 0 || d.Size >= r.MinSize) && (r.MaxSize == 0 || d.Size <= r.MaxSize) {
			list = append(list, d)
		}
	}
	return list
}

// Rule is a rule for people: serial S3X1, at least 480 GB.
func Rule(r plan.DiskRule) string {
	return cmp.Or(r.Words(Bytes), "no condition")
}

// wanted says what is looked for.
func wanted(r plan.DiskRule) string {
	if r == (plan.DiskRule{}) {
		return "the only one that is neither a data disk nor removable"
	}
	return "one with " + Rule(r)
}

func pointers(disks []Disk) []*Disk {
	var list []*Disk
	for i := range disks {
		list = append(list, &disks[i])
	}
	return list
}

// these says which disks a data rule has found.
func these(found []*Disk, all []Disk) string {
	if len(found) == 0 {
		return "no disk has that; there are: " + listing(pointers(all), nil)
	}
	return "several have that: " + listing(found, nil)
}

// listing names disks, and what keeps one from being written.
func listing(disks []*Disk, kept map[string]plan.DiskRule) string {
	if len(disks) == 0 {
		return "the machine shows no disk at all (is there a driver for its controller?)"
	}
	var list []string
	for _, d := range disks {
		s := d.String()
		switch _, data := kept[d.Name]; {
		case data:
			s += " (a data disk)"
		case d.Removable:
			s += " (removable)"
		case d.ReadOnly:
			s += " (read-only)"
		}
		list = append(list, s)
	}
	return strings.Join(list, "; ")
}
