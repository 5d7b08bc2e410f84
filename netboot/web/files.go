package web

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"
)

// Names of a boot's files.
const (
	kernelName    = "vmlinuz"
	installerName = "installer.img"
)

const (
	// A client that takes less than a piece in this time is gone, or so slow that
	// it would be at it for hours: 35 kB/s.
	piece     = 1 << 20
	pieceTime = 30 * time.Second
	// turn is what is sent before others have their turn, in a crowd: where hundreds
	// fetch at once, over a network that takes whatever comes, each would keep its
	// processor for 10 ms, and a packet of TFTP would wait for all of them. Among few,
	// turns only cost.
	turn  = 256 << 10
	crowd = 32
)

// ipxe serves iPXE's programs, for UEFI HTTP boot.
func (s *Server) ipxe(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	if s.IPXE == nil || !fs.ValidPath(name) || strings.HasPrefix(name, ".") {
		http.NotFound(w, r)
		return
	}
	f, err := s.IPXE.Open(name)
	if err != nil {
		s.noFile(w, r, err)
		return
	}
	defer f.Close()
	if f, ok := f.(seekable); ok {
		s.sendFile(w, r, f, "ipxe")
		return
	}
	http.NotFound(w, r)
}

// bootFile serves what iPXE boots.
func (s *Server) bootFile(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	var f *os.File
	var kind string
	err := error(fs.ErrNotExist)
	switch {
	case !isID(id):
	case r.PathValue("file") == kernelName:
		kind = "kernel"
		f, err = s.Images.Kernel(id)
	case r.PathValue("file") == installerName:
		kind = "initramfs"
		f, err = s.Images.Installer(id)
	}
	if err != nil {
		s.noFile(w, r, err)
		return
	}
	defer f.Close()
	s.sendFile(w, r, f, kind)
}

// imageFile serves what the installer reads of an image.
func (s *Server) imageFile(w http.ResponseWriter, r *http.Request) {
	id, name := r.PathValue("id"), r.PathValue("name")
	kind := kindOf(name)
	if !isID(id) || kind == "" {
		http.NotFound(w, r)
		return
	}
	f, err := s.Images.Open(id, name)
	if err != nil {
		s.noFile(w, r, err)
		return
	}
	defer f.Close()
	if kind == "chunk" {
		// Its name is its content's: a cache in each rack may keep it.
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	s.sendFile(w, r, f, kind)
}

// kindOf tells what a file of an image is, and is empty for what isn't served.
func kindOf(name string) string {
	switch name {
	case "manifest.json", "manifest.json.minisig", "netboot/chunks.json":
		return "manifest"
	}
	chunk, ok := strings.CutPrefix(name, "netboot/chunks/")
	if !ok {
		return ""
	}
	base, ok := strings.CutSuffix(chunk, ".zst")
	if !ok || base == "" || len(base) > 100 || strings.Trim(base, "0123456789abcdefghijklmnopqrstuvwxyz-_") != "" {
		return ""
	}
	return "chunk"
}

// isID tells whether it is an image's: a SHA-256.
func isID(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

func (s *Server) noFile(w http.ResponseWriter, r *http.Request, err error) {
	if !errors.Is(err, fs.ErrNotExist) {
		s.Log.Error("a file can't be served", "path", r.URL.Path, "error", err)
		http.Error(w, "it can't be read: the server's log says why", http.StatusInternalServerError)
		return
	}
	http.NotFound(w, r)
}

type seekable interface {
	fs.File
	io.Seeker
}

// sendFile sends a file, or the ranges of it that are asked for.
func (s *Server) sendFile(w http.ResponseWriter, r *http.Request, f seekable, kind string) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		s.noFile(w, r, firstOf(err, fs.ErrNotExist))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	t := s.counts.transfer(kind)
	p := &pieces{ResponseWriter: w, control: http.NewResponseController(w), size: piece}
	if s.sending.Add(1) > crowd {
		p.size = turn
	}
	defer s.sending.Add(-1)
	if info.Size() >= largeFile {
		defer inWholePackets(r)()
	}
	http.ServeContent(p, r, "", info.ModTime(), f)
	t.bytes.Add(int(p.sent))
	switch {
	case p.err != nil:
		t.broken.Inc()
		s.Log.Warn("a transfer broke off", "path", r.URL.Path, "address", source(r), "sent", p.sent, "error", p.err)
	case p.sent > 0:
		t.whole.Inc()
	}
}

// pieces sends a body piece by piece, each within its time, and counts. A file's
// pieces go through sendfile(2), as the whole would.
type pieces struct {
	http.ResponseWriter
	control *http.ResponseController
	size    int64 // of what is sent before others have their turn: piece or turn
	sent    int64
	err     error
}

func (p *pieces) Write(data []byte) (int, error) {
	p.control.SetWriteDeadline(time.Now().Add(pieceTime)) //nolint:errcheck // a recorder in a test has none
	n, err := p.ResponseWriter.Write(data)
	p.sent += int64(n)
	p.err = firstOf(p.err, err)
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (p *pieces) ReadFrom(from io.Reader) (int64, error) {
	to, ok := p.ResponseWriter.(io.ReaderFrom)
	limited, isLimited := from.(*io.LimitedReader)
	if !ok || !isLimited {
		return io.Copy(struct{ io.Writer }{p}, from)
	}
	var sum int64
	for limited.N > 0 {
		if sum%piece == 0 {
			p.control.SetWriteDeadline(time.Now().Add(pieceTime)) //nolint:errcheck
		} else {
			runtime.Gosched()
		}
		part := &io.LimitedReader{R: limited.R, N: min(p.size, limited.N)}
		n, err := to.ReadFrom(part)
		limited.N -= n
		sum += n
		p.sent += n
		if err != nil {
			p.err = firstOf(p.err, err)
			return sum, err
		}
		if n == 0 {
			break // the file is shorter than it was
		}
	}
	return sum, nil
}

// limitWrite bounds how long an answer may take to be sent, from now on.
func limitWrite(w http.ResponseWriter) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)) //nolint:errcheck // a recorder in a test has none
}
