package apply

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/alisw/kiln/internal/run"
)

// startScript is all that stands in a command line. It takes an archive in, and
// runs the script in it once that is complete.
const startScript = `umask 077 && d=/run/kiln-apply/$$ && mkdir -p "$d" && trap 'rm -rf "$d"' EXIT && tar -xf - -C "$d" && . "$d/run.sh"`

// asRoot runs a script as root: who logs in as somebody else has to be allowed to
// become that.
const asRoot = `if [ "$(id -u)" = 0 ]; then exec sh -c "$1"; else exec sudo -n -- sh -c "$1"; fi`

// argv is the command that a payload is sent to.
func argv() []string { return []string{"sh", "-c", asRoot, "kiln", startScript} }

// payload is what goes to a host over standard input: an archive of lists,
// files and a script.
type payload struct {
	buffer bytes.Buffer
	w      *tar.Writer
	err    error
}

func newPayload() *payload {
	p := &payload{}
	p.w = tar.NewWriter(&p.buffer)
	return p
}

// add puts a file in.
func (p *payload) add(name string, content []byte) {
	if p.err == nil {
		p.err = p.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(content)), Format: tar.FormatPAX})
	}
	if p.err == nil {
		_, p.err = p.w.Write(content)
	}
}

// lines puts a list in, an entry a line.
func (p *payload) lines(name string, entries []string) {
	text := strings.Join(entries, "\n")
	if text != "" {
		text += "\n"
	}
	p.add(name, []byte(text))
}

// finish adds the script. It is the last one, so that half an archive has none.
func (p *payload) finish(script string) (*bytes.Reader, error) {
	p.add("run.sh", []byte(script))
	if p.err == nil {
		p.err = p.w.Close()
	}
	if p.err != nil {
		return nil, fmt.Errorf("packing what goes to the host: %w", p.err)
	}
	return bytes.NewReader(p.buffer.Bytes()), nil
}

// explain adds the way out to an error of a host's.
func explain(err error) error {
	e, ok := errors.AsType[*run.Error](err)
	if !ok {
		return err
	}
	said := strings.Join(e.Stderr, "\n")
	if strings.Contains(said, "sudo:") {
		return fmt.Errorf("%w: let that user become root by sudo without a password, or log in as root (--ssh-user root)", err)
	}
	return err
}
