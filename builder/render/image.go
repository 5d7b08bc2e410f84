package render

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/alisw/kiln/plan"
)

const (
	// keyringDirectory is where apt(8) has the keys of an administrator's sources.
	keyringDirectory = "/etc/apt/keyrings"
	// grubPath adds kernel arguments to those that the image sets itself.
	grubPath = "/etc/default/grub.d/90-kiln.cfg"
)

// ImageFiles is every file of the Image half: the plan's own, and those that
// Kiln makes from what else it says (apt sources and their keys, the kernel's
// arguments, sudo), sorted by path. Whoever carries the Image half anywhere
// takes its files from here.
func ImageFiles(image *plan.Image) ([]plan.File, error) {
	files := slices.Clone(image.Files)
	for _, s := range image.AptSources {
		made, err := aptFiles(&s)
		if err != nil {
			return nil, err
		}
		files = append(files, made...)
	}
	if len(image.KernelArguments) > 0 {
		f, err := grubFile(image.KernelArguments)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	files = append(files, sudoFiles(image.Users)...)
	slices.SortStableFunc(files, func(a, b plan.File) int { return strings.Compare(a.Path, b.Path) })
	if err := checkTwice(files); err != nil {
		return nil, err
	}
	for i := range files {
		if err := checkFile(&files[i]); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// ImagePaths are where the Image half puts something: files, directories, and its
// users' SSH keys.
func ImagePaths(image *plan.Image) (map[string]bool, error) {
	files, err := ImageFiles(image)
	if err != nil {
		return nil, err
	}
	paths := map[string]bool{}
	for i := range files {
		paths[files[i].Path] = true
	}
	for i := range image.Directories {
		paths[image.Directories[i].Path] = true
	}
	for i := range image.Users {
		if u := &image.Users[i]; len(u.SSHKeys) > 0 {
			paths[path.Join(HomeOf(u), ".ssh/authorized_keys")] = true
		}
	}
	return paths, nil
}

// aptFiles is a source in deb822 form, and its key. The key's name ends in .asc
// since apt takes any other for a binary one, and its mode lets apt's own user
// read it.
func aptFiles(s *plan.AptSource) ([]plan.File, error) {
	if len(s.Key) == 0 {
		return nil, fmt.Errorf("%s: the apt source %s has no key: the one with fingerprint %s is needed; fetch and check it with: kiln keys fetch",
			s.Origin, s.Name, s.Fingerprint)
	}
	if !isPlain(s.Name, "_.-") {
		return nil, fmt.Errorf("%s: the apt source %q: a name has letters, digits, ., - and _ alone", s.Origin, s.Name)
	}
	key := keyringDirectory + "/" + s.Name + ".asc"
	var b bytes.Buffer
	b.WriteString("Types: deb\n")
	for _, field := range []struct {
		name   string
		values []string
	}{{"URIs", s.URIs}, {"Suites", s.Suites}, {"Components", s.Components}} {
		for _, v := range field.values {
			if v == "" || strings.ContainsFunc(v, notInWord) {
				return nil, fmt.Errorf("%s: the apt source %s has %q in its %s: no white space may be there", s.Origin, s.Name, v, field.name)
			}
		}
		if len(field.values) > 0 {
			b.WriteString(field.name + ": " + strings.Join(field.values, " ") + "\n")
		}
	}
	b.WriteString("Signed-By: " + key + "\n")
	source := rootFile("/etc/apt/sources.list.d/"+s.Name+".sources", 0o644, b.Bytes())
	keyFile := rootFile(key, 0o644, s.Key)
	source.Origin, keyFile.Origin = s.Origin, s.Origin
	return []plan.File{keyFile, source}, nil
}

// grubFile adds to GRUB_CMDLINE_LINUX, which recovery entries have as well.
func grubFile(arguments []plan.Text) (plan.File, error) {
	words := make([]string, len(arguments))
	for i, a := range arguments {
		// What is left needs no quoting in the shell that reads this file, none
		// in grub.cfg, and none in /proc/cmdline.
		if !isPlain(a.Value, "/_.@+:=,%~^-") {
			return plan.File{}, fmt.Errorf("%s: the kernel argument %q: neither white space nor quotes can be in one, nor any of $ ; & | < > { } # *",
				a.Origin, a.Value)
		}
		words[i] = a.Value
	}
	text := "# Added by kiln to the kernel's command line; update-grub puts it into effect.\n" +
		`GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ` + strings.Join(words, " ") + "\"\n"
	return rootFile(grubPath, 0o644, []byte(text)), nil
}
