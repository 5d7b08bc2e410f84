package render

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
	"golang.org/x/text/unicode/norm"
)

// packerBody is a block of HCL 2 being written.
type packerBody struct {
	file *packerFile
	body *hclwrite.Body
}

// packerFile is the whole; err is the first thing that went wrong in it.
type packerFile struct {
	file *hclwrite.File
	err  error
}

func newPackerFile() *packerBody {
	f := &packerFile{file: hclwrite.NewEmptyFile()}
	return &packerBody{f, f.file.Body()}
}

// bytes is the file in its canonical form, that of packer fmt.
func (b *packerBody) bytes() ([]byte, error) {
	if b.file.err != nil {
		return nil, b.file.err
	}
	text := hclwrite.Format(b.file.file.Bytes())
	// One more reading costs little, and no template leaves that Packer can't read.
	if _, diagnostics := hclsyntax.ParseConfig(text, "template.pkr.hcl", hcl.InitialPos); diagnostics.HasErrors() {
		return nil, fmt.Errorf("the Packer template came out wrong: %w", diagnostics)
	}
	return text, nil
}

// comment adds lines of comment.
func (b *packerBody) comment(lines ...string) {
	for _, l := range lines {
		text := "#"
		if l != "" {
			text = "# " + strings.Map(func(r rune) rune {
				if notInLine(r) {
					return ' '
				}
				return r
			}, l)
		}
		b.body.AppendUnstructuredTokens(hclwrite.Tokens{{Type: hclsyntax.TokenComment, Bytes: []byte(text + "\n")}})
	}
}

func (b *packerBody) blank() { b.body.AppendNewline() }

// section starts a part of the file, behind a comment.
func (b *packerBody) section(title string) {
	b.blank()
	b.comment("--- " + title)
}

// block adds a block, behind an empty line where others went before.
func (b *packerBody) block(kind string, labels ...string) *packerBody {
	if len(b.body.Blocks()) > 0 && b.body == b.file.file.Body() || kind == "validation" {
		b.blank()
	}
	return &packerBody{b.file, b.body.AppendNewBlock(kind, labels).Body()}
}

// set adds an attribute with a value that is known now.
func (b *packerBody) set(name string, v cty.Value) { b.body.SetAttributeValue(name, v) }

// expr adds an attribute with an expression, which is Kiln's own text and
// nothing that anybody wrote.
func (b *packerBody) expr(name, expression string) {
	f, diagnostics := hclwrite.ParseConfig([]byte("x = "+expression+"\n"), "expression", hcl.InitialPos)
	if diagnostics.HasErrors() {
		if b.file.err == nil {
			b.file.err = fmt.Errorf("the expression of %s: %w", name, diagnostics)
		}
		return
	}
	b.body.SetAttributeRaw(name, f.Body().GetAttribute("x").Expr().BuildTokens(nil))
}

// text adds an attribute with a text of many lines, so that its value is that
// text byte for byte: a heredoc where one can hold it.
func (b *packerBody) text(name, s string) {
	if !utf8.ValidString(s) || !norm.NFC.IsNormalString(s) {
		// Every string of HCL is in Unicode's form C: the accents of another form
		// would come out changed. cloud-init reads a mail message, too.
		s = mailMessage(s)
	}
	if !isHeredoc(s) {
		// Base64 has nothing that would need quoting.
		b.expr(name, `base64decode("`+base64.StdEncoding.EncodeToString([]byte(s))+`")`)
		return
	}
	end := "END_OF_" + strings.ToUpper(name)
	for hasLine(s, end) {
		end += "_"
	}
	b.body.SetAttributeRaw(name, hclwrite.Tokens{
		{Type: hclsyntax.TokenOHeredoc, Bytes: []byte("<<" + end + "\n")},
		{Type: hclsyntax.TokenStringLit, Bytes: []byte(strings.NewReplacer("${", "$${", "%{", "%%{").Replace(s))},
		{Type: hclsyntax.TokenCHeredoc, Bytes: []byte(end)},
	})
}

// isHeredoc tells whether a heredoc gives s back as it is: whole lines, none
// of them ended by anything but a newline, and no character that HCL refuses.
func isHeredoc(s string) bool {
	return strings.HasSuffix(s, "\n") && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '\n' && r != '\t' && notInLine(r) || r == '\uFEFF'
	})
}

// hasLine tells whether a line of s would end a heredoc.
func hasLine(s, end string) bool {
	for line := range strings.Lines(s) {
		if strings.TrimSpace(line) == end {
			return true
		}
	}
	return false
}

// mailMessage carries user-data of any bytes in ASCII.
func mailMessage(s string) string {
	var b bytes.Buffer
	b.WriteString("Content-Type: text/cloud-config\nMIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\n")
	encoded := base64.StdEncoding.EncodeToString([]byte(s))
	for len(encoded) > 76 {
		b.WriteString(encoded[:76] + "\n")
		encoded = encoded[76:]
	}
	b.WriteString(encoded + "\n")
	return b.String()
}
