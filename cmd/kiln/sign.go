package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cmd/internal/baking"
	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/ui"
)

func newImagesSignCommand(u *ui.UI) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "sign IMAGE --key FILE",
		Short: "Sign an image's manifest",
		Long: `Sign compares an image's files with its manifest, and signs the manifest with a
secret key of minisign's. The signature stands beside it, as manifest.json.minisig:
kiln images verify and minisign -V check it.

A key that is encrypted has its password asked for on the terminal, or taken from
the variable ` + passwordVariable + `. One that isn't must be its owner's alone.`,
		Example:           "  minisign -G -p keys/images.pub -s ~/images.key\n  kiln images sign alissandra --key ~/images.key",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeBootable,
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error {
			if key == "" {
				return usagef("name the secret key to sign with: --key FILE (minisign -G makes one)")
			}
			store, m, err := findImage(args[0])
			if err != nil {
				return err
			}
			sign, err := newSigner(ctx, key, store, u)
			if err != nil {
				return err
			}
			return sign.sign(ctx, m)
		}),
	}
	cmd.Flags().StringVar(&key, "key", "", "secret key `FILE`, as minisign -G writes it")
	return cmd
}

// passwordVariable has the password of an encrypted key, where no terminal is.
const passwordVariable = "KILN_SIGN_PASSWORD"

// signer signs images; without a key it only says what isn't signed any more.
type signer struct {
	key   *images.SigningKey
	store *images.Store
	ui    *ui.UI
}

// newSigner reads the key, if one is named: before anything takes long.
func newSigner(ctx context.Context, file string, store *images.Store, u *ui.UI) (*signer, error) {
	s := &signer{store: store, ui: u}
	if file == "" {
		return s, nil
	}
	var err error
	s.key, err = images.ReadSigningKey(file, func() (string, error) { return askSecret(ctx, passwordVariable, "Password of "+file) })
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s, err
}

// built is for an image that was just built.
func (s *signer) built(ctx context.Context, m *images.Manifest) error {
	switch {
	case s.key != nil:
		return s.sign(ctx, m)
	case m.SignatureDropped:
		s.ui.Notef("%s isn't signed any more, since its manifest is a new one: kiln images sign %[1]s --key FILE, or kiln build --sign FILE", m.Short())
	}
	return nil
}

func (s *signer) sign(ctx context.Context, m *images.Manifest) error {
	release, err := s.store.Use(m.ID)
	if err != nil {
		return err
	}
	defer release()
	// A build knows what it has made, and the store also what others have added.
	if m, err = s.store.Manifest(m.ID); err != nil {
		return err
	}
	wrong, err := checkFiles(ctx, s.store, m, nil, s.ui)
	if err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the image %s isn't signed, as it isn't what its manifest says: %s", m.Short(), strings.Join(wrongs(wrong), "; "))
	}
	if err := s.store.Sign(m, s.key); err != nil {
		return err
	}
	pub := s.key.Public()
	s.ui.Notef("signed %s (%s on %s) with the key %s", m.Short(), m.Profile, m.Definition, pub.ID())
	return nil
}

// checkFiles is Store.CheckFiles with its progress on the terminal.
func checkFiles(ctx context.Context, store *images.Store, m *images.Manifest, formats []images.Format, u *ui.UI) ([]images.Wrong, error) {
	const mb = 1_000_000
	p := u.Progress("compared %d MB of the image's files")
	defer p.End()
	part := 0
	return store.CheckFiles(ctx, m, formats, func(n int) {
		part += n
		p.Add(part / mb)
		part %= mb
	})
}

func wrongs(list []images.Wrong) []string {
	var lines []string
	for _, w := range list {
		lines = append(lines, visible(w.Name)+": "+w.What)
	}
	return lines
}

// exportSignature puts the manifest of an image that is signed, and the signature,
// beside what was exported; else it removes those of an earlier export.
func exportSignature(store *images.Store, m *images.Manifest, f images.Format, to string, u *ui.UI) error {
	manifest := to + "." + images.ManifestName
	signature := to + "." + images.SignatureName
	text, err := store.Signature(m.ID)
	if err == nil && m.Has(f) {
		data, err := os.ReadFile(store.Path(m.ID, images.ManifestName))
		if err == nil {
			err = errors.Join(writeFile(manifest, data, false), writeFile(signature, text, false))
		}
		if err != nil {
			return fmt.Errorf("exporting the signature: %w", err)
		}
		u.Notef("wrote %s and its signature", manifest)
		return nil
	}
	if err == nil {
		u.Notef("note: %s has no signature, since it was made just now: kiln build %s --image %s --format %s --sign FILE signs one", to, m.Profile, m.Definition, f)
	} else if !errors.Is(err, images.ErrUnsigned) {
		return fmt.Errorf("exporting the signature: %w", err)
	}
	if _, err := os.Lstat(signature); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	u.Notef("removed %s and its signature, of what was there before", manifest)
	return errors.Join(os.Remove(signature), os.Remove(manifest))
}

// trustedKeys are the public keys of the site that the caller is in, or names. Where
// there is no site, there are none.
func (o *globalOptions) trustedKeys() ([]images.PublicKey, error) {
	dir, err := o.directory()
	if errors.Is(err, baking.ErrNoSite) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// One that isn't there has no keys, which mustn't mean that all is trusted.
	if _, err := os.Stat(filepath.Join(dir, baking.SiteFile)); err != nil {
		return nil, fmt.Errorf("looking for the keys that images are trusted by: %w", err)
	}
	return images.SiteKeys(dir)
}

func keyNames(keys []images.PublicKey) string {
	var names []string
	for i := range keys {
		names = append(names, keys[i].Name)
	}
	return strings.Join(names, ", ")
}

// withoutSignature is the flag of those verbs that a signature stops.
const withoutSignature = "without-signature"

// trusted gives the image's manifest if the site has keys and one of them signed
// it, and if its disk is the one that was signed; without keys, the image itself.
func (o *bootOptions) trusted(ctx context.Context, store *images.Store, image *images.Manifest, u *ui.UI) (*images.Manifest, error) {
	keys, err := o.trustedKeys()
	if err != nil || len(keys) == 0 {
		return image, err
	}
	m, _, err := store.Verified(image.ID, keys)
	if err != nil {
		return nil, fmt.Errorf("the image %s isn't booted: %w: if it can be trusted, sign it (kiln images sign %[1]s --key FILE, with the key of %[3]s), or say --%[4]s",
			image.Short(), err, keyNames(keys), withoutSignature)
	}
	wrong, err := checkFiles(ctx, store, m, []images.Format{images.FormatRaw}, u)
	if err != nil {
		return nil, err
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("the image %s isn't booted, as it isn't what was signed: %s: kiln images remove %[1]s, and build it anew", m.Short(), strings.Join(wrongs(wrong), "; "))
	}
	return m, nil
}
