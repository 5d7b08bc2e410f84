//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/alisw/kiln/internal/lab"
)

// registeredTwice leaves an entry on the host's own agent, as a Nomad does that was
// killed, and came up again at another address.
func (o *operator) registeredTwice(t *testing.T) {
	const id = "_nomad-client-xd2yun6h34z5nni56pdncbqb6b3mjfcf"
	entries := func(n int) func() bool {
		return func() bool {
			services, err := o.Services(t.Context(), "nomad-client")
			own := slices.DeleteFunc(services, func(s lab.Service) bool { return s.Node != o.name+".example.org" })
			return err == nil && len(own) == n
		}
	}
	const consul = "CONSUL_HTTP_TOKEN=" + management + " consul services "
	o.sh(t, consul+"register -id "+id+" -name nomad-client -address 10.66.0.29 -port 4646 -meta external-source=nomad")
	o.until(t, "Consul has two entries", entries(2))
	o.finds(t, o.golden.site, "consul-service nomad-client")
	o.sh(t, consul+"deregister -id "+id)
	o.until(t, "Consul has one entry", entries(1))
	o.finds(t, o.golden.site, "")
}

// newerThanServers has kiln ask the real servers through somebody who changes
// nothing but the version that they say they have: of each program there is one
// build here.
func (o *operator) newerThanServers(t *testing.T) {
	env := o.env
	defer func() { o.env = env }()
	nomad := o.says(t, o.NomadURL(""), "/v1/agent/members", `("build":")[^"]+`, "${1}1.10.4")
	o.env = append(env[:len(env):len(env)], "NOMAD_ADDR="+nomad)
	o.finds(t, o.golden.site, "nomad-version servers")
	consul := o.says(t, o.ConsulURL(""), "/v1/catalog/service/consul", `("version":")[^"]+`, "${1}1.21.9")
	o.env = append(env[:len(env):len(env)], "CONSUL_HTTP_ADDR="+consul)
	o.finds(t, o.golden.site, "consul-version servers")
	// It's the versions, and not who stands between.
	same := o.says(t, o.NomadURL(""), "/v1/agent/members", `("build":")`, "${1}")
	o.env = append(env[:len(env):len(env)], "NOMAD_ADDR="+same)
	o.finds(t, o.golden.site, "")
}

// says is the address of an API that is another one, but for what it says at one
// path.
func (o *operator) says(t *testing.T, api, path, pattern, instead string) string {
	t.Helper()
	target, err := url.Parse(api)
	if err != nil {
		t.Fatal(err)
	}
	// A socket's path is short, and this one is seen from inside the cluster's
	// namespaces, too.
	dir, err := os.MkdirTemp("/tmp", "kiln-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "api")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: &httputil.ReverseProxy{
		Transport: o.Client.Transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Header.Del("Accept-Encoding") // the answer is to be read
		},
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Path != path {
				return nil
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			if !regexp.MustCompile(pattern).Match(body) {
				return fmt.Errorf("%s has no %s: %s", path, pattern, body)
			}
			body = regexp.MustCompile(pattern).ReplaceAll(body, []byte(instead))
			r.Body = io.NopCloser(bytes.NewReader(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			return nil
		},
	}}
	go func() { _ = server.Serve(listener) }() // until it is closed
	t.Cleanup(func() { server.Close() })
	return "unix://" + socket
}

// expires has the host's certificate be about to expire, and then renewed.
func (o *operator) expires(t *testing.T, ssh []string) {
	bring := func(own *lab.Certificate, err error) {
		if err != nil {
			t.Fatal(err)
		}
		o.bring(t, own)
		o.until(t, "Nomad's agent shows the new certificate", func() bool {
			got, err := o.space.serial(t, nil, o.address+":4646")
			return err == nil && got.Cmp(own.Serial) == 0
		})
	}
	name := o.name + ".example.org"
	bring(o.Config.TLS.IssueFor(name, 30*time.Minute))
	o.finds(t, o.golden.site, "certificate "+o.address+":4646")
	o.finds(t, o.golden.site, "certificate /etc/grid-security/hostcert.pem\ncertificate "+o.address+":4646", ssh...)
	bring(o.Config.TLS.Issue(name))
	o.finds(t, o.golden.site, "", ssh...)
}
