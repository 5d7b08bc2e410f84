package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/aptkey"
	"github.com/alisw/kiln/internal/regular"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/internal/ui"
	"github.com/alisw/kiln/plan"
	"github.com/alisw/kiln/profiles"
)

func newKeysCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "List and fetch the keys of apt sources",
		Long: `Keys are what apt trusts a repository by. A profile says each key's fingerprint,
and where it is to be had; the site keeps the key itself, in keys/NAME.asc.`,
		Args: onlyVerbs,
		RunE: verb(func(_ context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	cmd.AddCommand(newKeysFetchCommand(global, u), newKeysListCommand(global, u))
	return cmd
}

type keysFetchOptions struct {
	*globalOptions
	update bool
}

func newKeysFetchCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &keysFetchOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:   "fetch [NAME…]",
		Short: "Fetch the keys that the site doesn't hold yet",
		Long: `Fetch gets the key of each apt source of the site's profiles that the site
doesn't hold yet, or of the named ones, and writes it to keys/NAME.asc: if it has
the fingerprint that the profile says, and not otherwise. So it doesn't matter
which way it comes.

The usual variables (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) name a proxy.`,
		Example: `  kiln keys fetch
  kiln keys fetch hashicorp --update    # a key whose expiry was moved`,
		ValidArgsFunction: completeSite(global, -1, func(_ *cobra.Command, site *profiles.Site, _ string) []string {
			return sourceNames(aptSources(site))
		}),
		RunE: verb(func(ctx context.Context, _ *cobra.Command, args []string) error { return runKeysFetch(ctx, o, args, u) }),
	}
	cmd.Flags().BoolVar(&o.update, "update", false, "fetch keys that the site holds already, too")
	return cmd
}

type keysListOptions struct {
	*globalOptions
	json bool
}

func newKeysListCommand(global *globalOptions, u *ui.UI) *cobra.Command {
	o := &keysListOptions{globalOptions: global}
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List the keys of the site's apt sources",
		Long:              "List shows each apt source of the site's profiles with its key's fingerprint, expiry and file.",
		Example:           "  kiln keys list",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb(func(ctx context.Context, _ *cobra.Command, _ []string) error { return runKeysList(ctx, o, u) }),
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print them as JSON")
	return cmd
}

// aptSources are the sources of all the site's profiles, each once, by name.
func aptSources(site *profiles.Site) []plan.AptSource {
	var sources []plan.AptSource
	for _, name := range site.Profiles() {
		image, _ := site.Image(name, images.Default)
		sources = append(sources, image.AptSources...)
	}
	// Two profiles can give one name different keys: both are shown.
	compare := func(a, b plan.AptSource) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Fingerprint, b.Fingerprint), strings.Compare(a.KeyFile, b.KeyFile))
	}
	slices.SortFunc(sources, compare)
	return slices.CompactFunc(sources, func(a, b plan.AptSource) bool { return compare(a, b) == 0 })
}

func sourceNames(sources []plan.AptSource) []string {
	names := make([]string, len(sources))
	for i, s := range sources {
		names[i] = s.Name
	}
	return slices.Compact(names)
}

// The most that fetching one key may take.
const (
	maxKey     = 1 << 20 // bytes
	keyTimeout = 30 * time.Second
)

func runKeysFetch(ctx context.Context, o *keysFetchOptions, args []string, u *ui.UI) error {
	site, err := o.open()
	if err != nil {
		return err
	}
	sources := aptSources(site)
	for _, name := range args {
		if !slices.Contains(sourceNames(sources), name) {
			return fmt.Errorf("no profile has an apt source %q: %s", name, strictyaml.DidYouMean(name, sourceNames(sources)))
		}
	}
	client := &http.Client{Timeout: keyTimeout}
	failed, fetched := 0, 0
	for _, s := range sources {
		if len(args) > 0 && !slices.Contains(args, s.Name) || len(s.Key) > 0 && !o.update {
			continue
		}
		if err := fetchKey(ctx, client, &s); err != nil {
			if ctx.Err() != nil {
				return err
			}
			u.Notef("kiln: the key of the apt source %s: %s", s.Name, err)
			failed++
			continue
		}
		fetched++
		u.Notef("fetched the key of %s, %s, to %s", s.Name, s.Fingerprint, s.KeyFile)
	}
	switch {
	case failed > 0:
		return errShown
	case fetched == 0 && len(args) > 0:
		u.Notef("the site holds what was asked for already; --update fetches it anew")
	case fetched == 0:
		u.Notef("the site holds every key already; --update fetches them anew")
	}
	return nil
}

// fetchKey gets one key, and keeps it if it is the right one.
func fetchKey(ctx context.Context, client *http.Client, s *plan.AptSource) error {
	switch {
	case s.KeyURL == "":
		return fmt.Errorf("nothing says where it is to be had: copy it to %s, or give the source a key_url", s.KeyFile)
	case strings.ContainsAny(s.Name, "/\\"):
		return errors.New("the source's name can't name a file: run kiln check")
	}
	data, err := download(ctx, client, s.KeyURL)
	if err != nil {
		return err
	}
	key, err := aptkey.Parse(data)
	switch {
	case err != nil:
		return fmt.Errorf("what %s gave isn't it: %w", s.KeyURL, err)
	case key.Fingerprint != s.Fingerprint:
		return fmt.Errorf("%s gave a key with the fingerprint %s, not %s: it isn't kept; if it is to be trusted, write its fingerprint into site.yaml, at apt: sources: %s: fingerprint",
			s.KeyURL, key.Fingerprint, s.Fingerprint, s.Name)
	}
	return writeFile(s.KeyFile, key.Armored, false)
}

func download(ctx context.Context, client *http.Client, url string) (data []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("its key_url: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, otherWay(req, err))
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", url, resp.Status)
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, maxKey+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", url, err)
	case len(data) > maxKey:
		return nil, fmt.Errorf("%s gave more than %d bytes: that is no key", url, maxKey)
	}
	return data, nil
}

// otherWay is the advice for an address that doesn't answer. Only where nobody
// was reached may a proxy be what is missing.
func otherWay(req *http.Request, err error) string {
	const byHand = "copy the key by hand"
	op, isOp := errors.AsType[*net.OpError](err)
	_, isDNS := errors.AsType[*net.DNSError](err)
	var timeout net.Error
	if !(isDNS || isOp && op.Op == "dial" || errors.As(err, &timeout) && timeout.Timeout()) {
		return byHand
	}
	if proxy, _ := http.ProxyFromEnvironment(req); proxy != nil {
		return "is " + proxy.Host + " the right proxy? Or " + byHand
	}
	return "behind a proxy, set HTTPS_PROXY; or " + byHand
}

// keyInfo is what there is to say of a key in a line.
type keyInfo struct {
	Name        string     `json:"name"`
	Fingerprint string     `json:"fingerprint"`
	Expires     *time.Time `json:"expires,omitempty"` // nil: never, or not known
	File        string     `json:"file"`
	State       string     `json:"state"` // ok, missing, or what is wrong with the file
}

func runKeysList(_ context.Context, o *keysListOptions, u *ui.UI) error {
	site, err := o.open()
	if err != nil {
		return err
	}
	infos := []keyInfo{}
	for _, s := range aptSources(site) {
		infos = append(infos, describeKey(&s))
	}
	if o.json {
		return printJSON(u, infos)
	}
	w := tabwriter.NewWriter(u.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tFINGERPRINT\tEXPIRES\tFILE\tSTATE")
	for _, k := range infos {
		expires := "-"
		if k.Expires != nil {
			expires = k.Expires.Format(time.DateOnly)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Name, k.Fingerprint, expires, k.File, k.State)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the keys: %w", err)
	}
	return nil
}

func describeKey(s *plan.AptSource) keyInfo {
	k := keyInfo{Name: s.Name, Fingerprint: s.Fingerprint, File: s.KeyFile, State: "ok"}
	data, err := regular.ReadFile(s.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		k.State = "missing"
		return k
	}
	var key aptkey.Key
	if err == nil {
		key, err = aptkey.Parse(data)
	}
	switch {
	case err != nil:
		k.State = err.Error()
	case key.Fingerprint != s.Fingerprint:
		k.State = "another key: " + key.Fingerprint
	case !key.Expires.IsZero():
		expires := key.Expires.UTC()
		k.Expires = &expires
		if time.Now().After(expires) {
			k.State = "expired"
		}
	}
	return k
}
