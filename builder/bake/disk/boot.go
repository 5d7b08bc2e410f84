package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/alisw/kiln/internal/run"
)

// Where Debian's and Ubuntu's packages put what firmware starts.
const (
	shimFile    = "usr/lib/shim/shimx64.efi.signed"
	managerFile = "usr/lib/shim/mmx64.efi.signed"
	csvFile     = "usr/lib/shim/BOOTX64.CSV"
	grubFile    = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
	biosModules = "usr/lib/grub/i386-pc"
)

// packageOf says which Debian package has a file, for the error that the tree
// hasn't.
var packageOf = map[string]string{
	shimFile: "shim-signed", managerFile: "shim-helpers-amd64-signed", csvFile: "shim-signed",
	grubFile: "grub-efi-amd64-signed", biosModules + "/boot.img": "grub-pc-bin",
}

// bootSet is what goes to where firmware looks.
type bootSet struct {
	bootImage []byte            // the boot code for the first sector
	esp       map[string][]byte // the ESP's files
}

// bootFiles takes what it can from the image's own tree: what is started fits
// to what the tree's packages will bring later.
func bootFiles(spec *Spec) (*bootSet, error) {
	if spec.Distribution != "debian" && spec.Distribution != "ubuntu" {
		return nil, fmt.Errorf("nothing is known of how %q starts: images are made of debian and ubuntu", spec.Distribution)
	}
	tree, err := os.OpenRoot(spec.Tree)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	content := map[string][]byte{}
	for _, name := range []string{shimFile, managerFile, csvFile, grubFile, biosModules + "/boot.img"} {
		b, err := readFile(tree, name)
		if errors.Is(err, fs.ErrNotExist) && name == managerFile {
			// Ubuntu's isn't called signed.
			b, err = readFile(tree, strings.TrimSuffix(name, ".signed"))
		}
		switch {
		case err == nil:
			content[name] = b
		case errors.Is(err, fs.ErrNotExist) && name == csvFile:
			// Only names the entry of a boot menu.
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("the image has no /%s: install the package %s in it", name, packageOf[name])
		default:
			return nil, err
		}
	}
	// The signed GRUB looks for its configuration in the folder of its
	// distribution, wherever it was started from.
	vendor := "EFI/" + spec.Distribution + "/"
	set := &bootSet{bootImage: content[biosModules+"/boot.img"], esp: map[string][]byte{
		// Where firmware looks that was told of nothing.
		"EFI/BOOT/BOOTX64.EFI": content[shimFile],
		"EFI/BOOT/grubx64.efi": content[grubFile],
		"EFI/BOOT/mmx64.efi":   content[managerFile],
		vendor + "shimx64.efi": content[shimFile],
		vendor + "grubx64.efi": content[grubFile],
		vendor + "mmx64.efi":   content[managerFile],
		vendor + "grub.cfg":    []byte(findRoot(spec.IDs.Root) + "configfile $prefix/grub.cfg\n"),
	}}
	if csv, ok := content[csvFile]; ok {
		set.esp[vendor+"BOOTX64.CSV"] = csv
	}
	return set, nil
}

// readFile reads a regular file below root. Links lead through the tree, never out
// of it; an alternative of Ubuntu's shim is one to an absolute path.
func readFile(root *os.Root, name string) ([]byte, error) {
	for range mostLinks {
		target, err := root.Readlink(name)
		if err != nil {
			break
		}
		if path.IsAbs(target) {
			name = path.Clean(target)[1:]
		} else {
			name = path.Join(path.Dir(name), target)
		}
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

const mostLinks = 8 // that follow each other

// findRoot is the start of each of GRUB's configurations that aren't on the
// root themselves.
func findRoot(root UUID) string {
	return "search.fs_uuid " + root.String() + " root\nset prefix=($root)/boot/grub\n"
}

const (
	mbrCode = 440 // bytes of boot code in an MBR

	// Where GRUB's boot.img and the first sector of its core image have what
	// grub-install sets (include/grub/i386/pc/boot.h).
	bootKernelSector = 0x5c
	bootDriveCheck   = 0x66
	coreBlockList    = 0x1f4
	coreSegment      = 0x820
)

// coreModules are what GRUB has at hand before it has found the root, and
// enough to start a kernel without any other.
const coreModules = "biosdisk part_gpt ext2 search_fs_uuid normal configfile linux gzio test echo serial terminal minicmd loadenv"

// biosCore is GRUB's core image. It is made by the tree's own grub-mkimage with
// the tree's own libraries, since it has to fit to the tree's modules. What it
// writes on the way is in a folder below work.
func biosCore(ctx context.Context, spec *Spec, work string) ([]byte, error) {
	dir, err := os.MkdirTemp(work, ".kiln-grub")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	early := filepath.Join(dir, "early.cfg")
	if err := os.WriteFile(early, []byte(findRoot(spec.IDs.Root)), 0o600); err != nil {
		return nil, err
	}
	libraries := filepath.Join(spec.Tree, "usr/lib/x86_64-linux-gnu")
	mkimage := filepath.Join(spec.Tree, "usr/bin/grub-mkimage")
	loader := filepath.Join(libraries, "ld-linux-x86-64.so.2")
	for _, f := range []string{mkimage, loader} {
		if _, err := os.Lstat(f); err != nil {
			return nil, fmt.Errorf("the image's grub-mkimage: %w: install the package grub-common in it", err)
		}
	}
	// It wants to sync what it writes, so that a pipe won't do.
	made := filepath.Join(dir, "core.img")
	args := append([]string{
		"--library-path", libraries, mkimage, "--format=i386-pc", "--directory=" + filepath.Join(spec.Tree, biosModules),
		"--prefix=/boot/grub", "--config=" + early, "--output=" + made,
	}, strings.Fields(coreModules)...)
	if err := spec.Runner.Run(ctx, run.Command{Name: loader, Args: args, Env: []string{"LC_ALL=C"}}); err != nil {
		return nil, fmt.Errorf("GRUB's core image for BIOS: %w", err)
	}
	core, err := os.ReadFile(made)
	if err != nil {
		return nil, fmt.Errorf("GRUB's core image for BIOS: %w", err)
	}
	return patchCore(core, biosStart/sectorSize, biosSize)
}

// patchCore fills core up to whole sectors, and tells its first one where the
// others are once it is at that sector.
func patchCore(core []byte, sector uint64, room int) ([]byte, error) {
	switch {
	case len(core) <= sectorSize:
		return nil, fmt.Errorf("GRUB's core image has %d bytes, which is none", len(core))
	case len(core) > room:
		return nil, fmt.Errorf("GRUB's core image has %d bytes: the partition for it has %d", len(core), room)
	}
	whole := make([]byte, (len(core)+sectorSize-1)/sectorSize*sectorSize)
	copy(whole, core)
	list := whole[coreBlockList:sectorSize]
	le := binary.LittleEndian
	sectors := len(whole)/sectorSize - 1
	if got, segment := int(le.Uint16(list[8:])), le.Uint16(list[10:]); got != sectors || segment != coreSegment {
		return nil, fmt.Errorf("GRUB's core image has a block list of %d sectors to segment %#x: %d to %#x are expected, so that this GRUB isn't known",
			got, segment, sectors, coreSegment)
	}
	le.PutUint64(list, sector+1)
	return whole, nil
}

// biosBoot is the first sector's code, which loads the first sector of core.
func biosBoot(image, core []byte, sector uint64) (code [mbrCode]byte, err error) {
	if len(image) != sectorSize || len(core) == 0 {
		return code, fmt.Errorf("GRUB's boot.img has %d bytes: %d are expected", len(image), sectorSize)
	}
	copy(code[:], image)
	binary.LittleEndian.PutUint64(code[bootKernelSector:], sector)
	// Not to believe a BIOS that says it started from a floppy disk: this is none.
	code[bootDriveCheck], code[bootDriveCheck+1] = 0x90, 0x90
	return code, nil
}
