package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/*
var staticFiles embed.FS

// assets names the version of the static files, and of the pages that use them.
var assets = sync.OnceValue(func() string {
	h := sha256.New()
	for _, files := range []embed.FS{staticFiles, templateFiles} {
		_ = fs.WalkDir(files, ".", func(name string, e fs.DirEntry, _ error) error {
			if !e.IsDir() {
				data, _ := files.ReadFile(name) // embedded
				fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
			}
			return nil
		})
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
})

// templates are parsed at the first request: kiln starts without them.
var templates = sync.OnceValue(func() map[string]*template.Template {
	m := map[string]*template.Template{}
	for _, page := range []string{"overview", "host", "discover", "error"} {
		m[page] = template.Must(template.New("").ParseFS(templateFiles, "templates/layout.html", "templates/tile.html", "templates/"+page+".html"))
	}
	return m
})

// page is what all pages have.
type page struct {
	Kind     string // its template
	Title    string // of the window: with the counts, since tabs show no more
	Heading  string
	Alarm    bool   // something has failed: the icon says so
	Now      string // the server's time, to the browser's script
	Clock    string // the same, to people
	Assets   string
	Poll     int // seconds after which the page should be fetched anew, changed or not
	Discover bool
	Body     any
}

// reload is after how many seconds a browser without JavaScript reloads.
const reload = 10

// Reload is for the template.
func (page) Reload() int { return reload }

func (d *Dashboard) page(kind, heading string, body any) page {
	now := d.now()
	return page{
		Kind: kind, Title: heading + " · Kiln", Heading: heading, Now: now.UTC().Format(time.RFC3339Nano), Clock: d.clock(now).Format("15:04:05 MST"),
		Assets: assets(), Poll: 15, Discover: d.Unknown != nil, Body: body,
	}
}

// rendered is a page as it is sent.
type rendered struct {
	status       int
	plain, small []byte // small is compressed with gzip; none where it isn't worth it
}

// render makes a page, or the part of it that changes.
func render(p page, status int, fragment bool) (*rendered, error) {
	name := "page"
	if fragment {
		name = "live"
	}
	var b bytes.Buffer
	if err := templates()[p.Kind].ExecuteTemplate(&b, name, p); err != nil {
		return nil, fmt.Errorf("the page %s: %w", p.Kind, err)
	}
	r := &rendered{status: status, plain: b.Bytes()}
	if len(r.plain) > 4096 {
		var z bytes.Buffer
		w, _ := gzip.NewWriterLevel(&z, gzip.BestSpeed) // the level is a right one
		_, _ = w.Write(r.plain)
		if err := w.Close(); err != nil {
			return nil, fmt.Errorf("compressing the page %s: %w", p.Kind, err)
		}
		r.small = z.Bytes()
	}
	return r, nil
}

func (r *rendered) write(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Vary", "Accept-Encoding")
	h.Set("Kiln-Assets", assets())
	body := r.plain
	if r.small != nil && strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = r.small
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(r.status)
	if req.Method != http.MethodHead {
		_, _ = w.Write(body) // whoever went away needs it no more
	}
}

// show renders a page and sends it.
func (d *Dashboard) show(w http.ResponseWriter, r *http.Request, p page, status int) {
	out, err := render(p, status, fragment(r))
	if err != nil {
		d.log().Error("dashboard", "path", r.URL.Path, "error", err)
		http.Error(w, "this page can't be shown: the server's log says why", http.StatusInternalServerError)
		return
	}
	out.write(w, r)
}

func fragment(r *http.Request) bool { return r.URL.Query().Get("fragment") != "" }

// broken says that something couldn't be read; why is for the log, since it may
// name the server's files.
func (d *Dashboard) broken(w http.ResponseWriter, r *http.Request, err error) {
	d.log().Error("dashboard", "path", r.URL.Path, "error", err)
	p := d.page("error", "Something is wrong", "The records of the installations can't be read. The server's log says why.")
	p.Alarm = true
	d.show(w, r, p, http.StatusInternalServerError)
}

func (d *Dashboard) nothing(w http.ResponseWriter, r *http.Request) {
	d.show(w, r, d.page("error", "No such page", "There is nothing at "+r.URL.Path+"."), http.StatusNotFound)
}

var mediaTypes = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

// static serves a file that belongs to the pages. They name the version, so that
// a browser can keep it for good.
func (d *Dashboard) static(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	data, err := staticFiles.ReadFile("static/" + path.Base(name))
	if err != nil {
		d.nothing(w, r)
		return
	}
	if r.URL.Query().Get("v") == assets() {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	w.Header().Set("Content-Type", mediaTypes[path.Ext(name)])
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data)
}
