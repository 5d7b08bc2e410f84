package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
)

type verifyOptions struct {
	*globalOptions
	keys     []string
	unsigned bool
	json     bool
}

func newImagesVerifyCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &verifyOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Verify an image's signature, and compare its files with it",
		Long: `Verify checks that the manifest of an image is signed with a key that is trusted:
one of the site's (keys/*.pub), or the ones of --key alone. Then it compares each of
the image's files with the manifest, and names those that differ. The exit status
is 0 if nothing is wrong.`,
		Example:           "  kiln images verify alissandra\n  kiln images verify 4f1c2e --key images.pub\n  kiln images verify 4f1c2e --without-signature   # only: is it what was built?",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeBootable,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runVerify(ctx, o, args[0], u) }),
	}
	cmd.Flags().StringArrayVar(&o.keys, "key", nil, "`KEY` to trust: a public key's text, or a file with it; may be repeated")
	cmd.Flags().BoolVar(&o.unsigned, withoutSignature, false, "don't ask who signed it, only whether its files are what its manifest says")
	cmd.Flags().BoolVar(&o.json, "json", false, "print the result as JSON")
	cmd.MarkFlagsMutuallyExclusive("key", withoutSignature)
	return cmd
}

// verifyResult is what kiln images verify --json prints.
type verifyResult struct {
	Image     string         `json:"image"`
	Profile   string         `json:"profile"`
	OK        bool           `json:"ok"`
	Signature string         `json:"signature"`     // good, wrong, or unchecked
	Key       string         `json:"key,omitempty"` // that signed it
	KeyFrom   string         `json:"key_from,omitempty"`
	Problem   string         `json:"problem,omitempty"` // of the signature
	Wrong     []images.Wrong `json:"wrong"`
}

func runVerify(ctx context.Context, o *verifyOptions, what string, u *ui.UI) error {
	keys, err := o.trust()
	if err != nil {
		return err
	}
	store, m, release, err := useImage(what)
	if err != nil {
		return err
	}
	defer release()
	r := verifyResult{Image: m.ID, Profile: m.Profile, Signature: "unchecked", Wrong: []images.Wrong{}}
	if !o.unsigned {
		signed, by, err := store.Verified(m.ID, keys)
		if err != nil {
			r.Signature, r.Problem = "wrong", err.Error()
		} else {
			m = signed
			r.Signature, r.Key, r.KeyFrom = "good", by.ID(), by.Name
		}
	}
	wrong, err := checkFiles(ctx, store, m, nil, u)
	if err != nil {
		return err
	}
	r.Wrong = append(r.Wrong, wrong...)
	r.OK = r.Problem == "" && len(r.Wrong) == 0
	return r.show(o.json, m, u)
}

func (r *verifyResult) show(asJSON bool, m *images.Manifest, u *ui.UI) error {
	if asJSON {
		if err := printJSON(u, r); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("%s (%s on %s)", m.Short(), m.Profile, m.Definition)
	if r.Problem != "" {
		u.Notef("kiln: the image %s: %s", name, r.Problem)
	}
	for _, line := range wrongs(r.Wrong) {
		u.Notef("kiln: the image %s: %s", name, line)
	}
	switch {
	case !r.OK:
		return errShown
	case asJSON:
	case r.Key == "":
		u.Printf("%s: its files are what its manifest says; whoever made that, its signature wasn't looked at\n", name)
	default:
		u.Printf("%s: signed by the key %s (%s), and its files are what was signed\n", name, r.Key, r.KeyFrom)
	}
	return nil
}

// trust gives the keys that may have signed the image.
func (o *verifyOptions) trust() ([]images.PublicKey, error) {
	if o.unsigned {
		return nil, nil
	}
	var keys []images.PublicKey
	for _, text := range o.keys {
		k, err := publicKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) > 0 {
		return keys, nil
	}
	keys, err := o.trustedKeys()
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("there is no public key to verify with: name one with --key, put it into the site as keys/NAME.pub, or say --%s", withoutSignature)
	}
	return keys, err
}

// publicKey is what --key says: a file, or the key itself.
func publicKey(text string) (images.PublicKey, error) {
	if _, err := os.Stat(text); errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(text, "RW") {
		return images.ParsePublicKey(text, "--key")
	}
	return images.ReadPublicKey(text)
}
