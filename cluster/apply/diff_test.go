package apply

import (
	"context"
	"strings"
	"testing"

	"github.com/alisw/kiln/internal/quote"
	"github.com/alisw/kiln/plan"
)

func (resolver) Resolve(_ context.Context, ref plan.Ref) (plan.Secret, error) {
	if ref == "env://LINES" {
		return plan.NewSecret(canary + "\n" + canary), nil
	}
	return plan.NewSecret(canary), nil
}

// secretFile is a file with a secret.
func secretFile(t *testing.T, f quote.Format, ref plan.Ref) *plan.File {
	t.Helper()
	var c plan.Content
	c.AppendText([]byte("# Written by Kiln.\nname = \"a\"\nservers = [\"one.example.org\", \"two.example.org\"]\nacl {\n  token = "))
	c.AppendSecret(ref, f, plan.Origin{})
	c.AppendText([]byte("\n}\n"))
	p, err := (&plan.Plan{Host: plan.Host{Layer: plan.Layer{Files: []plan.File{{Path: "/etc/x", Mode: 0o600, Content: c}}}}}).WithSecrets(t.Context(), resolver{})
	if err != nil {
		t.Fatal(err)
	}
	return &p.Host.Files[0]
}

func TestDiffsShowNoSecret(t *testing.T) {
	f := secretFile(t, quote.FormatHCL, "env://TOKEN")
	after, err := f.Content.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	now := string(after)
	for name, c := range map[string]struct {
		before      string
		wants, nots []string
	}{
		"rotated":         {strings.Replace(now, canary, "older-s3cret", 1), []string{"-  token = \"[hidden]", "+  token = [secret env://TOKEN]"}, nil},
		"other spacing":   {strings.Replace(now, "  token = \""+canary, "\ttoken=\"older-s3cret", 1), []string{"-\ttoken=\"[hidden]"}, nil},
		"a server more":   {strings.Replace(now, `, "two.example.org"`, "", 1), []string{`-servers = ["one.example.org"]`, `+servers = ["one.example.org", "two.example.org"]`, " [secret env://TOKEN]"}, []string{"-  token"}},
		"an address":      {now + "bind_addr = \"192.0.2.1\"\n", []string{`"192.0.2.1"`}, nil},
		"an older one":    {now + "pin = 1234 \"older-s3cret\" 'older-s3cret'\n", []string{`-[hidden] = [hidden] "[hidden]" '[hidden]'`}, []string{"1234"}},
		"of many lines":   {now + "key = <<EOF\nolder-s3cret\nolder-s3cret\nEOF\n", nil, []string{"EOF"}},
		"the same, loose": {now + canary + "\n", []string{"-[hidden]"}, nil},
	} {
		got := fileDiff(f, text(c.before), after)
		for _, want := range c.wants {
			if !strings.Contains(got, want) {
				t.Errorf("%s: there is no %q:\n%s", name, want, got)
			}
		}
		for _, not := range append(c.nots, "older-s3cret", canary) {
			if strings.Contains(got, not) {
				t.Errorf("%s: there is %q:\n%s", name, not, got)
			}
		}
	}
	if got := fileDiff(f, nil, after); strings.Contains(got, canary) || !strings.Contains(got, "+  token = [secret env://TOKEN]") {
		t.Errorf("a new file: %s", got)
	}
}

// A secret of several lines can't be told from what stands around it.
func TestDiffOfASecretOfSeveralLines(t *testing.T) {
	f := secretFile(t, quote.FormatShell, "env://LINES")
	after, err := f.Content.Bytes()
	if err != nil || strings.Count(string(after), canary) != 2 {
		t.Fatalf("%q, %v", after, err)
	}
	if got := fileDiff(f, text(string(after)+"# more\n"), after); strings.Contains(got, canary) {
		t.Errorf("it shows: %s", got)
	}
}

// A file that is for everybody is shown as it is; one that wasn't on the host
// isn't.
func TestDiffsOfOtherFiles(t *testing.T) {
	f := &plan.File{Path: "/etc/x", Mode: 0o644, Content: plan.Literal([]byte("new\n"))}
	if got := fileDiff(f, text("old word\n"), []byte("new\n")); !strings.Contains(got, "-old word\n+new\n") {
		t.Errorf("got %s", got)
	}
	private := text("old word\n")
	private.mode = 0o600
	if got := fileDiff(f, private, []byte("new\n")); strings.Contains(got, "old") || !strings.Contains(got, "+new") {
		t.Errorf("got %s", got)
	}
	if got := diffOf("x", []byte("a\x00b"), []byte("c")); got != "(not a text)\n" {
		t.Errorf("got %s", got)
	}
}

// FuzzRedact: whatever stood in a file, no word of it that isn't public shows.
func FuzzRedact(f *testing.F) {
	for _, s := range []string{"token = X", "X", "token X\n}", "  token = \"X\"", "acl { token = X", "\r\nX", "name='X'", "tokenX=X"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, before string) {
		const public = "name = \"a\"\n  token = [secret env://T]\n"
		const after = "name = \"a\"\n  token = \"" + canary + "\"\n"
		got := string(redact([]byte(strings.ReplaceAll(before, "X", canary)), []byte(after), public))
		if strings.Contains(got, canary) {
			t.Errorf("%q becomes %q", before, got)
		}
	})
}
