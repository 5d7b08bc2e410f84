package installer

// buffer is memory for a block.
func buffer(n int) ([]byte, error) { return Aligned(n) }
