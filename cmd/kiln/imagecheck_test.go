package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/alisw/kiln/builder/bake/disk"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/internal/testdisk"
	"github.com/alisw/kiln/plan"
)

// diskOf puts an image into the store in $KILN_CACHE, whose disk has the files of a
// folder: disk PROFILE FOLDER
func diskOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk PROFILE FOLDER")
	}
	tree := ts.MkAbs(args[1])
	for name, content := range testdisk.Boot {
		to := filepath.Join(tree, name)
		ts.Check(errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, []byte(content), 0o644)))
	}
	store := &images.Store{Dir: filepath.Join(ts.Getenv("KILN_CACHE"), "images")}
	work, err := store.NewDir()
	ts.Check(err)
	defer work.Remove()
	root, out := filepath.Join(ts.MkAbs("."), "root.ext4"), filepath.Join(work.Path, "image.raw")
	ids, at := disk.NewIDs(args[0]), time.Unix(1_700_000_000, 0)
	// The programs that write filesystems are where only root looks for them.
	runner := func(ctx context.Context, c run.Command) ([]byte, error) {
		if strings.HasPrefix(filepath.Base(c.Name), "mke2fs") || strings.HasPrefix(filepath.Base(c.Name), "e2fsck") {
			c.Name = filepath.Join("/usr/sbin", filepath.Base(c.Name))
			return run.Runner(nil).Output(ctx, c)
		}
		return testdisk.Mkimage(ctx, c)
	}
	ts.Check(disk.Root(context.Background(), tree, root, disk.RootOptions{IDs: ids, Label: "root", Time: at, Free: 16 << 20, Runner: runner}))
	ts.Check(disk.Write(context.Background(), disk.Spec{Tree: tree, Root: root, Distribution: "debian", IDs: ids, Time: at, ESPSize: 40 << 20, Runner: runner}, out))
	artifact, err := images.NewArtifact(work.Path, "image.raw", images.FormatRaw)
	ts.Check(err)
	m := &images.Manifest{
		Profile: args[0], Definition: "debian-12", Created: time.Unix(1_700_000_000, 0), Artifacts: []images.Artifact{artifact},
		Release: plan.Release{ID: "debian", Codename: "bookworm", Version: "12", Architecture: "amd64"},
		Disk:    &images.Disk{Size: artifact.Size, BlockSize: images.BlockSize},
	}
	m.ID = m.ContentID()
	ts.Check(store.Put(m, work.Path))
}
