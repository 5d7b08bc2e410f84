package main

import (
	"bufio"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/alisw/kiln/cluster/verify"
	"github.com/alisw/kiln/internal/ui"
)

// verifyHostsResult is what kiln verify --json prints.
type verifyHostsResult struct {
	Hosts    []verify.Report `json:"hosts"`
	OK       bool            `json:"ok"`
	Findings int             `json:"findings"`
}

// showReports prints what was found, as a table or as JSON.
func showReports(reports []verify.Report, asJSON bool, u *ui.UI) error {
	r := verifyHostsResult{Hosts: reports, OK: true}
	good := 0
	for i := range reports {
		r.Findings += len(reports[i].Findings)
		r.OK = r.OK && reports[i].OK
		if reports[i].OK {
			good++
		}
	}
	if asJSON {
		return printJSON(u, r)
	}
	out := bufio.NewWriter(u.Out)
	if r.Findings > 0 {
		printFindings(out, reports)
		_ = out.WriteByte('\n')
		printDetails(out, reports)
	}
	for i := range reports {
		for _, n := range reports[i].Notes {
			fmt.Fprintf(out, "%s: %s\n", reports[i].Host, n)
		}
	}
	if r.Findings == 0 {
		fmt.Fprintf(out, "%s: as in the site\n", count(len(reports), "host"))
	} else {
		fmt.Fprintf(out, "%s: %d as in the site, %s on the others\n", count(len(reports), "host"), good, count(r.Findings, "finding"))
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("printing the reports: %w", err)
	}
	return nil
}

func printFindings(out *bufio.Writer, reports []verify.Report) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tCHECK\tEXPECTED\tFOUND")
	for i := range reports {
		for _, f := range reports[i].Findings {
			found := f.Found
			if f.Status == verify.Unknown {
				found = "unknown: " + found
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", reports[i].Host, nameOf(f), oneLine(f.Expected), oneLine(found))
		}
	}
	_ = w.Flush() // out keeps its error
}

// printDetails says what to do about each finding, with what explains it.
func printDetails(out *bufio.Writer, reports []verify.Report) {
	for i := range reports {
		for _, f := range reports[i].Findings {
			fmt.Fprintf(out, "%s, %s: %s\n", reports[i].Host, nameOf(f), oneLine(f.Fix))
			for _, d := range f.Details {
				fmt.Fprintf(out, "    %s\n", oneLine(d))
			}
		}
	}
	_ = out.WriteByte('\n')
}

func nameOf(f verify.Finding) string {
	if f.Object == "" {
		return string(f.Check)
	}
	return string(f.Check) + " " + oneLine(f.Object)
}

// oneLine is a text of the cluster's, or of a host's, as a terminal may show it.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return '�'
		}
		return r
	}, s)
}
