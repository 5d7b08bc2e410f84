package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/profiles"
)

// complete has the shell offer these words for a flag.
func complete(cmd *cobra.Command, flag string, words ...string) {
	// The flag was just added: there is no other error.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// maxCompletions is how many names a shell is offered.
const maxCompletions = 200

// completeHosts offers the names of hosts for the first n arguments.
func completeHosts(global *globalOptions, n int) cobra.CompletionFunc {
	return completeSite(global, n, func(cmd *cobra.Command, site *profiles.Site, prefix string) []string {
		var names []string
		_, _ = site.HostInfos(cmd.Context(), func(h profiles.HostInfo) bool {
			if strings.HasPrefix(h.Name, prefix) {
				names = append(names, cobra.CompletionWithDesc(h.Name, h.Profile))
			}
			return len(names) < maxCompletions
		})
		return names
	})
}

// completeProfileFiles offers profiles, then the files of the one chosen.
func completeProfileFiles(global *globalOptions) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeSite(global, 2, func(_ *cobra.Command, site *profiles.Site, _ string) []string {
			if len(args) == 1 {
				if files := site.ProfileFiles(args[0]); files != nil {
					return fileNames(files)
				}
				return nil
			}
			var names []string
			for _, p := range site.ProfileInfos() {
				names = append(names, cobra.CompletionWithDesc(p.Name, p.Description))
			}
			return names
		})(cmd, args, prefix)
	}
}

// completeSite offers what find gets from the site. A site that can't be read
// offers nothing: a shell's line is no place for problems.
func completeSite(global *globalOptions, n int, find func(*cobra.Command, *profiles.Site, string) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		dir, err := global.directory()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		site, _, err := profiles.Open(dir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return find(cmd, site, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}
