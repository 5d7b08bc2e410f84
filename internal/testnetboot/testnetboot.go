// Package testnetboot is what tests give to the network installer: images in a
// folder as the web server has them, and a server that speaks its protocol and
// remembers what it was told.
package testnetboot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/netboot/protocol"
)

// Image writes an image's manifest and chunks to dir: raw is its disk.
func Image(t testing.TB, dir string, raw []byte, blockSize int) *images.Manifest {
	t.Helper()
	m := &images.Manifest{Profile: "plain", Definition: "debian-12", Disk: &images.Disk{Size: int64(len(raw)), BlockSize: blockSize}}
	list := images.Chunks{Size: m.Disk.Size, BlockSize: blockSize, Kernel: "vmlinuz", Initrd: "initrd.img"}
	set := filepath.Join(dir, images.NetbootDir)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for at := 0; at < len(raw); at += blockSize {
		block := raw[at:min(at+blockSize, len(raw))]
		sum := sha256.Sum256(block)
		c := images.Chunk{SHA256: hex.EncodeToString(sum[:])}
		m.Disk.Blocks = append(m.Disk.Blocks, c.SHA256)
		if strings.Trim(string(block), "\x00") != "" {
			c.File = images.ChunkFile(c.SHA256)
			packed := z.EncodeAll(block, nil)
			c.Size = int64(len(packed))
			Place(t, filepath.Join(set, c.File), packed)
		}
		list.Chunks = append(list.Chunks, c)
	}
	m.ID = m.ContentID()
	Place(t, filepath.Join(dir, images.ManifestName), encoded(t, m))
	Place(t, filepath.Join(set, images.ChunksName), encoded(t, list))
	return m
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Place writes a file, with the folders that it needs.
func Place(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Server speaks the installer's protocol.
type Server struct {
	Job     protocol.Job
	Token   string
	Seed    protocol.Seed
	InLine  int // how often an installation is told to wait before its turn
	Stop    string
	Refuse  map[string]protocol.Refusal    // by path
	Changed func(path string, body []byte) // is told of each request; may be nil

	HTTPS *httptest.Server
	Pin   string

	mu       sync.Mutex
	redeemed bool
	reports  []protocol.Report
	calls    []string
}

// Start starts it.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.HTTPS = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.HTTPS.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.HTTPS.StartTLS()
	t.Cleanup(s.HTTPS.Close)
	s.Pin = protocol.Pin(s.HTTPS.Certificate())
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	var raw json.RawMessage
	if err := json.NewDecoder(r.Body).Decode(&raw); err != nil || r.Method != http.MethodPost {
		refuse(w, http.StatusBadRequest, protocol.Refusal{Error: "no JSON"})
		return
	}
	if s.Changed != nil {
		s.Changed(r.URL.Path, raw)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Path != protocol.PathReport {
		s.calls = append(s.calls, r.URL.Path)
	}
	if refusal, ok := s.Refuse[r.URL.Path]; ok {
		refuse(w, http.StatusConflict, refusal)
		return
	}
	if r.URL.Path != protocol.PathRedeem && r.Header.Get("Authorization") != "Bearer "+s.Job.Session {
		refuse(w, http.StatusUnauthorized, protocol.Refusal{Error: "no such session", Code: protocol.CodeSession})
		return
	}
	var answer any = struct{}{}
	switch r.URL.Path {
	case protocol.PathRedeem:
		var q protocol.RedeemRequest
		switch err := json.Unmarshal(raw, &q); {
		case err != nil || q.Token != s.Token:
			refuse(w, http.StatusForbidden, protocol.Refusal{Error: "no such token", Code: protocol.CodeToken})
			return
		case s.redeemed:
			refuse(w, http.StatusConflict, protocol.Refusal{Error: "it was redeemed by 10.0.0.9", Code: protocol.CodeRedeemed})
			return
		}
		s.redeemed, answer = true, s.Job
	case protocol.PathTurn:
		answer = protocol.Turn{Go: s.InLine == 0, Place: s.InLine, Wait: 1}
		s.InLine = max(s.InLine-1, 0)
	case protocol.PathReport:
		var q protocol.Report
		if err := json.Unmarshal(raw, &q); err != nil {
			refuse(w, http.StatusBadRequest, protocol.Refusal{Error: err.Error()})
			return
		}
		s.reports = append(s.reports, q)
		answer = protocol.Answer{Stop: s.Stop}
	case protocol.PathSeed:
		answer = s.Seed
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func refuse(w http.ResponseWriter, status int, r protocol.Refusal) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(r)
}

// SetStop has each report answered so from now on.
func (s *Server) SetStop(why string) { s.mu.Lock(); s.Stop = why; s.mu.Unlock() }

// Redeem has the token redeemed by somebody else.
func (s *Server) Redeem() { s.mu.Lock(); s.redeemed = true; s.mu.Unlock() }

// Reports are those that came.
func (s *Server) Reports() []protocol.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]protocol.Report(nil), s.reports...)
}

// Calls are the requests that came, but for the reports.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// Lines are the console's, of all reports.
func (s *Server) Lines() string {
	var lines []string
	for _, r := range s.Reports() {
		lines = append(lines, r.Lines...)
	}
	return strings.Join(lines, "\n")
}

// Await waits until something is so.
func Await(t testing.TB, bound time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, bound)
		}
	}
}
