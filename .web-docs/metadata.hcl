# For HashiCorp's list of integrations.
integration {
  name        = "Kiln"
  description = "Golden images of Nomad and Consul hosts: Kiln's profiles for every builder that Packer has."
  identifier  = "packer/alisw/kiln"
  flags       = []
  docs {
    process_docs    = true
    readme_location = "./README.md"
    external_url    = "https://github.com/alisw/kiln"
  }
  license {
    type = "MPL-2.0"
    url  = "https://github.com/alisw/kiln/blob/main/LICENSE"
  }
  component {
    type = "builder"
    name = "Kiln"
    slug = "kiln"
  }
  component {
    type = "provisioner"
    name = "Kiln"
    slug = "kiln"
  }
  component {
    type = "data-source"
    name = "Kiln host"
    slug = "host"
  }
  component {
    type = "data-source"
    name = "Kiln profile"
    slug = "profile"
  }
  component {
    type = "post-processor"
    name = "Kiln check"
    slug = "check"
  }
}
