package installer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/alisw/kiln/netboot/protocol"
)

// Patience is how long the server may be silent, by default: a restart of it must
// not end an installation.
const Patience = 3 * time.Minute

// Limits of one exchange.
const (
	oneTry     = 20 * time.Second
	mostAnswer = 32 << 20 // bytes: a seed is much smaller
)

// Server is the server, as the installer needs it. The methods of Client wait for
// a server that doesn't answer, until their patience or the context ends.
type Server interface {
	// Redeem gives the token back, once; the other calls need it to have gone well.
	Redeem(context.Context, protocol.RedeemRequest) (*protocol.Job, error)
	Turn(context.Context) (protocol.Turn, error)
	Report(context.Context, protocol.Report) (protocol.Answer, error)
	Seed(context.Context) (*protocol.Seed, error)
	Written(context.Context) error
}

// Refused is the error of a request that the server understood, and refused.
type Refused struct {
	Status int
	protocol.Refusal
}

func (r *Refused) Error() string {
	if r.Refusal.Error == "" {
		return fmt.Sprintf("the server refuses it (%d %s)", r.Status, http.StatusText(r.Status))
	}
	return "the server refuses it: " + r.Refusal.Error
}

// wrongPin is the error of a server that has another key.
type wrongPin struct{ error }

func (w wrongPin) Unwrap() error { return w.error }

// Client speaks to the server over HTTPS, and believes the pinned key alone.
// One goroutine redeems; after that all methods may be called at the same time.
type Client struct {
	URL      string        // of the server: https://10.0.0.1:8443
	Patience time.Duration // 0: Patience
	// Tell is told when the server doesn't answer, and when it does again; nil: nobody is.
	Tell func(string)

	http    http.Client
	session string
}

// NewClient is a client of the server that Boot names.
func NewClient(b Boot) *Client {
	config := protocol.PinnedTLS(b.Pin)
	config.ServerName = protocol.ServerName(b.Pin)
	verify := config.VerifyConnection
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verify(s); err != nil {
			return wrongPin{err}
		}
		return nil
	}
	return &Client{URL: b.Server, http: http.Client{
		Timeout: oneTry,
		Transport: &http.Transport{
			TLSClientConfig: config, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		},
		// The session goes to nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Redeem gives the token back. The answer to it may be lost; asking again then
// ends in a refusal, which is right: who else might have it?
func (c *Client) Redeem(ctx context.Context, r protocol.RedeemRequest) (*protocol.Job, error) {
	var job protocol.Job
	if err := c.call(ctx, protocol.PathRedeem, r, &job); err != nil {
		return nil, err
	}
	c.session = job.Session
	return &job, nil
}

// Turn asks whether the disk may be written.
func (c *Client) Turn(ctx context.Context) (t protocol.Turn, err error) {
	return t, c.call(ctx, protocol.PathTurn, struct{}{}, &t)
}

// Report tells how far it is.
func (c *Client) Report(ctx context.Context, r protocol.Report) (a protocol.Answer, err error) {
	return a, c.call(ctx, protocol.PathReport, r, &a)
}

// Seed gets the host's own data.
func (c *Client) Seed(ctx context.Context) (*protocol.Seed, error) {
	var s protocol.Seed
	return &s, c.call(ctx, protocol.PathSeed, struct{}{}, &s)
}

// Written says that the disk is complete. Once it returns, the server has noted
// that this host isn't to be installed again.
func (c *Client) Written(ctx context.Context) error {
	return c.call(ctx, protocol.PathWritten, struct{}{}, &struct{}{})
}

// call makes a request until it is answered.
func (c *Client) call(ctx context.Context, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	silent := newPatience(c.Patience)
	for {
		err := c.once(ctx, path, body, answer)
		var refused *Refused
		switch {
		case err == nil:
			if silent.tried > 0 && c.Tell != nil {
				c.Tell("the server answers again")
			}
			return nil
		case errors.As(err, &refused), errors.As(err, new(wrongPin)):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if silent.tried == 0 && c.Tell != nil {
			c.Tell(fmt.Sprintf("the server doesn't answer, trying on: %v", err))
		}
		if err := silent.wait(ctx, err); err != nil {
			return err
		}
	}
}

// once makes a request once. Its error is a *Refused where trying again is in vain.
func (c *Client) once(ctx context.Context, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.session != "" {
		req.Header.Set("Authorization", "Bearer "+c.session)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("reading the server's answer: %w", err)
	case len(data) > mostAnswer:
		return errors.New("the server's answer has no end")
	case passing(resp.StatusCode):
		return fmt.Errorf("the server says %s", resp.Status)
	case resp.StatusCode != http.StatusOK:
		r := &Refused{Status: resp.StatusCode}
		_ = json.Unmarshal(data, &r.Refusal) // whatever it is, it's a refusal
		return r
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	return nil
}

// passing tells whether a status may be another one soon.
func passing(status int) bool {
	return status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

// patience waits between tries, longer each time, until it is at its end.
type patience struct {
	total time.Duration
	since time.Time
	tried int
}

func newPatience(total time.Duration) *patience {
	if total == 0 {
		total = Patience
	}
	return &patience{total: total, since: time.Now()}
}

// again begins anew: something has gone well.
func (p *patience) again() { p.since, p.tried = time.Now(), 0 }

// wait waits before the next try; the error says that there is none.
func (p *patience) wait(ctx context.Context, last error) error {
	if gone := time.Since(p.since); gone >= p.total {
		return fmt.Errorf("no answer for %s: %w", gone.Round(time.Second), last)
	}
	p.tried++
	pause := min(100*time.Millisecond<<min(p.tried, 6), 5*time.Second, p.total)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pause):
		return nil
	}
}
