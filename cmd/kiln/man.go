package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type manOptions struct {
	output string
}

func newManCommand() *cobra.Command {
	o := &manOptions{}
	cmd := &cobra.Command{
		Use:     "man -o DIR",
		Short:   "Write the manual pages",
		Long:    "Man writes a manual page for kiln and one for each verb.",
		Example: "  kiln man -o /usr/local/share/man/man1",
		Args:    cobra.NoArgs,
		RunE:    verb(func(ctx context.Context, cmd *cobra.Command, _ []string) error { return runMan(ctx, o, cmd.Root()) }),
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "`DIR` to write the pages to")
	_ = cmd.MarkFlagRequired("output")
	_ = cmd.MarkFlagDirname("output")
	return cmd
}

func runMan(_ context.Context, o *manOptions, root *cobra.Command) error {
	return writeManPages(o.output, root)
}

func writeManPages(dir string, cmd *cobra.Command) error {
	for _, c := range below(cmd) {
		if err := writeManPages(dir, c); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dir, pageName(cmd)+".1"), manPage(cmd), false)
}

// below are the commands below cmd that people call, and topics of help.
func below(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() || c.IsAdditionalHelpTopicCommand() {
			all = append(all, c)
		}
	}
	return all
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage is the manual page of one command, in man(7). It is written here:
// cobra's own writer goes by way of Markdown, which eats the line breaks of
// tables, and brings as much to each start of kiln as all of it otherwise needs.
// Without a date, the same kiln writes the same page.
func manPage(cmd *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH %q 1 \"\" %q \"Kiln\"\n", strings.ToUpper(pageName(cmd)), "kiln "+versionOf())
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))
	if cmd.Runnable() {
		fmt.Fprintf(&b, ".SH SYNOPSIS\n%s\n", roff(cmd.UseLine()))
	}
	b.WriteString(".SH DESCRIPTION\n")
	// The text is laid out in lines already, with tables among them.
	literal(&b, cmd.Long)
	if cmd.HasAvailableLocalFlags() {
		b.WriteString(".SH OPTIONS\n")
		flags(&b, cmd.LocalFlags())
	}
	if cmd.HasAvailableInheritedFlags() {
		b.WriteString(".SH OPTIONS OF EVERY VERB\n")
		flags(&b, cmd.InheritedFlags())
	}
	if cmd.Example != "" {
		b.WriteString(".SH EXAMPLES\n")
		literal(&b, cmd.Example)
	}
	if cmd.Runnable() {
		b.WriteString(".SH EXIT STATUS\n")
		literal(&b, exitStatusHelp)
	}
	seeAlso(&b, cmd)
	return b.Bytes()
}

func literal(b *bytes.Buffer, text string) {
	fmt.Fprintf(b, ".nf\n%s\n.fi\n", roff(strings.Trim(text, "\n")))
}

func flags(b *bytes.Buffer, set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name, usage := pflag.UnquoteUsage(f)
		head := "--" + f.Name
		if f.Shorthand != "" {
			head = "-" + f.Shorthand + ", " + head
		}
		if name != "" {
			head += " " + name
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			usage += " (default: " + strings.Trim(f.DefValue, "[]") + ")"
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(head), roff(usage))
	})
}

func seeAlso(b *bytes.Buffer, cmd *cobra.Command) {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, pageName(cmd.Parent()))
	}
	for _, c := range below(cmd) {
		pages = append(pages, pageName(c))
	}
	for i, p := range pages {
		pages[i] = ".BR " + roff(p) + " (1)"
	}
	fmt.Fprintf(b, ".SH SEE ALSO\n%s\n", strings.Join(pages, ",\n"))
}

var roffEscapes = strings.NewReplacer("…", "...", `\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'")

// roff keeps text from being taken for requests, and dashes from becoming
// hyphens, so that examples can be copied.
func roff(text string) string {
	return strings.TrimPrefix(roffEscapes.Replace("\n"+text), "\n")
}
