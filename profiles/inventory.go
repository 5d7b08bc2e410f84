package profiles

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
)

// The inventory is read as a stream, host by host, so that a site of 100,000
// hosts needs no more memory than one of ten: a list in YAML's block style has
// each of its entries behind a dash in the first column, and nothing else can
// stand there. Each entry is then a document of its own.

// inventoryFiles lists the files of the inventory: hosts.yaml, and
// hosts/*.yaml in order.
func inventoryFiles(dir string) ([]string, error) {
	var files []string
	if one := filepath.Join(dir, "hosts.yaml"); exists(one) {
		files = append(files, one)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "hosts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the inventory: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && !editorLeftover(e.Name()) && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(dir, "hosts", e.Name()))
		}
	}
	return files, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// entry is the text of one host in the inventory.
type entry struct {
	file  string
	line0 int // lines before it
	text  []byte
}

// splitInventory calls yield for each entry of a list until it gives false.
// What stands outside the list's entries is added to problems.
func splitInventory(r io.Reader, file string, problems *problem.List, yield func(entry) bool) error {
	s := splitter{file: file, problems: problems, yield: yield}
	in := bufio.NewReaderSize(r, 1<<16)
	var long []byte
	for {
		line, err := readLine(in, &long)
		if len(line) > 0 {
			s.lines++
			if len(s.current.text)+len(line) > maxEntry {
				s.tooLong()
				return nil
			}
			if !s.line(line) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			s.flush()
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the inventory %s: %w", file, err)
		}
	}
}

// maxEntry bounds the text of one host, in bytes: far more than one needs, and
// little enough that a file which isn't an inventory is told from one at once.
const maxEntry = 1 << 20

// readLine reads a line, of which it gives no more than what is over maxEntry.
// What it gives stands in the reader's buffer, or in long, until the next call.
func readLine(in *bufio.Reader, long *[]byte) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	*long = (*long)[:0]
	for errors.Is(err, bufio.ErrBufferFull) && len(*long) <= maxEntry {
		*long = append(*long, line...)
		line, err = in.ReadSlice('\n')
	}
	if errors.Is(err, bufio.ErrBufferFull) {
		err = nil // the caller reads no further
	}
	*long = append(*long, line...)
	return *long, err
}

type splitter struct {
	file     string
	problems *problem.List
	yield    func(entry) bool
	lines    int
	current  entry
	begun    bool // there was a --- or an entry: another --- is a second document
	ended    bool // there was a ..., or the empty list []: nothing can follow
}

const (
	secondDocument = "a second YAML document begins here, which would be ignored"
	oneDocument    = "keep one document in a file: remove the ---, or move what follows to a file of its own"
)

// line takes the next line; false ends the reading.
func (s *splitter) line(line []byte) bool {
	if s.lines == 1 {
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	trimmed := bytes.TrimRight(line, " \t\r\n")
	word, rest, _ := bytes.Cut(bytes.ReplaceAll(trimmed, []byte("\t"), []byte(" ")), []byte(" "))
	comment := len(rest) == 0 || bytes.TrimLeft(rest, " ")[0] == '#'
	switch {
	case len(trimmed) == 0 || line[0] == '#', line[0] == ' ', line[0] == '\t':
		return s.indented(line, trimmed)
	case string(word) == "---" || string(word) == "...":
		return s.document(word[0] == '-', comment)
	case s.ended:
		return s.stop("remove what stands before it, or move this to a file of its own", "the list of hosts has ended before this line")
	case string(word) == "-":
		if !s.flush() {
			return false
		}
		s.begun = true
		s.current = entry{file: s.file, line0: s.lines - 1, text: slices.Clone(line)}
		return true
	case s.lines == 1 && bytes.HasPrefix(line, []byte("%YAML")):
		return true
	case string(word) == "[]" && comment && s.current.text == nil:
		s.ended = true
		return true
	}
	return s.stop("the inventory is a list: begin each host with a dash in the first column, and indent its keys", "this line is no part of a list of hosts")
}

// indented takes a line that can't begin a host: an empty one, a comment, or
// one that belongs to the host above.
func (s *splitter) indented(line, trimmed []byte) bool {
	if s.current.text != nil && !s.ended {
		s.current.text = append(s.current.text, line...)
		return true
	}
	text := bytes.TrimLeft(trimmed, " \t")
	switch {
	case bytes.ContainsAny(text, "\r\u0085\u2028\u2029"):
		// YAML would go on behind these as on a new line.
		return s.stop("end lines with a line feed", "this line has a line break of another kind in its middle")
	case len(text) > 0 && text[0] != '#':
		return s.stop("begin each host with a dash in the first column: - name: …", "this line belongs to no host")
	}
	return true
}

// document takes a line that begins (---) or ends (...) a document. alone is
// set where nothing but a comment stands behind that.
func (s *splitter) document(begins, alone bool) bool {
	switch {
	case begins && (s.begun || s.ended):
		return s.stop(oneDocument, secondDocument)
	case !alone:
		return s.stop("write it into a line of its own", "something stands behind the mark of a document here")
	case begins:
		s.begun = true
	default:
		s.ended = true
	}
	return true
}

// stop ends the reading with a problem at the current line.
func (s *splitter) stop(fix, what string) bool {
	s.problems.Addf(problem.Position{File: s.file, Line: s.lines, Column: 1}, fix, "%s", what)
	s.flush()
	return false
}

// tooLong ends the reading of an inventory with a host of too much text.
func (s *splitter) tooLong() {
	const fix = "keep what is large in a file of its profile's, or on the host"
	if s.current.text == nil {
		s.problems.Addf(problem.Position{File: s.file, Line: s.lines, Column: 1}, "is this an inventory?", "this line is longer than 1 MiB")
		return
	}
	s.problems.Addf(problem.Position{File: s.file, Line: s.current.line0 + 1, Column: 1}, fix, "the host that begins here is longer than 1 MiB, comments behind it included")
	s.current = entry{}
}

func (s *splitter) flush() bool {
	if s.current.text == nil {
		return true
	}
	e := s.current
	s.current = entry{}
	return s.yield(e)
}

// decode reads the entry's one host; nil where it has none.
func (e entry) decode(problems *problem.List) *HostFile {
	var hosts []HostFile
	before := len(*problems)
	strictyaml.Decode(e.text, e.file, e.line0, &hosts, problems)
	if len(hosts) == 1 && (len(*problems) == before || hosts[0].Name.Set() || hosts[0].Profile.Set()) {
		return &hosts[0]
	}
	at := problem.Position{File: e.file, Line: e.line0 + 1, Column: 1}
	switch {
	case len(*problems) > before:
	case len(hosts) > 1:
		problems.Addf(at, "end lines with a line feed", "a line break of another kind divides this host")
	default:
		problems.Addf(at, "give it a name and a profile", "this host is empty")
	}
	return nil
}

// ErrNoInventory is what an error is of a site without any host.
var ErrNoInventory = errors.New("no inventory")

type noInventoryError struct{ dir string }

func (e *noInventoryError) Error() string {
	return fmt.Sprintf("%s has no inventory: write its hosts into %s", e.dir, filepath.Join(e.dir, "hosts.yaml"))
}

func (e *noInventoryError) Is(target error) bool { return target == ErrNoInventory }

// eachEntry calls yield for each host of the inventory, in the order of files
// and lines, until it gives false or ctx ends.
func (s *Site) eachEntry(ctx context.Context, problems *problem.List, yield func(entry) bool) error {
	files, err := inventoryFiles(s.Dir)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return &noInventoryError{s.Dir}
	}
	for _, file := range files {
		goOn := true
		err := func() error {
			f, err := regular.Open(file)
			if err != nil {
				return fmt.Errorf("reading the inventory: %w", err)
			}
			defer f.Close()
			return splitInventory(f, file, problems, func(e entry) bool {
				goOn = ctx.Err() == nil && yield(e)
				return goOn
			})
		}()
		if err != nil {
			return err
		}
		if !goOn {
			return ctx.Err()
		}
	}
	return nil
}
