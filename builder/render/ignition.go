package render

import (
	"fmt"
	"strings"

	"github.com/coreos/butane/config/common"
	fcos "github.com/coreos/butane/config/fcos/v1_4"
	flatcar "github.com/coreos/butane/config/flatcar/v1_0"

	"github.com/alisw/kiln/plan"
)

// Ignition is the plan as an Ignition 3.3.0 config: what Butane makes of
// Butane's result, where any warning is an error.
func Ignition(p *plan.Plan, o Options) ([]byte, error) {
	bu, err := Butane(p, o)
	if err != nil {
		return nil, err
	}
	variant, err := ParseVariant(string(o.Variant))
	if err != nil {
		return nil, err
	}
	ign, err := translateButane(bu, variant)
	if err != nil {
		return nil, fmt.Errorf("the host %s: %w", p.Host.Name, err)
	}
	if limit := p.Host.Platform.UserDataLimit(); limit > 0 && len(ign) > limit {
		return nil, fmt.Errorf("the Ignition config of %s has %d bytes, and %s takes %d as user-data: serve it over HTTPS, "+
			"and give the host one that has its address in ignition.config.replace", p.Host.Name, len(ign), p.Host.Platform, limit)
	}
	return ign, nil
}

// translateButane is butane --strict. It calls the translators that it needs by
// name: butane/config, which has them all and reads the variant and version
// that Butane wrote, would take 5 ms more in each start of kiln.
func translateButane(bu []byte, variant Variant) ([]byte, error) {
	translate := flatcar.ToIgn3_3Bytes
	if variant == FCOS {
		translate = fcos.ToIgn3_3Bytes
	}
	ign, report, err := translate(bu, common.TranslateBytesOptions{})
	var found []string
	for _, e := range report.Entries {
		found = append(found, e.String())
	}
	switch {
	case len(found) > 0:
		return nil, fmt.Errorf("butane refuses the config (the paths are those of kiln render --format butane): %s", strings.Join(found, "; "))
	case err != nil:
		return nil, fmt.Errorf("butane refuses the config: %w", err)
	}
	return append(ign, '\n'), nil
}
