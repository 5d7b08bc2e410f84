package render

import (
	"github.com/zclconf/go-cty/cty"

	"github.com/alisw/kiln/plan"
)

// openstackSource builds an image from a server of an OpenStack cloud, which
// makes a key for Packer by itself.
func openstackSource() packerSource {
	return packerSource{
		kind:      "openstack",
		plugin:    "github.com/hashicorp/openstack",
		version:   ">= 1.1.2, < 2.0.0",
		limit:     plan.PlatformOpenStack.UserDataLimit(),
		variables: openstackVariables,
		source:    openstackBlock,
	}
}

func openstackVariables(image *plan.Image) []packerVariable {
	none := cty.ListValEmpty(cty.String)
	return []packerVariable{
		{name: "cloud", description: "openstack: the entry of clouds.yaml to use; empty takes OS_CLOUD or the other OS_ variables.", value: cty.StringVal("")},
		{name: "flavor", description: "openstack: name or ID of the server's flavor.", value: cty.StringVal("")},
		{
			name: "source_image_name", value: cty.StringVal(""),
			description: "openstack: name of the stock cloud image to start from: " + image.Release.ID + " " + image.Release.Codename + ". Either this, or source_image.",
		},
		{name: "source_image", description: "openstack: ID of the stock cloud image to start from.", value: cty.StringVal("")},
		{name: "networks", description: "openstack: IDs of the networks to attach the server to; none takes the project's only one.", value: none},
		{name: "security_groups", description: "openstack: names of security groups; one must let SSH in.", value: none},
		{name: "floating_ip_network", description: "openstack: the network to take a floating address from; empty takes none.", value: cty.StringVal("")},
		{
			name: "ssh_ip_version", description: "openstack: 4 or 6, the kind of address to log in to; empty takes the first.", value: cty.StringVal(""),
			condition: `contains(["", "4", "6"], var.ssh_ip_version)`, message: "The ssh_ip_version must be 4, 6 or empty.",
		},
		{name: "config_drive", description: "openstack: bring user-data on a drive, too, for clouds without a metadata service.", value: cty.True},
		{
			name: "image_visibility", description: "openstack: private, shared, community or public.", value: cty.StringVal("private"),
			condition: `contains(["private", "shared", "community", "public"], var.image_visibility)`,
			message:   "The image_visibility must be private, shared, community or public.",
		},
	}
}

func openstackBlock(b *packerBody, image *plan.Image) {
	b.expr("cloud", "var.cloud")
	b.expr("flavor", "var.flavor")
	b.expr("source_image", "var.source_image")
	b.expr("source_image_name", "var.source_image_name")
	b.expr("networks", "var.networks")
	b.expr("security_groups", "var.security_groups")
	b.expr("floating_ip_network", "var.floating_ip_network")
	b.expr("config_drive", "var.config_drive")
	b.blank()
	b.expr("image_name", "var.image_name")
	b.expr("image_visibility", "var.image_visibility")
	b.set("metadata", cty.ObjectVal(map[string]cty.Value{
		"kiln_profile": cty.StringVal(image.Profile),
		"os_distro":    cty.StringVal(image.Release.ID),
		"os_version":   cty.StringVal(image.Release.Version),
	}))
	b.blank()
	b.expr("user_data", protectedUserData)
	b.blank()
	b.expr("ssh_username", "var.ssh_username")
	b.expr("ssh_ip_version", "var.ssh_ip_version")
	b.expr("ssh_timeout", "var.ssh_timeout")
}
