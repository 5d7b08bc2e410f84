package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/alisw/kiln/internal/run"
	"github.com/alisw/kiln/plan"
)

// teigi asks CERN's Teigi for teigi://HOSTGROUP/KEY through its client, tbag,
// which answers JSON with the value in "secret". A hostgroup may have slashes
// of its own: the key is what stands behind the last.
func (r *Resolver) teigi(ctx context.Context, ref plan.Ref) (string, error) {
	i := strings.LastIndexByte(ref.Rest(), '/')
	hostgroup, key := ref.Rest()[:max(i, 0)], ref.Rest()[i+1:]
	if hostgroup == "" || key == "" || strings.HasPrefix(hostgroup, "/") || strings.HasSuffix(hostgroup, "/") {
		return "", errors.New("it has to name a hostgroup and a key: write teigi://HOSTGROUP/KEY, such as teigi://alibuild/consul_encrypt")
	}
	if err := noOption("hostgroup", hostgroup); err != nil {
		return "", err
	}
	if err := noOption("key", key); err != nil {
		return "", err
	}
	out, err := r.output(ctx, run.Command{
		Name: "tbag", Args: []string{"show", "--hg", hostgroup, key}, Without: withheld,
		Install: "it is the client of CERN's Teigi: run kiln where it is installed, such as lxplus, or keep the secret elsewhere (pass://, age://)",
	})
	if err != nil {
		return "", fmt.Errorf("%w\nis your Kerberos ticket valid (klist), and does the hostgroup %s have that key?", err, hostgroup)
	}
	// What the JSON decoder says may quote the answer.
	var answer struct {
		Secret *string `json:"secret"`
	}
	if json.Unmarshal(out, &answer) != nil {
		return "", errors.New(`tbag's answer isn't JSON with a text in "secret": run the same tbag show by hand and look at what it says`)
	}
	if answer.Secret == nil {
		return "", errors.New(`tbag's answer has no "secret": run the same tbag show by hand and look at what it says`)
	}
	return *answer.Secret, nil
}
