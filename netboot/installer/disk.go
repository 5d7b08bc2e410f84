package installer

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Disk is a disk of the machine, as sysfs describes it.
type Disk struct {
	Name   string // of the kernel: sda, nvme0n1, vda
	Size   int64  // bytes
	Sector int    // bytes of its logical sectors
	Model  string
	// Serials are its serial numbers: a SCSI disk has one that it prints and one
	// that is its worldwide name.
	Serials []string
	// WWNs are its worldwide names, as normalWWN writes them, and Links its names
	// below /dev/disk, as udev makes them: by-id/wwn-0x5000c500a1b2c3d4.
	WWNs      []string
	Links     []string
	Removable bool
	ReadOnly  bool
	// Used says who has it, where somebody has: md0.
	Used string
}

// String is the disk for people: /dev/sda, 480 GB, SAMSUNG MZ7L3480, serial S3X1.
func (d *Disk) String() string {
	parts := []string{"/dev/" + d.Name, Bytes(d.Size)}
	if d.Model != "" {
		parts = append(parts, d.Model)
	}
	if len(d.Serials) > 0 {
		parts = append(parts, "serial "+d.Serials[0])
	} else {
		parts = append(parts, "no serial")
	}
	if len(d.WWNs) > 0 {
		parts = append(parts, "WWN "+d.WWNs[0])
	}
	return strings.Join(parts, ", ")
}

// Bytes writes a size as disks are sold: 480 GB.
func Bytes(n int64) string {
	units := []string{"bytes", "kB", "MB", "GB", "TB", "PB"}
	f, i := float64(n), 0
	for f >= 999.5 && i+1 < len(units) {
		f, i = f/1000, i+1
	}
	if i > 0 && f < 10 {
		return fmt.Sprintf("%.1f %s", f, units[i])
	}
	return fmt.Sprintf("%.0f %s", f, units[i])
}

// noDisk are the beginnings of the names of what isn't a disk to install to: made
// by software out of something else, or without a place to keep things.
var noDisk = regexp.MustCompile(`^(loop|ram|zram|dm-|md|sr|fd|nbd|mtd|drbd|rbd|zd|bcache|pmem)`)

// ReadDisks lists the disks that sysfs, below sys, has, sorted by name. Those
// without a medium aren't among them, nor are CDs, nor the single paths of what
// the kernel shows as one NVMe disk.
func ReadDisks(sys string) ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("looking for disks: %w", err)
	}
	var list []Disk
	for _, e := range entries {
		if noDisk.MatchString(e.Name()) {
			continue
		}
		dir, err := filepath.EvalSymlinks(filepath.Join(sys, "block", e.Name()))
		if err != nil {
			continue // it has just gone
		}
		d := readDisk(dir, e.Name())
		// Peripheral type 5 is a CD. A disk of which nothing can be read has no size.
		if d.Size == 0 || attribute(dir, "hidden") == "1" || attribute(dir, "device/type") == "5" {
			continue
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Disk) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

func readDisk(dir, name string) Disk {
	const sizeUnit = 512 // of the attribute size, whatever the disk's sectors are
	d := Disk{Name: name, Size: number(attribute(dir, "size")) * sizeUnit, Sector: int(number(attribute(dir, "queue/logical_block_size")))}
	d.Removable = attribute(dir, "removable") == "1"
	d.ReadOnly = attribute(dir, "ro") == "1"
	d.Used = holders(dir)
	switch {
	case strings.HasPrefix(name, "nvme"):
		d.nvme(dir)
	case strings.HasPrefix(name, "vd"):
		d.serial(attribute(dir, "serial"))
		if len(d.Serials) > 0 {
			d.Links = append(d.Links, "by-id/virtio-"+linkName(d.Serials[0]))
		}
	default:
		d.scsi(dir)
	}
	for _, p := range paths(dir) {
		d.Links = append(d.Links, "by-path/"+p)
	}
	slices.Sort(d.Links)
	d.Links = slices.Compact(d.Links)
	return d
}

func (d *Disk) serial(s string) {
	s = strings.TrimSpace(strings.Trim(s, "\x00"))
	if s != "" && !slices.Contains(d.Serials, s) {
		d.Serials = append(d.Serials, s)
	}
}

func (d *Disk) wwn(s string) {
	if s = normalWWN(s); s != "" && !slices.Contains(d.WWNs, s) {
		d.WWNs = append(d.WWNs, s)
	}
}

// normalWWN writes a worldwide name in one way, whoever has written it:
// 0x5000C500…, naa.5000c500… and 5000c500… are the same, and so are eui.0025… and
// 0025….
func normalWWN(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, prefix := range []string{"wwn-", "0x", "naa.", "eui."} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}

func (d *Disk) nvme(dir string) {
	d.Model = attribute(dir, "device/model")
	d.serial(attribute(dir, "device/serial"))
	if len(d.Serials) > 0 {
		id := linkName(d.Model + "_" + d.Serials[0])
		d.Links = append(d.Links, "by-id/nvme-"+id)
		if space := attribute(dir, "nsid"); space != "" {
			d.Links = append(d.Links, "by-id/nvme-"+id+"_"+space)
		}
	}
	if wwid := attribute(dir, "wwid"); wwid != "" {
		d.wwn(wwid)
		d.Links = append(d.Links, "by-id/nvme-"+linkName(wwid))
	}
}

// scsi reads what a SCSI disk says, or a SATA one, which the kernel lets speak so.
func (d *Disk) scsi(dir string) {
	device := filepath.Join(dir, "device")
	vendor := attribute(device, "vendor")
	d.Model = attribute(device, "model")
	if ata := identify(binaryAttribute(device, "vpd_pg89")); ata != nil {
		d.Model, vendor = ata.model, ""
		d.serial(ata.serial)
		d.Links = append(d.Links, "by-id/ata-"+linkName(ata.model+"_"+ata.serial))
		d.wwn(ata.wwn)
	}
	if page := binaryAttribute(device, "vpd_pg80"); len(page) > 4 {
		d.serial(string(page[4:]))
		if vendor == "ATA" && len(d.Serials) > 0 { // an older kernel: without page 89
			d.Links = append(d.Links, "by-id/ata-"+linkName(d.Model+"_"+d.Serials[0]))
		}
	}
	for _, id := range identities(binaryAttribute(device, "vpd_pg83")) {
		d.wwn(id)
		d.Links = append(d.Links, "by-id/scsi-"+map[bool]string{true: "3", false: "2"}[len(id) != 16 || id[0] != '0']+id)
	}
	if len(d.WWNs) == 0 {
		if wwid := attribute(device, "wwid"); strings.HasPrefix(wwid, "naa.") || strings.HasPrefix(wwid, "eui.") {
			d.wwn(wwid)
		}
	}
	for _, w := range d.WWNs {
		d.Links = append(d.Links, "by-id/wwn-0x"+w)
		d.serial(w) // udev's ID_SERIAL_SHORT, which lsblk shows where there is nothing better
	}
	if vendor != "" && vendor != "ATA" {
		d.Model = strings.TrimSpace(vendor + " " + d.Model)
	}
}

// ataIdentity is what a SATA disk says of itself.
type ataIdentity struct{ model, serial, wwn string }

// identify reads VPD page 89 (SAT-4), which has the ATA disk's own IDENTIFY DEVICE
// data: words of two bytes, text with each two swapped.
func identify(page []byte) *ataIdentity {
	const start, words = 60, 512
	if len(page) < start+words {
		return nil
	}
	data := page[start : start+words]
	word := func(i int) []byte { return []byte{data[2*i+1], data[2*i]} }
	text := func(from, to int) string {
		var b []byte
		for i := from; i <= to; i++ {
			b = append(b, word(i)...)
		}
		return strings.TrimSpace(strings.Trim(string(b), "\x00"))
	}
	id := &ataIdentity{model: text(27, 46), serial: text(10, 19)}
	if word(87)[0]&1 != 0 { // it has a worldwide name
		for i := 108; i <= 111; i++ {
			id.wwn += hex.EncodeToString(word(i))
		}
	}
	if id.model == "" || id.serial == "" {
		return nil
	}
	return id
}

// identities lists the names of a disk itself (not of its ports) in VPD page 83
// (SPC-4): NAA and EUI-64 in hexadecimal digits. Of a long NAA its first half
// comes after it: udev calls a disk by both.
func identities(page []byte) []string {
	const naa, eui, binary = 3, 2, 1
	var list []string
	for at := 4; at+4 <= len(page); {
		end := at + 4 + int(page[at+3])
		if end > len(page) {
			break
		}
		kind, set, of := page[at+1]&0x0f, page[at]&0x0f, page[at+1]>>4&3
		if id := hex.EncodeToString(page[at+4 : end]); of == 0 && set == binary && (kind == naa || kind == eui) && len(id) >= 16 {
			list = append(list, id)
			if kind == naa && len(id) == 32 {
				list = append(list, id[:16])
			}
		}
		at = end
	}
	return list
}

// linkName writes what a disk says as udev does in names of links.
func linkName(s string) string {
	s = strings.Join(strings.Fields(s), "_")
	return strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("#+-.:=@_/", r)) {
			if r == '/' {
				return '_'
			}
			return r
		}
		return '_'
	}, s)
}

// Parts of a device's path in sysfs, which udev's path_id makes names of.
var (
	pciPart    = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	ataPart    = regexp.MustCompile(`^ata([0-9]+)$`)
	targetPart = regexp.MustCompile(`^[0-9]+:([0-9]+):([0-9]+):([0-9]+)$`)
	virtioPart = regexp.MustCompile(`^virtio[0-9]+$`)
)

// paths are the disk's names below /dev/disk/by-path, for the buses where they are
// simple: PCI with ATA, NVMe, virtio, or SCSI on the controller's first channel.
// SAS and USB have more; their disks are told by serial or WWN.
func paths(dir string) []string {
	pci, rest, virtio, complex := "", "", false, false
	for _, part := range strings.Split(dir, "/") {
		switch {
		case pciPart.MatchString(part):
			pci, rest = "pci-"+part, ""
		case ataPart.MatchString(part):
			rest = "-ata-" + cmp.Or(portNumber(dir, part), ataPart.FindStringSubmatch(part)[1])
		case targetPart.MatchString(part) && rest == "":
			m := targetPart.FindStringSubmatch(part)
			// path_id counts a controller's hosts from 0; nearly all have one.
			rest = fmt.Sprintf("-scsi-0:%s:%s:%s", m[1], m[2], m[3])
		case virtioPart.MatchString(part):
			virtio = true
		case strings.HasPrefix(part, "end_device-"), strings.HasPrefix(part, "usb"), strings.HasPrefix(part, "rport-"):
			complex = true
		}
	}
	if space := attribute(dir, "nsid"); space != "" {
		rest = "-nvme-" + space
	}
	switch {
	case pci == "" || complex:
		return nil
	case strings.HasPrefix(rest, "-ata-"):
		return []string{pci + rest, pci + rest + ".0"}
	case virtio:
		return []string{pci + rest, "virtio-" + pci + rest}
	}
	return []string{pci + rest}
}

// portNumber is which of its controller's ports an ATA link is.
func portNumber(dir, part string) string {
	up, _, _ := strings.Cut(dir, "/"+part+"/")
	return attribute(filepath.Join(up, part, "ata_port", part), "port_no")
}

// holders names who has the disk or a partition of it, if anybody has.
func holders(dir string) string {
	for _, pattern := range []string{"holders/*", "*/holders/*"} {
		if found, err := filepath.Glob(filepath.Join(dir, pattern)); err == nil && len(found) > 0 {
			return filepath.Base(found[0])
		}
	}
	return ""
}

// attribute is a file of sysfs as text, in one line; empty where there is none.
func attribute(dir, name string) string {
	return strings.Join(strings.Fields(string(binaryAttribute(dir, name))), " ")
}

func binaryAttribute(dir, name string) []byte {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	return data
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<50 {
		return 0
	}
	return n
}
