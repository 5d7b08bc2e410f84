package cluster

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConsulAddresses(t *testing.T) {
	agent := func(name, address string, port int) func() (*Consul, error) {
		return func() (*Consul, error) { return NewConsulAgent(name, address, port) }
	}
	server := func() (*Consul, error) { return NewConsul("") }
	for _, tt := range []struct {
		addr, ssl string
		make      func() (*Consul, error)
		want      string
	}{
		{"", "", server, "http://127.0.0.1:8500"},
		{"192.0.2.1:8500", "", server, "http://192.0.2.1:8500"},
		{"192.0.2.1:8501", "true", server, "https://192.0.2.1:8501"},
		{"https://consul.example.org", "", server, "https://consul.example.org"},
		{"unix:///run/consul.sock", "", server, "unix:///run/consul.sock"},
		{"192.0.2.1:80", "", agent("h", "192.0.2.2", 0), "http://192.0.2.2:8500"},
		{"192.0.2.1:80", "", agent("h", "192.0.2.2", 9), "http://192.0.2.2:9"},
		{"https://consul.example.org", "", agent("h", "2001:db8::1", 0), "https://[2001:db8::1]:8501"},
		{"consul.example.org", "true", agent("h", "192.0.2.2", 0), "https://192.0.2.2:8501"},
		{"unix:///run/consul.sock", "", agent("h", "192.0.2.2", 0), "http://192.0.2.2:8500"},
		{"https://consul.example.org", "", func() (*Consul, error) { return NewConsulVia(refuse{}, "over there") }, "over there"},
	} {
		t.Setenv("CONSUL_HTTP_ADDR", tt.addr)
		t.Setenv("CONSUL_HTTP_SSL", tt.ssl)
		c, err := tt.make()
		if err != nil || c.Address != tt.want {
			t.Errorf("with %q: %+v, %v; want %s", tt.addr, c, err, tt.want)
		}
	}
	t.Setenv("CONSUL_CACERT", "/nonexistent")
	for _, f := range []func() (*Consul, error){server, agent("h", "192.0.2.2", 0)} {
		if _, err := f(); err == nil || !strings.Contains(err.Error(), "CONSUL_…") {
			t.Errorf("got %v", err)
		}
	}
}

// TestConsulAgentName: an agent is spoken to at an address, and has a certificate for
// the node's name.
func TestConsulAgentName(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`"192.0.2.2:8300"`)) }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS() // its certificate is for example.com, and for 127.0.0.1
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	if err := os.WriteFile(ca, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONSUL_HTTP_ADDR", "https://consul.example.org")
	t.Setenv("CONSUL_CACERT", ca)
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	for name, want := range map[string]string{"example.com": "", "example.org": "certificate is for another name"} {
		c, err := NewConsulAgent(name, at.Addr().String(), int(at.Port()))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status().Leader()
		if err = Explain(ServiceConsul, c.Address, err); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("as %s: %v", name, err)
		}
	}
}

// refuse is a transport that lets nothing through.
type refuse struct{}

var errRefused = errors.New("refused")

func (refuse) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" {
		return nil, errors.New("TLS can't be spoken here")
	}
	return nil, errRefused
}

func TestConsulVia(t *testing.T) {
	t.Setenv("CONSUL_HTTP_ADDR", "https://consul.example.org")
	c, err := NewConsulVia(refuse{}, "over there")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Agent().Self(); !errors.Is(err, errRefused) {
		t.Errorf("got %v", err)
	}
}

func TestConsulTokenSet(t *testing.T) {
	for _, name := range []string{"CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE"} {
		t.Setenv("CONSUL_HTTP_TOKEN", "")
		t.Setenv("CONSUL_HTTP_TOKEN_FILE", "")
		if ConsulTokenSet() {
			t.Error("a token from nowhere")
		}
		t.Setenv(name, "x")
		if !ConsulTokenSet() {
			t.Errorf("%s isn't seen", name)
		}
	}
}
