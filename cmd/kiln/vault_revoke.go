package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/alisw/kiln/cluster/vault"
	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/internal/lazyregexp"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/profiles"
)

type revokeOptions struct {
	*globalOptions
	accessor     string
	orphan, json bool
}

// revokeVariable has the token to revoke, where that isn't typed or piped.
const revokeVariable = "KILN_REVOKE_TOKEN"

func newVaultRevokeCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &revokeOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "revoke [--orphan] | --accessor A",
		Short: "Revoke a token, and see that it is gone",
		Long: `Revoke revokes a token and, unless --orphan is given, all that were made with it,
and looks whether Vault still knows it. A token that Vault doesn't know is an error.

The token is taken from the variable ` + revokeVariable + `, from standard input, or
asked for on the terminal, unseen: never from the arguments, which everybody on the
machine can read. --accessor names a token without showing it; Vault can't keep
those that were made with it then.

Once the token is gone, so are its children, and the leases of what was read with it.`,
		Example: `  kiln vault revoke < leaked-token
  pass show vault/old-token | kiln vault revoke --orphan
  kiln vault revoke --accessor 8609694a-cdbc-db9b-d345-e782dbb562ed`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: verb(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := o.check(args, cmd.Flags().Changed("accessor")); err != nil {
				return err
			}
			return runVaultRevoke(ctx, o, u)
		}),
	}
	cmd.Flags().StringVar(&o.accessor, "accessor", "", "revoke the token that has the accessor `A`")
	cmd.Flags().BoolVar(&o.orphan, "orphan", false, "keep the tokens that were made with it")
	cmd.Flags().BoolVar(&o.json, "json", false, "print what was revoked as JSON")
	return cmd
}

// tokenPrefix begins what is a token, and no accessor.
var tokenPrefix = lazyregexp.New(`^(hv[sbr]|[sbr])\.`)

// check shows nothing of what was given.
func (o *revokeOptions) check(args []string, named bool) error {
	switch {
	case len(args) > 0:
		return usagef("a token isn't taken from the arguments, which everybody on this machine can read, and which your shell keeps: if that was one, revoke it at once (kiln vault revoke asks for it), and remove it from the shell's history")
	case named && tokenPrefix().MatchString(o.accessor):
		return usagef("--accessor is given a token, which everybody on this machine can read now: revoke it at once (kiln vault revoke asks for it), and remove it from the shell's history")
	case named && o.accessor == "":
		return usagef("--accessor is empty: vault token lookup -accessor and vault list auth/token/accessors know those that there are")
	case named && o.orphan:
		return usagef("by its accessor, Vault revokes a token only with those that were made with it: to keep them, give the token itself, without --accessor")
	}
	return nil
}

func runVaultRevoke(ctx context.Context, o *revokeOptions, u *ui.UI) error {
	address := ""
	switch dir, err := o.directory(); {
	case err == nil:
		// Nothing that is wrong in a site is in the way of revoking a token.
		site, _, err := profiles.Open(dir)
		if err != nil {
			return err
		}
		address = baking.VaultAddress(site)
	case !errors.Is(err, baking.ErrNoSite):
		return err
	}
	server, err := vault.Connect(address)
	if err != nil {
		return err
	}
	what := vault.Revocation{Accessor: o.accessor, Orphan: o.orphan}
	if what.Accessor == "" {
		if what.Token, err = tokenToRevoke(ctx); err != nil {
			return err
		}
	}
	token, err := server.Revoke(ctx, what)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(u, token)
	}
	with := ", and what was made with it"
	if o.orphan {
		with = "; what was made with it is left"
	}
	u.Printf("revoked the token with the accessor %s (%s; policies: %s)%s: Vault doesn't know it any more\n",
		visible(token.Accessor), visible(token.DisplayName), visible(vaultValue(token.Policies)), with)
	return nil
}

// longestToken is more than Vault makes: batch tokens have some hundred bytes.
const longestToken = 16 << 10

func tokenToRevoke(ctx context.Context) (string, error) {
	_, inVariable := os.LookupEnv(revokeVariable)
	ask := func() (string, error) { return askSecret(ctx, revokeVariable, "Token to revoke") }
	if !inVariable && !term.IsTerminal(int(os.Stdin.Fd())) {
		ask = func() (string, error) {
			return answer(ctx, func() (string, error) {
				data, err := io.ReadAll(io.LimitReader(os.Stdin, longestToken+1))
				return string(data), err
			})
		}
	}
	token, err := ask()
	if err != nil {
		return "", fmt.Errorf("the token to revoke: %w", err)
	}
	token = strings.TrimSpace(token)
	switch {
	case token == "":
		return "", fmt.Errorf("the token to revoke is empty: pipe it in, put it into the variable %s, or type it where it is asked for", revokeVariable)
	case len(token) > longestToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", errors.New("the token to revoke is more than one word, or no token at all: give one, and nothing else")
	}
	return token, nil
}
