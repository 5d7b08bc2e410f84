package lab

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAuthority(t *testing.T) {
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.PEM) {
		t.Fatal("the CA's certificate can't be read")
	}
	var serials []string
	for _, name := range []string{"build01.example.org", "build02.example.org"} {
		issued, err := a.Issue(name)
		if err != nil {
			t.Fatal(err)
		}
		own, err := issued.TLS()
		if err != nil {
			t.Fatal(err)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := own.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Error(err)
			}
		}
		// The Grid's have nothing that Consul's and Nomad's own would.
		if len(own.Leaf.DNSNames) != 1 || own.Leaf.VerifyHostname("server.global.nomad") == nil {
			t.Errorf("%s has the names %q", name, own.Leaf.DNSNames)
		}
		serials = append(serials, issued.Serial.String())
	}
	if serials[0] == serials[1] {
		t.Error("two certificates have one serial number")
	}
}

func TestServersConfigurations(t *testing.T) {
	config := Config{Datacenter: "ci", Region: "alice", Address: netip.MustParsePrefix("192.0.2.2/24")}
	bare := &Cluster{Config: config}
	for _, text := range []string{bare.consulConfig(), bare.nomadConfig()} {
		if strings.Contains(text, "tls") || strings.Contains(text, "encrypt") || strings.Contains(text, "enabled = true\n  default_policy") || !strings.Contains(text, `bind_addr = "192.0.2.2"`) {
			t.Errorf("without TLS and secrets:\n%s", text)
		}
	}
	config.TLS, config.NomadACL = &Authority{}, true
	config.Secrets = Secrets{Gossip: "GOSSIP", Management: "MANAGEMENT"}
	full := &Cluster{Config: config}
	for _, want := range []string{"verify_incoming = true", `encrypt = "GOSSIP"`, `default_policy = "deny"`, `initial_management = "MANAGEMENT"`} {
		if text := full.consulConfig(); !strings.Contains(text, want) {
			t.Errorf("Consul's configuration lacks %s:\n%s", want, text)
		}
	}
	for _, want := range []string{"verify_https_client = true", "acl {\n  enabled = true", `token = "MANAGEMENT"`, `region = "alice"`} {
		if text := full.nomadConfig(); !strings.Contains(text, want) {
			t.Errorf("Nomad's configuration lacks %s:\n%s", want, text)
		}
	}
	if bare.NomadURL("/x") != "http://192.0.2.2:4646/x" || full.NomadURL("/x") != "https://192.0.2.2:4646/x" {
		t.Errorf("Nomad is at %s and %s", bare.NomadURL("/x"), full.NomadURL("/x"))
	}
}

func TestWait(t *testing.T) {
	tries := 0
	if err := Wait(t.Context(), "it is there", func() (bool, error) { tries++; return tries == 3, nil }); err != nil || tries != 3 {
		t.Errorf("got %v after %d tries", err, tries)
	}
	broken := errors.New("broken")
	if err := Wait(t.Context(), "it is there", func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Wait(ctx, "it is there", func() (bool, error) { return false, nil }); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it is there") {
		t.Errorf("got %v", err)
	}
}

func TestTailIsBounded(t *testing.T) {
	var log tail
	for range 100 {
		if n, err := log.Write([]byte(strings.Repeat("x", 1023) + "\n")); n != 1024 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := log.Write([]byte("the end\n")); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); len(got) != tailSize || !strings.HasSuffix(got, "\nthe end\n") {
		t.Errorf("%d bytes that end in %q", len(got), got[len(got)-20:])
	}
}

func TestSpaceNeedsRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Setenv("PATH", t.TempDir())
	}
	if _, err := NewSpace(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "making namespaces") {
		t.Errorf("got %v", err)
	}
}
