package images

// NetbootDir is the folder of an image's netboot set, and ChunksName the set's
// manifest in it.
const (
	NetbootDir = "netboot"
	ChunksName = "chunks.json"
)

// Chunks is the manifest of a netboot set, netboot/chunks.json: the disk in
// blocks, each compressed by itself. Equal blocks are one file, whichever image
// they're from; a block of zeros has no file.
type Chunks struct {
	Size      int64   `json:"size"`       // of the disk, in bytes
	BlockSize int     `json:"block_size"` // bytes
	Chunks    []Chunk `json:"chunks"`     // in the order of the disk
	Kernel    string  `json:"kernel"`     // files beside this one
	Initrd    string  `json:"initrd"`
}

// Chunk is one block of the disk.
type Chunk struct {
	SHA256 string `json:"sha256"`         // of the block
	File   string `json:"file,omitempty"` // the block as zstd, below netboot/; none where all of it is zero
	Size   int64  `json:"size,omitempty"` // of the file, in bytes
}

// ChunkFile is the file of the block with that hash, below NetbootDir.
func ChunkFile(sum string) string { return "chunks/" + sum + ".zst" }
