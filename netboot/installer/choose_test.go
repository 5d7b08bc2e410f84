package installer

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/plan"
)

// sysfs makes a tree of files; a value that begins with → is a link's target.
func sysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(content, "→"); link {
			err = os.Symlink(to, name)
		} else {
			err = os.WriteFile(name, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// block adds a disk to a tree of sysfs: at is its path below devices, without /block/NAME.
func block(files map[string]string, at, name, sectors string, more map[string]string) {
	dir := "devices/" + at + "/block/" + name
	files["block/"+name] = "→../" + dir
	files[dir+"/size"] = sectors + "\n"
	files[dir+"/removable"] = "0\n"
	files[dir+"/ro"] = "0\n"
	files[dir+"/queue/logical_block_size"] = "512\n"
	files[dir+"/device"] = "→../../../" + filepath.Base(at)
	for k, v := range more {
		if rest, ok := strings.CutPrefix(k, "device/"); ok {
			files["devices/"+at+"/"+rest] = v
		} else {
			files[dir+"/"+k] = v
		}
	}
}

// page83 is VPD page 83 with an NAA name.
func page83(naa ...byte) string {
	id := append([]byte{1, 3, 0, byte(len(naa))}, naa...)
	// The target port's name comes first, and isn't the disk's.
	port := []byte{0x61, 0x93, 0, 8, 0x50, 0, 0xc5, 0, 1, 2, 3, 4}
	all := append(port, id...)
	return string(append([]byte{0, 0x83, 0, byte(len(all))}, all...))
}

// page89 is VPD page 89 of a SATA disk.
func page89(model, serial string, wwn uint64) string {
	b := make([]byte, 572)
	text := func(word int, s string, words int) {
		s += strings.Repeat(" ", 2*words-len(s))
		for i := 0; i < len(s); i += 2 {
			b[60+2*word+i], b[60+2*word+i+1] = s[i+1], s[i]
		}
	}
	text(10, serial, 10)
	text(27, model, 20)
	binary.LittleEndian.PutUint16(b[60+2*87:], 0x4100)
	for i := range 4 {
		binary.LittleEndian.PutUint16(b[60+2*(108+i):], uint16(wwn>>(48-16*i)))
	}
	return string(b)
}

const gigabyte = "1953125" // in sectors

// aMachine is a machine of many disks.
func aMachine() map[string]string {
	files := map[string]string{"block/loop0": "→../devices/virtual/block/loop0", "devices/virtual/block/loop0/size": "100\n"}
	block(files, "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0", "sda", "937703088", map[string]string{
		"device/vendor": "ATA     \n", "device/model": "SAMSUNG MZ7L3480\n", "device/type": "0\n",
		"device/vpd_pg80": "\x00\x80\x00\x14      S3X1         ", "device/vpd_pg89": page89("SAMSUNG MZ7L3480HCHQ-00A07", "S3X1", 0x5002538f00000001),
		"device/vpd_pg83": page83(0x50, 0x02, 0x53, 0x8f, 0, 0, 0, 1),
	})
	files["devices/pci0000:00/0000:00:1f.2/ata1/ata_port/ata1/port_no"] = "1\n"
	block(files, "pci0000:00/0000:00:02.0/0000:02:00.0/host1/target1:2:0/1:2:0:0", "sdb", "7812939776", map[string]string{
		"device/vendor": "DELL    \n", "device/model": "PERC H730P Mini\n", "device/type": "0\n",
		"device/vpd_pg80": "\x00\x80\x00\x20004f2d2c9ab5d3f7290038c9f6b0b644",
		"device/vpd_pg83": page83(0x64, 0x4a, 0x84, 0x2b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc),
	})
	block(files, "pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0", "nvme0n1", gigabyte, map[string]string{
		"device/model": "INTEL SSDPE2KX010T8                     \n", "device/serial": "BTLJ1234  \n", "nsid": "1\n", "wwid": "eui.01000000010000005cd2e4\n",
	})
	block(files, "pci0000:00/0000:00:05.0/virtio2", "vda", gigabyte, map[string]string{"serial": "VIRT1"})
	block(files, "pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host7/target7:0:0/7:0:0:0", "sdc", gigabyte, map[string]string{"removable": "1\n", "device/vendor": "Kingston\n", "device/model": "DataTraveler 3.0\n"})
	block(files, "pci0000:00/0000:00:1f.2/ata2/host2/target2:0:0/2:0:0:0", "sr0", gigabyte, nil)
	block(files, "pci0000:00/0000:00:1f.5/host9/target9:0:0/9:0:0:0", "sdd", "0", map[string]string{"removable": "1\n"})
	block(files, "pci0000:00/0000:00:1f.6/nvme/nvme1", "nvme1c0n1", gigabyte, map[string]string{"hidden": "1\n"})
	return files
}

func TestReadDisks(t *testing.T) {
	disks, err := ReadDisks(sysfs(t, aMachine()))
	if err != nil {
		t.Fatal(err)
	}
	want := []Disk{
		{Name: "nvme0n1", Size: 1e9, Sector: 512, Model: "INTEL SSDPE2KX010T8", Serials: []string{"BTLJ1234"}, WWNs: []string{"01000000010000005cd2e4"},
			Links: []string{"by-id/nvme-INTEL_SSDPE2KX010T8_BTLJ1234", "by-id/nvme-INTEL_SSDPE2KX010T8_BTLJ1234_1", "by-id/nvme-eui.01000000010000005cd2e4", "by-path/pci-0000:01:00.0-nvme-1"}},
		{Name: "sda", Size: 937703088 * 512, Sector: 512, Model: "SAMSUNG MZ7L3480HCHQ-00A07", Serials: []string{"S3X1", "5002538f00000001"}, WWNs: []string{"5002538f00000001"},
			Links: []string{"by-id/ata-SAMSUNG_MZ7L3480HCHQ-00A07_S3X1", "by-id/scsi-35002538f00000001", "by-id/wwn-0x5002538f00000001", "by-path/pci-0000:00:1f.2-ata-1", "by-path/pci-0000:00:1f.2-ata-1.0"}},
		{Name: "sdb", Size: 7812939776 * 512, Sector: 512, Model: "DELL PERC H730P Mini", Serials: []string{"004f2d2c9ab5d3f7290038c9f6b0b644", "644a842b0102030405060708090a0b0c", "644a842b01020304"}, WWNs: []string{"644a842b0102030405060708090a0b0c", "644a842b01020304"},
			Links: []string{"by-id/scsi-3644a842b01020304", "by-id/scsi-3644a842b0102030405060708090a0b0c", "by-id/wwn-0x644a842b01020304", "by-id/wwn-0x644a842b0102030405060708090a0b0c", "by-path/pci-0000:02:00.0-scsi-0:2:0:0"}},
		{Name: "sdc", Size: 1e9, Sector: 512, Model: "Kingston DataTraveler 3.0", Removable: true},
		{Name: "vda", Size: 1e9, Sector: 512, Serials: []string{"VIRT1"}, Links: []string{"by-id/virtio-VIRT1", "by-path/pci-0000:00:05.0", "by-path/virtio-pci-0000:00:05.0"}},
	}
	if diff := cmp.Diff(want, disks); diff != "" {
		t.Errorf("got, other than wanted:\n%s", diff)
	}
	if s := disks[1].String(); s != "/dev/sda, 480 GB, SAMSUNG MZ7L3480HCHQ-00A07, serial S3X1, WWN 5002538f00000001" {
		t.Error(s)
	}
}

func TestChoose(t *testing.T) {
	all, err := ReadDisks(sysfs(t, aMachine()))
	if err != nil {
		t.Fatal(err)
	}
	only := func(names ...string) (list []Disk) {
		for _, d := range all {
			for _, n := range names {
				if d.Name == n {
					list = append(list, d)
				}
			}
		}
		return list
	}
	with := func(d Disk, change func(d *Disk)) []Disk { change(&d); return []Disk{d} }
	sda := only("sda")[0]
	const need = 5e8
	for name, c := range map[string]struct {
		disks   []Disk
		install plan.DiskRule
		data    []plan.DiskRule
		want    string // a name, or what the error says
	}{
		"by serial":                 {all, plan.DiskRule{Serial: "S3X1"}, nil, "sda"},
		"by the serial udev shows":  {all, plan.DiskRule{Serial: "644a842b0102030405060708090a0b0c"}, nil, "sdb"},
		"by WWN":                    {all, plan.DiskRule{WWN: "0x5002538F00000001"}, nil, "sda"},
		"by a short WWN":            {all, plan.DiskRule{WWN: "naa.644a842b01020304"}, nil, "sdb"},
		"by EUI":                    {all, plan.DiskRule{WWN: "eui.01000000010000005cd2e4"}, nil, "nvme0n1"},
		"by ID":                     {all, plan.DiskRule{Path: "/dev/disk/by-id/ata-SAMSUNG_MZ7L3480HCHQ-00A07_S3X1"}, nil, "sda"},
		"by path":                   {all, plan.DiskRule{Path: "/dev/disk/by-path/pci-0000:01:00.0-nvme-1"}, nil, "nvme0n1"},
		"by size":                   {all, plan.DiskRule{MinSize: 4e11, MaxSize: 5e11}, nil, "sda"},
		"by size and serial":        {all, plan.DiskRule{MinSize: 4e12, Serial: "S3X1"}, nil, "no disk is one with serial S3X1, at least 4.0 TB: /dev/nvme0n1, 1.0 GB, INTEL SSDPE2KX010T8, serial BTLJ1234"},
		"removable, by size":        {only("sda", "sdc"), plan.DiskRule{MaxSize: 2e9}, nil, "(removable)"},
		"the only one":              {only("sda", "sdc"), plan.DiskRule{}, nil, "sda"},
		"the only one but for data": {only("sda", "sdb", "vda"), plan.DiskRule{}, []plan.DiskRule{{Serial: "S3X1"}, {Path: "/dev/disk/by-id/virtio-VIRT1-part1"}}, "sdb"},
		"two":                       {only("sda", "sdb"), plan.DiskRule{}, nil, "2 disks are the only one that is neither a data disk nor removable: give the host an install: rule with the serial or WWN of one: /dev/sda, 480 GB, SAMSUNG MZ7L3480HCHQ-00A07, serial S3X1"},
		"none":                      {nil, plan.DiskRule{}, nil, "the machine shows no disk at all"},
		"only data":                 {only("sda"), plan.DiskRule{}, []plan.DiskRule{{Serial: "S3X1"}}, "serial S3X1, WWN 5002538f00000001 (a data disk)"},
		"another serial":            {only("sda"), plan.DiskRule{Serial: "S3X2"}, nil, "no disk is one with serial S3X2: /dev/sda, 480 GB"},
		"data and install at once":  {only("sda", "sdb"), plan.DiskRule{Serial: "S3X1"}, []plan.DiskRule{{WWN: "0x5002538f00000001"}}, "is both one with serial S3X1 and the data disk with WWN 0x5002538f00000001, which keeps every byte"},
		// The disk whose data is to be kept may be the one that is left.
		"a data disk that isn't there":       {only("sda"), plan.DiskRule{}, []plan.DiskRule{{Serial: "GONE"}}, "the data disk with serial GONE can't be told: no disk has that"},
		"the same, with a serial":            {only("sda"), plan.DiskRule{Serial: "S3X1"}, []plan.DiskRule{{Serial: "GONE"}}, "sda"},
		"a data disk by label":               {only("sda", "sdb"), plan.DiskRule{}, []plan.DiskRule{{Path: "/dev/disk/by-label/build"}}, "can't be told"},
		"two data disks of one rule":         {all, plan.DiskRule{MinSize: 4e12}, []plan.DiskRule{{MaxSize: 2e9}}, "can't be told: several have that"},
		"a path of the kernel's":             {all, plan.DiskRule{Path: "/dev/sda"}, nil, "may be another disk at each boot"},
		"a path of what's on it":             {all, plan.DiskRule{Path: "/dev/disk/by-uuid/1"}, nil, "is of what's on a disk"},
		"a partition":                        {all, plan.DiskRule{Path: "/dev/disk/by-id/virtio-VIRT1-part1"}, nil, "is a partition's"},
		"two paths to one disk":              {append(only("sda"), with(sda, func(d *Disk) { d.Name = "sde" })...), plan.DiskRule{Serial: "S3X1"}, nil, "paths to one disk"},
		"too small":                          {with(sda, func(d *Disk) { d.Size = 4e8 }), plan.DiskRule{}, nil, "is too small: the image has 500000000 bytes, and the disk 400000000"},
		"sectors of 4096":                    {with(sda, func(d *Disk) { d.Sector = 4096 }), plan.DiskRule{}, nil, "has sectors of 4096 bytes, and the image's partition table is for 512"},
		"read-only":                          {with(sda, func(d *Disk) { d.ReadOnly = true }), plan.DiskRule{Serial: "S3X1"}, nil, "is read-only"},
		"read-only, and nothing asks for it": {with(sda, func(d *Disk) { d.ReadOnly = true }), plan.DiskRule{}, nil, "(read-only)"},
		"in use":                             {with(sda, func(d *Disk) { d.Used = "md0" }), plan.DiskRule{}, nil, "is in use: md0 is on it"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Choose(c.disks, c.install, c.data, need)
			if strings.Contains(c.want, " ") || d == nil {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, and not %q", err, c.want)
				}
			} else if err != nil || d.Name != c.want {
				t.Errorf("%v, %v", d, err)
			}
		})
	}
}

func TestHolders(t *testing.T) {
	files := aMachine()
	files["devices/pci0000:00/0000:00:05.0/virtio2/block/vda/vda1/holders/dm-0"] = ""
	disks, err := ReadDisks(sysfs(t, files))
	if err != nil || disks[len(disks)-1].Used != "dm-0" {
		t.Errorf("%v, %v", disks, err)
	}
}

// FuzzPages: whatever a disk says of itself, reading it ends.
func FuzzPages(f *testing.F) {
	f.Add([]byte(page83(1, 2, 3, 4, 5, 6, 7, 8)))
	f.Add([]byte(page89("model", "serial", 1)))
	f.Fuzz(func(t *testing.T, page []byte) {
		for _, id := range identities(page) {
			if len(id) < 16 {
				t.Errorf("%q", id)
			}
		}
		identify(page)
		linkName(string(page))
	})
}
