package cluster

import (
	"errors"
	"net/http"
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
