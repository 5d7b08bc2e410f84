package secrets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/plan"
)

// largestFile is the size in bytes above which a file is no secret: keys and
// certificates with all of their chain are far below.
const largestFile = 1 << 20

// file reads file://PATH, or the value of one key of it: file://PATH#KEY.
//
// Who else can read the file isn't Kiln's business: a site's checkout has the
// modes that git and the umask gave it.
func (r *Resolver) file(_ context.Context, ref plan.Ref) (string, error) {
	path, key := splitKey(ref.Rest())
	data, err := r.read(path)
	if err != nil {
		return "", err
	}
	return pick(string(data), key)
}

// splitKey parts PATH#KEY.
func splitKey(rest string) (path, key string) {
	path, key, _ = strings.Cut(rest, "#")
	return path, key
}

// read gives what the file at a reference's path holds. A relative path starts
// from the site's directory, one with ~/ from the operator's home.
func (r *Resolver) read(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("it names no file: write a path that starts from the site's directory")
	}
	switch rest, home := strings.CutPrefix(path, "~/"); {
	case home:
		dir, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("there is no home directory to find %s in: %w", path, err)
		}
		path = filepath.Join(dir, rest)
	case !filepath.IsAbs(path):
		path = filepath.Join(r.Dir, path)
	}
	return readFile(path)
}

// readFile reads a regular file of a bounded size.
func readFile(path string) ([]byte, error) {
	// Before it is opened: opening a pipe would wait for somebody who writes.
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no file %s: %w", path, fs.ErrNotExist)
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%s is a directory: name one file", path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case info.Size() > largestFile:
		return nil, fmt.Errorf("%s has %d bytes: a secret has %d at most", path, info.Size(), largestFile)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: kiln runs as a user who may not read it", err)
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, largestFile))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, nil
}

// pick gives all of text but one trailing newline, or, where there is a key,
// the key's value: text has to be YAML then, and the key at its top. Neither
// the parser's errors nor the other keys are repeated: they may be secret.
func pick(text, key string) (string, error) {
	if key == "" {
		return trimNewline(text), nil
	}
	var doc yaml.Node
	if yaml.Unmarshal([]byte(text), &doc) != nil || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return "", fmt.Errorf("the text isn't YAML with keys at its top, so there is no key %s: leave the #%s out for all of the text", key, key)
	}
	var value *yaml.Node
	entries := doc.Content[0].Content
	for i := 0; i+1 < len(entries); i += 2 {
		if entries[i].Value != key {
			continue
		}
		if value != nil {
			return "", fmt.Errorf("the text has the key %s twice: which is meant?", key)
		}
		value = entries[i+1]
	}
	if value == nil {
		return "", fmt.Errorf("the text has no key %s at its top", key)
	}
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
		return "", fmt.Errorf("the key %s has no text as its value", key)
	}
	return value.Value, nil
}
