package installer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/protocol"
)

// Limits of what an image may say of itself.
const (
	mostManifest  = 128 << 20 // bytes
	mostSignature = 16 << 10  // bytes
	mostChunkList = 64 << 20  // bytes
	mostBlock     = 16 << 20  // bytes
	mebibyte      = 1 << 20
)

// getter is a Fetcher, or a test's.
type getter interface {
	Get(ctx context.Context, name string, buf []byte, most int) ([]byte, error)
}

// readImage gets what the job's image is: its disk's size and the hash of each
// block, out of a manifest whose content has the ID that the server gave over
// HTTPS, and that one of the keys has signed, where there are any.
func readImage(ctx context.Context, g getter, job *protocol.Job) (*images.Disk, error) {
	data, err := g.Get(ctx, images.ManifestName, nil, mostManifest)
	if err != nil {
		return nil, err
	}
	if len(job.Keys) > 0 {
		if err := checkSignature(ctx, g, data, job.Keys); err != nil {
			return nil, fmt.Errorf("the image %.12s: %w", job.Image, err)
		}
	}
	m, err := images.ParseManifest(data, images.ManifestName)
	switch {
	case err != nil:
		return nil, err
	case m.ID != job.Image:
		return nil, fmt.Errorf("the server sent the manifest of the image %.12s, not of %.12s", m.ID, job.Image)
	case m.Disk == nil:
		return nil, fmt.Errorf("the image %.12s has no disk, only a tree: build its definition with a kernel", job.Image)
	}
	if err := checkDisk(m.Disk); err != nil {
		return nil, fmt.Errorf("the image %.12s: %w", job.Image, err)
	}
	list, err := g.Get(ctx, images.NetbootDir+"/"+images.ChunksName, nil, mostChunkList)
	if err != nil {
		return nil, err
	}
	if err := checkChunks(list, m.Disk); err != nil {
		return nil, fmt.Errorf("the image %.12s: %w", job.Image, err)
	}
	return m.Disk, nil
}

func checkSignature(ctx context.Context, g getter, manifest []byte, texts []string) error {
	var keys []images.PublicKey
	for _, text := range texts {
		k, err := images.ParsePublicKey(text, "the site's")
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	signature, err := g.Get(ctx, images.SignatureName, nil, mostSignature)
	if errors.Is(err, errMissing) {
		return fmt.Errorf("%w, and the site has keys: kiln images sign", images.ErrUnsigned)
	}
	if err != nil {
		return err
	}
	_, err = images.CheckSignature(manifest, signature, keys)
	return err
}

// checkDisk refuses what Kiln never makes, before anything is made of it.
func checkDisk(d *images.Disk) error {
	if d.BlockSize < mebibyte || d.BlockSize > mostBlock || d.BlockSize%mebibyte != 0 {
		return fmt.Errorf("its disk has blocks of %d bytes, not of whole MiB up to %d", d.BlockSize, mostBlock)
	}
	if d.Size < headBytes+endBytes || d.Size%sectorSize != 0 {
		return fmt.Errorf("its disk of %d bytes can't have a partition table", d.Size)
	}
	if n := (d.Size + int64(d.BlockSize) - 1) / int64(d.BlockSize); int64(len(d.Blocks)) != n {
		return fmt.Errorf("its disk has %d hashes of %d blocks", len(d.Blocks), n)
	}
	for i, sum := range d.Blocks {
		if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size {
			return fmt.Errorf("the block %d of its disk has %.80q, which is no SHA-256", i, sum)
		}
	}
	return nil
}

// checkChunks compares the list of chunks, which isn't signed, with the manifest.
// Nothing of it is used but that.
func checkChunks(data []byte, d *images.Disk) error {
	var c images.Chunks
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("its list of chunks: %w", err)
	}
	if c.Size != d.Size || c.BlockSize != d.BlockSize || len(c.Chunks) != len(d.Blocks) {
		return errors.New("its list of chunks is of another disk than its manifest")
	}
	for i, chunk := range c.Chunks {
		if chunk.SHA256 != d.Blocks[i] {
			return fmt.Errorf("its list of chunks has another block %d than its manifest", i)
		}
	}
	return nil
}
