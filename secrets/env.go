package secrets

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/alisw/kiln/plan"
)

// env reads env://NAME from Kiln's own environment.
func (*Resolver) env(_ context.Context, ref plan.Ref) (string, error) {
	name := ref.Rest()
	if strings.ContainsAny(name, "=/#") {
		return "", fmt.Errorf("no environment variable can be called %s: write env://NAME", name)
	}
	value, ok := os.LookupEnv(name)
	switch {
	case !ok:
		return "", fmt.Errorf("the environment variable %s isn't set: export it before running kiln", name)
	case value == "":
		return "", fmt.Errorf("the environment variable %s is set but empty: export its value before running kiln", name)
	}
	return value, nil
}
