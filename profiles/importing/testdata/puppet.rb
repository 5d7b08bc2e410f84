# Renders the ERB templates of this folder as Puppet does, with the values of
# data.yaml, to NAME.puppet: what Kiln's translation is compared with. Run it
# with any Ruby, in this folder, when a template or a value changes.
require "erb"
require "json"
require "yaml"

DATA_FILE = YAML.load_file("data.yaml")

class Scope
  attr_reader :names

  def initialize(names) = @names = names
  def [](name) = @names.fetch(name.delete_prefix("::").gsub("::", "_"))
  alias lookupvar []
end

class Render
  def initialize(data)
    facts = data["facts"]
    names = data["vars"].merge(
      "facts" => facts, "fqdn" => facts["networking"]["fqdn"], "hostname" => facts["networking"]["hostname"],
      "domain" => facts["networking"]["domain"], "ipaddress" => facts["networking"]["ip"],
      "processorcount" => facts["processors"]["count"]
    )
    names.each { |name, value| instance_variable_set("@#{name}", value) }
    @scope = Scope.new(names)
  end

  def scope = @scope

  def render(source) = ERB.new(source, trim_mode: "-").result(binding)
end

%w[consul.hcl nomad.hcl awkward.hcl script.sh kiln.service config.yaml dnsmasq.conf].each do |name|
  text = Render.new(DATA_FILE).render(File.read("#{name}.erb"))
  text = text.gsub(/%TEIGI__(.+?)__%/) { DATA_FILE["secrets"].fetch($1) }
  File.write("#{name}.puppet", text)
end
