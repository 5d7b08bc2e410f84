// Package web is the HTTP half of booting from the network.
//
// Two servers, for two kinds of what is served. Plain HTTP is what firmware and
// Debian's iPXE speak: it has the boot files, the script that decides whether a
// host is installed, and the images, which the installer believes for their hashes
// only. HTTPS, with a key that the kernel's command line pins, has what only the
// installation itself, or an operator, may have: the job, the host's own data with
// its secrets, and the arming of hosts.
//
// What a host's installation is at is state's to say; this package asks it first,
// and answers then.
package web

import (
	"context"
	"crypto/tls"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alisw/kiln/netboot"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/plan"
)

// Images has the files of images, by their IDs. An fs.ErrNotExist is that there is
// no such image, or it has no such file.
type Images interface {
	// Open opens what the installer reads: manifest.json, netboot/chunks.json, ….
	Open(id, name string) (*os.File, error)
	// Kernel opens the image's kernel, and Installer the initramfs that installs it.
	Kernel(id string) (*os.File, error)
	Installer(id string) (*os.File, error)
}

// Server is both servers. Store, Hosts, Images and Seeds must be set before it's
// used, and nothing changed from then on.
type Server struct {
	Store *state.Store
	// Hosts gives the registered hosts as they are now.
	Hosts  func() netboot.Hosts
	Images Images
	// Seeds gives a host's NoCloud seed with its secrets, at the moment it's
	// delivered; they are kept nowhere. Its errors must not have them.
	Seeds func(ctx context.Context, host string) ([]protocol.SeedFile, error)
	// Check tells whether a host's seed can be had, before it's given the installer;
	// nil: that is seen once the seed is asked for.
	Check func(ctx context.Context, host string) error
	// Keys gives the public keys that images are signed with; nil: none.
	Keys func() []string
	// Verify tells whether the cluster has a host, and what is missing; nil: nobody
	// becomes ready.
	Verify func(ctx context.Context, host string) (ok bool, findings []string, err error)
	// Arm arms a host for an operator; nil: only on the server itself.
	Arm func(ctx context.Context, host string, req ArmRequest) (*state.Record, error)
	// IPXE has iPXE's programs; nil: none are served.
	IPXE fs.FS
	// Dashboard answers what nothing else does; nil: nobody. Its requests have no
	// limits of time but their contexts, which end with the server.
	Dashboard http.Handler
	// Metrics gives those of the other servers: DHCP, TFTP.
	Metrics func() []Metric

	// Certificate is the HTTPS server's at first: see Certificate, and Renew.
	Certificate tls.Certificate
	// OperatorToken is what operators show: see OperatorToken. Empty: nobody is one.
	OperatorToken string
	// PlainURL and TLSURL are how hosts reach the two servers, http://10.0.0.1:8080;
	// empty: at the address where a host has reached this one, at the listeners' ports.
	PlainURL, TLSURL string
	// Cmdline is added to the installer's kernel command line: console=ttyS0,115200.
	Cmdline []string
	// Writers is how many hosts are written at once; 0: 16.
	Writers int
	// VerifyEvery is how often hosts that aren't ready yet are looked at; 0: 10 seconds.
	VerifyEvery time.Duration
	// RestartTime is how long a host that is written and doesn't report its first boot
	// isn't looked at; 0: 5 minutes.
	RestartTime time.Duration
	// Log gets an entry a request, and what goes wrong; nil: nobody.
	Log *slog.Logger

	once      sync.Once
	sending   atomic.Int32 // files, at the moment
	line      *queue
	counts    *counters
	guesses   guesses
	strangers netboot.Told[plan.MAC]

	certificates certificates

	plainPort int
	tlsPort   int
	patience  time.Duration // 0: answerTime
}

// init prepares what a zero value lacks.
func (s *Server) init() {
	s.once.Do(func() {
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		if s.Writers <= 0 {
			s.Writers = defaultWriters
		}
		s.line = &queue{max: s.Writers}
		s.counts = s.newCounters()
		if pin, err := Pin(s.Certificate); err != nil {
			s.Log.Error("installers won't believe this server", "error", err)
		} else {
			s.certificates.put(pinned{s.Certificate, pin})
		}
		s.resume()
	})
}

// Plain is the handler of the plain HTTP server.
func (s *Server) Plain() http.Handler {
	s.init()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+netboot.PathIPXE+"{file}", s.ipxe)
	mux.HandleFunc("GET /boot/{mac}/script.ipxe", s.script)
	mux.HandleFunc("GET /boot/images/{id}/{file}", s.bootFile)
	mux.HandleFunc("GET /images/{id}/{name...}", s.imageFile)
	mux.HandleFunc("POST "+protocol.PathFirstBoot+"{install}", s.firstBoot)
	mux.HandleFunc("POST /api/v1/hosts/{host}/{verb}", onlyTLS)
	for _, path := range []string{protocol.PathRedeem, protocol.PathTurn, protocol.PathReport, protocol.PathSeed, protocol.PathWritten} {
		mux.HandleFunc(path, onlyTLS)
	}
	s.both(mux)
	return s.logged("http", mux)
}

// TLS is the handler of the HTTPS server.
func (s *Server) TLS() http.Handler {
	s.init()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+protocol.PathRedeem, s.redeem)
	mux.HandleFunc("POST "+protocol.PathTurn, s.turn)
	mux.HandleFunc("POST "+protocol.PathReport, s.report)
	mux.HandleFunc("POST "+protocol.PathSeed, s.seed)
	mux.HandleFunc("POST "+protocol.PathWritten, s.written)
	mux.HandleFunc("POST /api/v1/hosts/{host}/arm", s.operator(s.arm))
	mux.HandleFunc("POST /api/v1/hosts/{host}/disarm", s.operator(s.disarm))
	s.both(mux)
	return s.logged("https", mux)
}

// both adds what both servers have.
func (s *Server) both(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", s.health)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /api/v1/status", s.status)
	if s.Dashboard != nil {
		mux.Handle("/", unlimited(s.Dashboard))
	}
}

// onlyTLS refuses what has secrets in it.
func onlyTLS(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusForbidden, "", "this is answered over HTTPS only: anybody on the network could read it here")
}

// health tells that the server answers, and can read its state.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if _, _, err := s.Store.List(); err != nil {
		s.Log.Error("the state can't be read", "error", err)
		http.Error(w, "the state can't be read", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte("ok\n"))
}

// Status is the answer of /api/v1/status.
type Status struct {
	Hosts []*state.Record `json:"hosts"` // as Record.Public has them
	// Damaged are records that can't be read.
	Damaged []Damaged `json:"damaged,omitempty"`
}

// Damaged is a host whose record can't be read.
type Damaged struct {
	Host  string `json:"host"`
	Error string `json:"error"`
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	list, damaged, err := s.Store.List()
	if err != nil {
		s.Log.Error("the state can't be read", "error", err)
		refuse(w, http.StatusInternalServerError, "", "the state can't be read: the server's log says why")
		return
	}
	answer := Status{Hosts: make([]*state.Record, len(list))}
	for i, r := range list {
		answer.Hosts[i] = r.Public()
	}
	for _, d := range damaged {
		answer.Damaged = append(answer.Damaged, Damaged{d.Host, d.Error()})
	}
	reply(w, answer)
}

// firstBoot hears from a host that boots from its disk.
func (s *Server) firstBoot(w http.ResponseWriter, r *http.Request) {
	record, err := s.Store.FirstBoot(r.PathValue("install"))
	if err != nil {
		refuse(w, http.StatusNotFound, "", "there is no such installation that waits for it")
		return
	}
	s.counts.firstBoots.Inc()
	s.Log.Info("it boots from its disk", "host", record.Host, "address", source(r))
	reply(w, struct{}{})
}

// source is the address that a request comes from.
func source(r *http.Request) string {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return a.Addr().Unmap().String()
}
