package importing

import (
	"strings"

	"github.com/alisw/kiln/internal/lazyregexp"
)

var rubyNoise = lazyregexp.New(`(?s)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|#[^{\n][^\n]*`)
var rubyWord = lazyregexp.New(`[A-Za-z_][A-Za-z0-9_]*[?!]?|[{}\n;]|[^\sA-Za-z_]`)

// blockDepth is how many blocks code opens more than it closes, for code that
// can't be translated: negative where it closes more. A wrong guess leads to
// more failures, not to fewer.
func blockDepth(code string) int {
	code = rubyNoise().ReplaceAllString(code, "''")
	depth, start, loop := 0, true, false
	for _, w := range rubyWord().FindAllString(code, -1) {
		switch w {
		case "if", "unless", "case", "begin", "def":
			if start {
				depth++
			}
		case "while", "until", "for":
			if start {
				depth++
				loop = true
			}
		case "do":
			if !loop {
				depth++
			}
			loop = false
		case "{":
			depth++
		case "end", "}":
			depth--
		}
		start = strings.Contains("\n;=({", w) || w == "then" || w == "else" || w == "do"
	}
	return depth
}
