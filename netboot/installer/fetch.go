package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Fetcher gets an image's files over plain HTTP. What it gets is whatever somebody
// on the network has sent: the caller compares it with a hash. Its method may be
// called several times at once.
type Fetcher struct {
	URL      string        // the image's folder: http://10.0.0.1:8080/images/ID/
	Patience time.Duration // how long nothing may come; 0: Patience
	Idle     time.Duration // after how much silence a connection is given up; 0: 20 s

	http http.Client
}

// NewFetcher is one for several requests at once.
func NewFetcher(url string, requests int) *Fetcher {
	return &Fetcher{URL: strings.TrimRight(url, "/") + "/", http: http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, ResponseHeaderTimeout: 20 * time.Second,
		MaxIdleConnsPerHost: requests, MaxConnsPerHost: requests, IdleConnTimeout: time.Minute,
		DisableCompression: true, // what is hashed is what is sent
		ReadBufferSize:     64 << 10,
	}}}
}

// errMissing is that the server doesn't have a file.
var errMissing = errors.New("the server doesn't have it")

// Get gets a file of at most so many bytes, into buf where that is large enough.
// A connection that breaks is taken up where it broke.
func (f *Fetcher) Get(ctx context.Context, name string, buf []byte, most int) ([]byte, error) {
	data := buf[:0]
	silent := newPatience(f.Patience)
	for {
		before := len(data)
		var again bool
		var err error
		data, again, err = f.once(ctx, name, data, most)
		switch {
		case err == nil:
			return data, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !again:
			return nil, fmt.Errorf("fetching %s: %w", name, err)
		}
		if len(data) > before {
			silent.again()
		}
		if err := silent.wait(ctx, err); err != nil {
			return nil, fmt.Errorf("fetching %s: %w", name, err)
		}
	}
}

// once goes on after data, and gives what there is then, and whether trying again
// makes sense.
func (f *Fetcher) once(ctx context.Context, name string, data []byte, most int) (_ []byte, again bool, err error) {
	idle := f.Idle
	if idle == 0 {
		idle = 20 * time.Second
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL+name, nil)
	if err != nil {
		return data, false, err
	}
	if len(data) > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(data)))
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return data, true, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
		data = data[:0]
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", len(data))):
	case resp.StatusCode == http.StatusPartialContent, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return data[:0], true, fmt.Errorf("the server gives another part than was asked for (%s)", resp.Status)
	case passing(resp.StatusCode):
		return data, true, fmt.Errorf("the server says %s", resp.Status)
	case resp.StatusCode == http.StatusNotFound:
		return data, false, errMissing
	default:
		return data, false, fmt.Errorf("the server says %s", resp.Status)
	}
	watch := time.AfterFunc(idle, func() { cancel(fmt.Errorf("nothing has come for %s", idle)) })
	defer watch.Stop()
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := resp.Body.Read(data[len(data):min(cap(data), most+1)])
		data = data[:len(data)+n]
		switch {
		case len(data) > most:
			return nil, false, fmt.Errorf("it is larger than %d bytes", most)
		case errors.Is(err, io.EOF):
			return data, false, nil
		case err != nil && ctx.Err() != nil:
			return data, true, context.Cause(ctx)
		case err != nil:
			return data, true, err
		}
		watch.Reset(idle)
	}
}
