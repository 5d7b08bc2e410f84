package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/alisw/kiln/cluster"
	"github.com/alisw/kiln/cluster/leftovers"
	"github.com/alisw/kiln/internal/ui"
)

func newConsulCommand(u *ui.UI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "consul",
		Short: "Look after the cluster's Consul",
		Long: `Consul has the verbs for the cluster's Consul. Where that is, and the token, come
from the environment, as for the program consul: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN,
CONSUL_CACERT and their like.`,
		Args: onlyVerbs,
		RunE: verb(func(_ context.Context, cmd *cobra.Command, _ []string) error { return cmd.Help() }),
	}
	cmd.AddCommand(newLeftoversCommand(u))
	return cmd
}

type leftoversOptions struct {
	fix, yes, json bool
	services       []string
	wait           time.Duration
	waitSet        bool
	timeout        time.Duration
	via            string
	port           int
	sshUser        string
	sshConfig      string
}

func newLeftoversCommand(u *ui.UI) *cobra.Command {
	o := &leftoversOptions{}
	cmd := &cobra.Command{
		Use:   "leftovers",
		Short: "Find entries of Nomad clients that were never deregistered, and remove them",
		Long: `Leftovers finds what a host that changed its address has left in Consul: an entry
of its Nomad client, with the old address. It is proven to be left over if Nomad
has one ready node of the Consul node's name, which advertises another address that
has an entry there, too. What looks like one, but isn't proven, is listed as
"cannot prove", and never touched.

Nothing is changed without --fix, which asks first. It deregisters each entry on
the Consul agent that registered it: through its API at the node's address, or over
ssh; in the catalog, where that agent is gone or doesn't list it. Then it reads
back, and watches for one round of Consul's anti-entropy that all stay away.

Consul and Nomad are reached as the environment says, as with the programs consul
and nomad: CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, NOMAD_ADDR, NOMAD_TOKEN, and their
certificates. The token for Consul needs node and service read, and service write
for --fix; the one for Nomad, node read.

It ends with 0 if nothing is left over, or nothing any more; with 1 if anything is,
or may be; with 2 if Consul or Nomad couldn't be asked, or didn't tell all.`,
		Example: `  kiln consul leftovers
  kiln consul leftovers --fix
  kiln consul leftovers --fix --yes --via ssh --ssh-user root
  kiln consul leftovers --json | jq -r '.leftovers[] | select(.verdict == "stale") | .id'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: verb(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			o.waitSet = cmd.Flags().Changed("wait")
			return runLeftovers(ctx, o, u)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&o.fix, "fix", false, "remove those that are proven to be left over, after a question")
	f.BoolVar(&o.yes, "yes", false, "don't ask")
	f.BoolVar(&o.json, "json", false, "print the result as JSON")
	f.StringArrayVar(&o.services, "service", nil, "`NAME` of Nomad's clients in Consul, their client_service_name; may be repeated (default: "+leftovers.DefaultService+")")
	f.DurationVar(&o.wait, "wait", 0, "how `LONG` to watch that they stay away; 0 is not at all (default: a round of anti-entropy, 2m or more with the cluster's size)")
	f.DurationVar(&o.timeout, "timeout", leftovers.DefaultTimeout, "how `LONG` one request may take")
	f.StringVar(&o.via, "via", "", "the only `WAY` to a host's agent: http, or ssh (default: http, else ssh)")
	f.IntVar(&o.port, "agent-port", 0, "`PORT` of the API of the hosts' agents (default: 8500; 8501 with TLS)")
	f.StringVar(&o.sshUser, "ssh-user", "", "`USER` to log in as on hosts (default: as ~/.ssh/config says)")
	f.StringVar(&o.sshConfig, "ssh-config", "", "`FILE` in place of ~/.ssh/config")
	_ = cmd.MarkFlagFilename("ssh-config")
	complete(cmd, "via", string(leftovers.ViaHTTP), string(leftovers.ViaSSH))
	return cmd
}

// check finds what was said that makes no sense.
func (o *leftoversOptions) check() error {
	switch via := leftovers.Via(o.via); {
	case o.via != "" && via != leftovers.ViaHTTP && via != leftovers.ViaSSH:
		return usagef("there is no way %q to an agent: write --via http, or --via ssh", o.via)
	case o.port < 0 || o.port > 65535:
		return usagef("%d is no port", o.port)
	case o.timeout <= 0:
		return usagef("a request needs some time: --timeout 10s")
	case o.wait < 0:
		return usagef("nobody can wait for %s: --wait 0 doesn't wait at all", o.wait)
	case !o.fix && (o.yes || o.waitSet):
		return usagef("--yes and --wait are for --fix: without that, nothing is removed")
	case o.fix && o.json && !o.yes:
		return usagef("--json has no place for a question: look at what is found without --fix, then say --fix --yes --json")
	case slices.Contains(o.services, ""):
		return usagef("a service needs a name")
	}
	return nil
}

func runLeftovers(ctx context.Context, o *leftoversOptions, u *ui.UI) error {
	if err := o.check(); err != nil {
		return err
	}
	source, err := o.source()
	if err != nil {
		return &troubleError{err}
	}
	r := &leftoversReport{options: o, source: source, ui: u}
	if err := r.look(ctx); err != nil {
		return &troubleError{err}
	}
	if !o.fix || len(r.stale()) == 0 {
		err := r.show()
		if !o.fix && !o.json && len(r.stale()) > 0 {
			u.Notef("nothing was changed: kiln consul leftovers --fix removes what is stale")
		}
		return r.end(err)
	}
	if err := r.confirm(ctx); err != nil {
		return err
	}
	return r.end(r.fix(ctx))
}

func (o *leftoversOptions) source() (*leftovers.Source, error) {
	consul, err := cluster.NewConsul("")
	if err != nil {
		return nil, err
	}
	nomad, err := cluster.NewNomad("")
	if err != nil {
		return nil, err
	}
	return &leftovers.Source{Consul: consul, Nomad: nomad, Services: o.services, Timeout: o.timeout}, nil
}
