package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/netboot/protocol"
	"github.com/alisw/kiln/netboot/state"
	"github.com/alisw/kiln/netboot/web"
)

// serverOptions name a running server, for those who can't write its state.
type serverOptions struct {
	url string
	pin string
}

func (o *serverOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.url, "server", "", "`URL` of a kiln serve to ask, https://HOST:8443 (default: $KILN_SERVER, else the state here)")
	f.StringVar(&o.pin, "server-pin", "", "`HASH` of the server's key, which kiln serve prints (default: $KILN_SERVER_PIN, else the machine's own authorities say whom to trust)")
}

func (o *serverOptions) address() string {
	if o.url != "" {
		return o.url
	}
	return os.Getenv("KILN_SERVER")
}

func (o *serverOptions) set() bool { return o.address() != "" }

var pinLike = lazyregexp.New(`^[0-9a-f]{64}$`)

// operatorToken is the variable that has the operator's token.
const operatorToken = "KILN_OPERATOR_TOKEN"

// client makes one of the server's operator API.
func (o *serverOptions) client() (*operatorClient, error) {
	u, err := url.Parse(o.address())
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, usagef("the server's URL is https://HOST:PORT, not %q: a token isn't sent in clear", o.address())
	}
	pin := o.pin
	if pin == "" {
		pin = os.Getenv("KILN_SERVER_PIN")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if pin != "" {
		if !pinLike().MatchString(pin) {
			return nil, usagef("the pin of the server's key has 64 hexadecimal digits: kiln serve prints it")
		}
		config = protocol.PinnedTLS(pin)
	}
	return &operatorClient{
		url: u.JoinPath("/api/v1/"), token: os.Getenv(operatorToken),
		http: &http.Client{
			Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// operatorClient asks a server.
type operatorClient struct {
	url   *url.URL
	token string
	http  *http.Client
	// withoutNomad has the server arm hosts whatever runs on them.
	withoutNomad bool
}

// do asks the server for path, and reads its answer from JSON.
func (c *operatorClient) do(ctx context.Context, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(data)
		if c.token == "" {
			return fmt.Errorf("the server wants an operator's token: put it into the variable %s; it is in the server's state, in the file operator.token", operatorToken)
		}
	}
	u := c.url.JoinPath(path)
	req, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return fmt.Errorf("asking the server: %w: where it has a certificate of its own, --server-pin HASH says whom to trust, and kiln serve prints it", err)
	}
	if err != nil {
		return fmt.Errorf("asking the server: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("asking the server %s: %w", u, err)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(data, answer); err != nil {
			return fmt.Errorf("the server %s doesn't answer as kiln serve does: %w", u, err)
		}
		return nil
	}
	var refusal protocol.Refusal
	if json.Unmarshal(data, &refusal) != nil || refusal.Error == "" {
		refusal.Error = resp.Status
	}
	if resp.StatusCode == http.StatusForbidden {
		return fmt.Errorf("the server refuses it: %s (403): is the token in %s the one in its state?", refusal.Error, operatorToken)
	}
	return errors.New(refusal.Error)
}

func (c *operatorClient) arm(ctx context.Context, a state.Arming) (*state.Record, error) {
	var r state.Record
	req := web.ArmRequest{Image: a.Image, By: a.By, Rules: &web.DiskRules{Install: a.Install, Data: a.Data}, WithoutNomad: c.withoutNomad}
	err := c.do(ctx, http.MethodPost, "hosts/"+url.PathEscape(a.Host)+"/arm", req, &r)
	return &r, err
}

func (c *operatorClient) disarm(ctx context.Context, host, by string) (*state.Record, error) {
	var r state.Record
	err := c.do(ctx, http.MethodPost, "hosts/"+url.PathEscape(host)+"/disarm", web.ArmRequest{By: by}, &r)
	return &r, err
}
