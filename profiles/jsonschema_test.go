package profiles

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/alisw/kiln/internal/problem"
	"github.com/alisw/kiln/internal/strictyaml"
)

// compiled is the schema of one kind, as a validator of others reads it.
func compiled(t *testing.T, kind string) *jsonschema.Schema {
	t.Helper()
	text, err := JSONSchema(kind)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(kind, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(kind)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON is a YAML text as an editor's validator sees it.
func asJSON(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// decodes tells whether Kiln's own decoder takes a text of that kind.
func decodes(t *testing.T, kind, text string) bool {
	t.Helper()
	var problems problem.List
	out := reflect.New(schemas[kind].typ)
	strictyaml.Decode([]byte(text), kind, 0, out.Interface(), &problems)
	return problems.Err() == nil
}

// corpus is what the schemas and the decoder have to agree on. A text that
// begins with ! is refused; with !! only by the schema and a later check, since
// the decoder itself knows neither which words a key can have nor which keys
// must be there.
var corpus = map[string][]string{
	"site": {
		"domain: example.org", "domain: 12", "region: 1.5", "time_servers: [a, b]", "advertise: 192.0.2.1", "advertise: {network: 192.0.2.0/24}",
		"vars: {a: 1, b: [x, {c: true}], d: {}}", "secrets: {a: env://A, b: 5}", "apt: {sources: {x: {uris: [a], fingerprint: 1}}}",
		"admins: [{name: a, sudo: true, uid: 5}]", "tls: {verify_server_hostname: true}", "servers: {nomad: 1.9, join: [a]}", "{}",
		"vault: {token_roles: {nomad: {allowed_policies: [default, nomad], orphan: true, token_period: 1d}}, token_tune: {max_lease_ttl: 3155760000}}",
		"vault: {policies: {a: b.hcl}, jwt: {jwt-nomad: {jwks_url: x, roles: {r: {token_type: service, claim_mappings: {a: b}, user_claim_json_pointer: false}}}}}",
		"!vault: {tokens: {}}", "!vault: [a]", "!vault: {token_roles: [nomad]}", "!vault: {token_roles: {nomad: {orphan: 1}}}", "!vault: {token_tune: 1d}",
		"!vault: {policies: {a: [b]}}", "!vault: {jwt: {m: {jwks_url: x, roles: {r: {token_policies: a}}}}}", "!!vault: {jwt: {m: {}}}",
		"!!vault: {jwt: {m: {jwks_url: x, roles: {r: {token_type: periodic}}}}}",
		"!domian: example.org", "!domain: [a]", "!domain: {a: b}", "!domain: true", "!domain:", "!time_servers: a", "!time_servers: {a: b}",
		"!time_servers: [[a]]", "!advertise: {Address: x}", "!advertise: {address: x}", "!advertise: [x]", "!vars: {a: null}", "!vars: {a: [null]}", "!vars: [a]",
		"!secrets: {a: true}", "!secrets: [a]", "!apt: {sources: {x: {url: a}}}", "!admins: [{name: a, sudo: 1}]", "!admins: [{name: a, uid: x}]",
		"!admins: {name: a}", "!tls: {verify_server_hostname: 'yes'}", "!tls: yes please", "!servers: [a]", "!pos: {file: x}", "!Pos: {}", "!- a",
		"!!admins: [{sudo: true}]",
	},
	"hosts": {
		"[]", "- {name: a, profile: p}", "- {name: 1, profile: 2}", "- {name: a, profile: p, platform: ec2}", "- {name: a, profile: p, reserve: 0.5}",
		"- {name: a, profile: p, reserve: {cpu: 0, disk: 1}}", "- {name: a, profile: p, facts: {cores: 4, memory: 64GiB}}",
		"- {name: a, profile: p, interfaces: {e: {mtu: 9000, dhcp4: true, accept_ra: false, bond: {members: [x]}, vlan: {id: 5, link: y}}}}",
		"- {name: a, profile: p, disks: [{mount: /b, disk: {serial: 5}, filesystem: xfs}]}", "- {name: a, profile: p, install: {min_size: 5}}",
		"!name: a", "!- a", "!- {name: a, profile: p, reserve: half}", "!- {name: a, profile: p, reserve: true}", "!- {name: a, profile: p, reserve: {gpu: 1}}",
		"!- {name: a, profile: p, facts: {cores: many}}", "!- {name: a, profile: p, facts: {cores: 1.5}}", "!- {name: a, profile: p, interfaces: [e]}",
		"!- {name: a, profile: p, interfaces: {e: {mtu: x}}}", "!- {name: a, profile: p, interfaces: {e: {dhcp4: 1}}}", "!- {name: a, profile: p, interfaces: {e: {adresses: []}}}",
		"!- {name: a, profile: p, disks: {mount: /b}}", "!- {name: a, profile: p, disk: []}", "!- {name: a, profile: p, vars: }",
		"!!- {profile: p}", "!!- {name: a}", "!!- {name: a, profile: p, platform: mars}", "!!- {name: a, profile: p, reserve: 2}",
		"!!- {name: a, profile: p, reserve: {cpu: -1}}", "!!- {name: a, profile: p, disks: [{mount: /b}]}",
		"!!- {name: a, profile: p, disks: [{mount: /b, disk: {}, filesystem: ntfs}]}",
	},
	"profile": {
		"{}", "extends: [a, b]", "abstract: true", `delimiters: ["<<", ">>"]`, "image: {packages: [a, {name: b, creates: {users: [u]}}]}",
		"image: {units: {a.service: enabled, b.service: masked}}", "image: {files: {/a: {mode: '0640', content: x}, /b: {link: /c}}}",
		"image: {files: {/a: {mode: 0640}}}", "image: {users: {u: {uid: 5, system: true}}, groups: {g: {gid: 6}}}", "image: {remove: {packages: [a], apt_sources: [b]}}",
		"host: {reserve: 0.5}", "host: {reserve: {disk: 0.25}}", "host: {remove: {files: [/a]}}", "vars: {a: {b: [1, 2.5]}}",
		"!extends: a", "!abstract: maybe", "!images: {}", "!image: {packages: {a: b}}", "!image: {packages: [[a]]}", "!image: {packages: [{nam: a}]}", "!image: {packages: [true]}",
		"!image: {units: [a]}", "!image: {units: {a.service: true}}", "!image: {files: [/a]}", "!image: {files: {/a: x}}", "!image: {reserve: 0.5}", "!host: {packages: [a]}",
		"!host: {remove: {packages: [a]}}", "!host: {users: {u: {uid: x}}}", "!host: {reserve: [0.5]}", "!vars: x", "!vars: {a: }",
		"!!delimiters: ['<<']", "!!image: {units: {a.service: started}}", "!!image: {packages: [{creates: {}}]}",
	},
	"image": {
		"{distribution: debian, version: 12, codename: bookworm}", "{distribution: debian, version: '12', codename: bookworm, architecture: arm64}",
		"!{distribution: debian, version: '12', codename: bookworm, arch: arm64}", "!{distribution: [debian], version: '12', codename: bookworm}",
		"!!{distribution: debian}", "!!{distribution: debian, version: '12', codename: bookworm, architecture: sparc}",
	},
}

// TestJSONSchema compares what the schemas accept with what the decoder does.
func TestJSONSchema(t *testing.T) {
	for _, kind := range JSONSchemaKinds() {
		s := compiled(t, kind)
		if len(corpus[kind]) == 0 {
			t.Errorf("%s: there is nothing to compare", kind)
		}
		for _, c := range corpus[kind] {
			text := strings.TrimLeft(c, "!")
			refused, later := c != text, strings.HasPrefix(c, "!!")
			if got := s.Validate(asJSON(t, text)); (got != nil) != refused {
				t.Errorf("%s: %s: the schema says %v", kind, text, got)
			}
			if got := decodes(t, kind, text); got == (refused && !later) {
				t.Errorf("%s: %s: the decoder accepts it: %v", kind, text, got)
			}
		}
	}
	if _, err := JSONSchema("sites"); err == nil || !strings.Contains(err.Error(), `did you mean "site"?`) {
		t.Errorf(`JSONSchema("sites"): %v`, err)
	}
}

// TestJSONSchemaOfShipped holds the schemas to the files that come with Kiln.
func TestJSONSchemaOfShipped(t *testing.T) {
	for pattern, kind := range map[string]string{
		"*/profile.yaml":                   "profile",
		"../images/*.yaml":                 "image",
		example("site.yaml"):               "site",
		example("hosts.yaml"):              "hosts",
		example("profiles/*/profile.yaml"): "profile",
	} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		s := compiled(t, kind)
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Validate(asJSON(t, string(text))); err != nil {
				t.Errorf("%s: %v", f, err)
			}
			if !decodes(t, kind, string(text)) {
				t.Errorf("%s isn't decoded", f)
			}
		}
	}
}

// example is a file of the site that kiln init makes.
func example(name string) string { return "../cmd/kiln/example/" + name }

// TestJSONSchemaDescribes holds each key to a description, which editors show.
func TestJSONSchemaDescribes(t *testing.T) {
	for _, kind := range JSONSchemaKinds() {
		text, err := JSONSchema(kind)
		if err != nil {
			t.Fatal(err)
		}
		var root map[string]any
		if err := json.Unmarshal(text, &root); err != nil {
			t.Fatal(err)
		}
		if root["$schema"] != "https://json-schema.org/draft/2020-12/schema" {
			t.Errorf("%s: $schema is %v", kind, root["$schema"])
		}
		describes(t, kind, root)
	}
}

func describes(t *testing.T, path string, v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			describes(t, path, x)
		}
	case map[string]any:
		properties, _ := v["properties"].(map[string]any)
		for key, p := range properties {
			if p, ok := p.(map[string]any); !ok || p["description"] == nil {
				t.Errorf("%s.%s has no description", path, key)
			}
		}
		if properties != nil && v["additionalProperties"] != false {
			t.Errorf("%s takes unknown keys", path)
		}
		for key, x := range v {
			describes(t, path+"."+key, x)
		}
	}
}
