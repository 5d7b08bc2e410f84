package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/web"
)

// writeFiles writes files of a folder, by their names.
func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// newTestServing is a server of a site whose files are given, which listens nowhere; what
// it logs is in the buffer.
func newTestServing(t *testing.T, files map[string]string) (*serving, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, files)
	store, err := state.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	o := &serveOptions{globalOptions: &globalOptions{site: dir}}
	s := &serving{options: o, log: log, store: store, web: &web.Server{Store: store, Log: log}}
	s.site = &servedSite{options: o.globalOptions, log: log, store: store}
	if err := s.site.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, &text
}

// TestCertificateIsReadAgain at SIGHUP, whether the site is sound or not; and what isn't
// a certificate changes nothing.
func TestCertificateIsReadAgain(t *testing.T) {
	s, log := newTestServing(t, map[string]string{"site.yaml": "domain: example.org\n", "hosts.yaml": "[]\n"})
	dir := t.TempDir()
	s.options.tlsCert, s.options.tlsKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	renew := func() (pin string) {
		c, err := web.Certificate(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		writeFiles(t, dir, map[string]string{
			"cert.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})),
			"key.pem":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		})
		if pin, err = web.Pin(c); err != nil {
			t.Fatal(err)
		}
		return pin
	}
	var err error
	first := renew()
	if s.web.Certificate, err = web.LoadCertificate(s.options.tlsCert, s.options.tlsKey); err != nil {
		t.Fatal(err)
	}
	second := renew()
	// hangUp returns once a reload is done.
	hangUp := func() string {
		log.Reset()
		ctx, cancel := context.WithCancel(t.Context())
		hup, ended := make(chan os.Signal), make(chan struct{})
		go func() {
			s.site.watch(ctx, hup, s.renew, func() {})
			close(ended)
		}()
		hup <- syscall.SIGHUP
		cancel()
		<-ended
		return log.String()
	}
	if got := hangUp(); second == first || !strings.Contains(got, "pin="+second) {
		t.Errorf("the new one isn't read:\n%s", got)
	}
	writeFiles(t, s.options.site, map[string]string{"site.yaml": "domain: [\n"})
	third := renew()
	if got := hangUp(); !strings.Contains(got, "pin="+third) || !strings.Contains(got, "the site has changed, and isn't sound") {
		t.Errorf("beside a site that isn't sound:\n%s", got)
	}
	for _, bad := range []string{"", "no certificate"} {
		writeFiles(t, dir, map[string]string{"cert.pem": bad})
		if got := hangUp(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "the certificate that was read before stays") || strings.Contains(got, "pin=") {
			t.Errorf("%q is taken:\n%s", bad, got)
		}
	}
}
