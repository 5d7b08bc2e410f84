package bake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/run"
)

// tool is a program that a build runs, and the Debian package that has it.
type tool struct{ name, pkg, version string }

var tools = []tool{
	{"mmdebstrap", "mmdebstrap", "--version"},
	{"apt-get", "apt", "--version"},
	{"setpriv", "util-linux", "--version"},
	{"unshare", "util-linux", "--version"},
	{"mke2fs", "e2fsprogs", "-V"},
	{"e2fsck", "e2fsprogs", "-V"},
	{"zstd", "zstd", "--version"},
	{"tar", "tar", "--version"},
}

// checkMachine finds, before anything is made, what this machine lacks.
func (b *builder) checkMachine(ctx context.Context) error {
	if strings.ContainsAny(b.cache.Dir, " \t\n") {
		return fmt.Errorf("the cache's folder %q has a blank in its path, and apt takes none in the address of a repository: name another in KILN_CACHE", b.cache.Dir)
	}
	if os.Geteuid() != 0 {
		return errors.New("building an image needs root, for the owners of its files and for its packages' scripts: run it as root (sudo kiln build …)")
	}
	needed := slices.Clone(tools)
	if slices.Contains(b.formats, images.FormatQCOW2) {
		needed = append(needed, tool{"qemu-img", "qemu-utils", "--version"})
	}
	b.tools = map[string]string{}
	var missing, packages []string
	for _, t := range needed {
		path, found := lookPath(t.name)
		if !found {
			missing = append(missing, t.name)
			packages = append(packages, t.pkg)
			continue
		}
		version, err := b.cache.remembered("version of "+t.name, []string{path}, func() ([]byte, error) { return b.versionOf(ctx, t) })
		if err != nil {
			return err
		}
		b.tools[t.name] = string(version)
	}
	if len(missing) > 0 {
		slices.Sort(packages)
		return fmt.Errorf("this machine lacks %s, which a build runs: install it: apt-get install %s", strings.Join(missing, ", "), strings.Join(slices.Compact(packages), " "))
	}
	return nil
}

// checkDefinition finds what is asked of a definition in vain. The tree's packages
// run their own scripts, so that it has to be of this kind of machine.
func (b *builder) checkDefinition() error {
	a := b.definition.Release.Architecture
	if a != runtime.GOARCH {
		return fmt.Errorf("the image definition %s is for %s, and this machine is %s, on which that one's packages don't run: build it on a machine of its own kind",
			b.definition.Name, a, runtime.GOARCH)
	}
	if b.definition.Kernel != "" && a != "amd64" {
		return fmt.Errorf("the image definition %s is for %s: only for amd64 are disks made so far; with kernel: none it gives a tree", b.definition.Name, a)
	}
	for _, f := range []images.Format{images.FormatQCOW2, images.FormatNetboot} {
		if b.definition.Kernel == "" && slices.Contains(b.formats, f) {
			return fmt.Errorf("the image definition %s makes no disk (kernel: none), so that there is no %s of it: only tar", b.definition.Name, f)
		}
	}
	return nil
}

// versionOf is the first line that a program says of its version.
func (b *builder) versionOf(ctx context.Context, t tool) ([]byte, error) {
	var stderr string
	out, err := b.run.Output(ctx, run.Command{Name: t.name, Args: []string{t.version}, Env: []string{"LC_ALL=C"}, Install: "the Debian package " + t.pkg + " has it", Stderr: func(line string) {
		if stderr == "" {
			stderr = line
		}
	}})
	if err != nil {
		return nil, fmt.Errorf("%s doesn't work (is the Debian package %s whole?): %w", t.name, t.pkg, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if line == "" {
		line = stderr
	}
	return []byte(strings.TrimSpace(line)), nil
}

// systemPath is where root's programs are. su and sudo may keep the PATH of a user,
// which lacks some of it: mke2fs is there, and dpkg insists on it.
var systemPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

func searchPath() []string {
	path := filepath.SplitList(os.Getenv("PATH"))
	for _, dir := range systemPath {
		if !slices.Contains(path, dir) {
			path = append(path, dir)
		}
	}
	return path
}

func lookPath(name string) (string, bool) {
	for _, dir := range searchPath() {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

// withSystemPath runs programs with all of systemPath in their PATH.
func withSystemPath(r run.Runner) run.Runner {
	return func(ctx context.Context, c run.Command) ([]byte, error) {
		c.Env = append([]string{"PATH=" + strings.Join(searchPath(), ":")}, c.Env...)
		if found, ok := lookPath(c.Name); ok && !strings.Contains(c.Name, "/") {
			c.Name = found
		}
		return r.Output(ctx, c)
	}
}
