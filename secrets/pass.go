package secrets

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// pass asks the password store for pass://NAME: the first line of the entry,
// as is the store's own convention. gpg-agent may ask the operator for a
// passphrase meanwhile.
func (r *Resolver) pass(ctx context.Context, ref plan.Ref) (string, error) {
	name := ref.Rest()
	if err := noOption("entry", name); err != nil {
		return "", err
	}
	out, err := r.output(ctx, run.Command{
		Name: "pass", Args: []string{"show", "--", name}, Without: withheld,
		Install: "the Debian package pass has it",
	})
	if err != nil {
		return "", fmt.Errorf("%w\npass ls shows the entries that there are", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if line == strings.TrimRight(name, "/") {
		// For a folder, pass shows its name and the entries in it.
		return "", errors.New("it is a folder of the password store: name one of its entries (pass ls shows them)")
	}
	return line, nil
}
