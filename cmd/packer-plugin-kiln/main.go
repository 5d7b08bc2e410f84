// Command packer-plugin-kiln serves Kiln's baking to Packer, as the plugin
// github.com/alisw/kiln.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/packer-plugin-sdk/plugin"
	"github.com/hashicorp/packer-plugin-sdk/version"

	"github.com/alisw/kiln/builder/packer"
)

// pluginVersion is set by the linker for a release: -X main.pluginVersion=1.2.3.
// Packer installs no plugin whose version is none, or a prerelease's other than
// -dev.
var pluginVersion = "0.1.0"

func main() {
	keepInherited()
	if len(os.Args) > 1 && os.Args[1] == bakeVerb {
		os.Exit(bakeInside(os.Args[2:]))
	}
	set := plugin.NewSet()
	set.SetVersion(version.NewRawVersion(pluginVersion))
	packer.Register(set, sites{})
	if err := set.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "packer-plugin-kiln: %s\nPacker starts this program: packer plugins install --path packer-plugin-kiln github.com/alisw/kiln\n", err)
		os.Exit(1)
	}
}
