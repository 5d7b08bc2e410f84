package installer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// servers that don't do what they should, by name: n is the number of the request.
var badServers = map[string]struct {
	serve func(w http.ResponseWriter, r *http.Request, n int, body []byte)
	want  string // what the error has; empty: it has to work
}{
	"well": {func(w http.ResponseWriter, r *http.Request, _ int, body []byte) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}, ""},
	"cuts each answer": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) {
		if n < 5 {
			cutAnswer(w, r, body, 300)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}, ""},
	"cuts, and knows no ranges": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) {
		if n < 3 {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:100*n])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(body)
	}, ""},
	"cuts, and gives another range": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) {
		switch n {
		case 1:
			cutAnswer(w, r, body, 300)
		case 2:
			w.Header().Set("Content-Range", "bytes 5-9/1000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body[5:10])
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		}
	}, ""},
	"starts later": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) {
		if n < 4 {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(body)
	}, ""},
	"stalls": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) {
		if n == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}, ""},
	"never answers well": {func(w http.ResponseWriter, _ *http.Request, _ int, _ []byte) {
		http.Error(w, "broken", http.StatusInternalServerError)
	}, "no answer for"},
	"hasn't got it": {func(w http.ResponseWriter, _ *http.Request, _ int, _ []byte) { w.WriteHeader(http.StatusNotFound) }, "the server doesn't have it"},
	"refuses":       {func(w http.ResponseWriter, _ *http.Request, _ int, _ []byte) { w.WriteHeader(http.StatusForbidden) }, "403 Forbidden"},
	"sends too much": {func(w http.ResponseWriter, _ *http.Request, _ int, body []byte) {
		for range 100 {
			_, _ = w.Write(body)
		}
	}, "larger than 2000 bytes"},
}

// cutAnswer sends n bytes of what was asked for, and breaks the connection.
func cutAnswer(w http.ResponseWriter, r *http.Request, body []byte, n int) {
	from := 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	_, _ = w.Write(body[from:min(from+n, len(body))])
	panic(http.ErrAbortHandler)
}

func TestFetch(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789"), 100)
	for name, c := range badServers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(w, r, int(n.Add(1)), body) }))
			defer s.Close()
			f := NewFetcher(s.URL, 1)
			f.Idle, f.Patience = 200*time.Millisecond, 2*time.Second
			if c.want != "" {
				f.Patience = 300 * time.Millisecond
			}
			got, err := f.Get(t.Context(), "x", make([]byte, 0, 2048), 2000)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "fetching x: ") {
					t.Errorf("%v, not %q", err, c.want)
				}
			} else if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%v, %d bytes", err, len(got))
			}
		})
	}
	t.Run("stops", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("disarmed")
		time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		if _, err := NewFetcher("http://127.0.0.1:1", 1).Get(ctx, "x", nil, 10); !errors.Is(err, why) {
			t.Error(err)
		}
	})
}
