package profiles

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/alisw/kiln/images"
	"github.com/alisw/kiln/internal/strictyaml"
	"github.com/alisw/kiln/plan"
)

// schemas are the kinds of files that an operator writes.
var schemas = map[string]struct {
	title string
	typ   reflect.Type
}{
	"site":    {"Kiln's site.yaml: what is true of the whole cluster", reflect.TypeFor[SiteFile]()},
	"hosts":   {"Kiln's inventory, hosts.yaml or hosts/*.yaml: a list of hosts", reflect.TypeFor[[]HostFile]()},
	"profile": {"Kiln's profiles/NAME/profile.yaml: what hosts of a kind are", reflect.TypeFor[ProfileFile]()},
	"image":   {"Kiln's images/NAME.yaml: what an image is made of", reflect.TypeFor[images.DefinitionFile]()},
}

// JSONSchemaKinds lists the kinds of files that JSONSchema knows.
func JSONSchemaKinds() []string {
	kinds := make([]string, 0, len(schemas))
	for k := range schemas {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	return kinds
}

// JSONSchema is the JSON Schema (draft 2020-12) of a kind of file: site, hosts,
// profile or image. It is made from the structures that files are decoded
// into, so that an editor refuses what Kiln refuses. What a schema can't say
// (two hosts of one name, a gateway outside its network) only kiln check finds.
func JSONSchema(kind string) ([]byte, error) {
	s, ok := schemas[kind]
	if !ok {
		return nil, fmt.Errorf("there is no schema of %q: %s", kind, strictyaml.DidYouMean(kind, JSONSchemaKinds()))
	}
	root := reflectSchema(s.typ)
	relax(root)
	root.Version, root.Title = jsonschema.Version, s.title
	root.Definitions = jsonschema.Definitions{"variable": variableSchema()}
	text, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the schema of %s: %w", kind, err)
	}
	return append(text, '\n'), nil
}

// reflectSchema is the schema of one type, whole, without references.
func reflectSchema(t reflect.Type) *jsonschema.Schema {
	r := jsonschema.Reflector{
		Anonymous: true, DoNotReference: true, FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true, Mapper: mapSchema,
	}
	s := r.ReflectFromType(t)
	s.Version = ""
	return s
}

// mapSchema is the schema of the types with a way of their own of being
// written; nil for the others.
func mapSchema(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[AdvertiseFile]():
		keys := reflectFields(t)
		keys.Properties.Delete("Address")
		return either(&jsonschema.Schema{Type: "string"}, keys)
	case reflect.TypeFor[ReserveFile]():
		keys := reflectFields(t)
		for p := keys.Properties.Oldest(); p != nil; p = p.Next() {
			p.Value.Minimum, p.Value.Maximum = "0", "1"
		}
		return either(&jsonschema.Schema{Type: "number", Minimum: "0", Maximum: "1"}, keys)
	case reflect.TypeFor[PackageFile]():
		return either(&jsonschema.Schema{Type: "string"}, reflectFields(t))
	}
	switch {
	case t.Kind() == reflect.Interface:
		return &jsonschema.Schema{Ref: "#/$defs/variable"}
	case t.PkgPath() != reflect.TypeFor[strictyaml.Context]().PkgPath():
		return nil
	case strings.HasPrefix(t.Name(), "Value["):
		return reflectSchema(t.Field(0).Type)
	case strings.HasPrefix(t.Name(), "Map["):
		value, _ := t.Elem().FieldByName("Value")
		return &jsonschema.Schema{Type: "object", AdditionalProperties: reflectSchema(value.Type)}
	}
	return nil
}

// reflectFields is the schema of a structure by its fields, whatever way of
// being written it has besides.
func reflectFields(t reflect.Type) *jsonschema.Schema {
	fields := make([]reflect.StructField, t.NumField())
	for i := range fields {
		fields[i] = t.Field(i)
	}
	return reflectSchema(reflect.StructOf(fields))
}

func either(of ...*jsonschema.Schema) *jsonschema.Schema { return &jsonschema.Schema{AnyOf: of} }

// variableSchema is what a variable can be: anything but nothing.
func variableSchema() *jsonschema.Schema {
	again := func() *jsonschema.Schema { return &jsonschema.Schema{Ref: "#/$defs/variable"} }
	return either(
		&jsonschema.Schema{Type: "string"}, &jsonschema.Schema{Type: "number"}, &jsonschema.Schema{Type: "boolean"},
		&jsonschema.Schema{Type: "array", Items: again()}, &jsonschema.Schema{Type: "object", AdditionalProperties: again()},
	)
}

// relax lets numbers stand where a text is expected, as the decoder does: a
// version 1.20, a user called 007. Not where only certain words can stand.
func relax(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	if s.Type == "string" && len(s.Enum) == 0 {
		s.Type = ""
		s.Extras = map[string]any{"type": []string{"string", "number"}}
	}
	relax(s.Items)
	if s.AdditionalProperties != jsonschema.FalseSchema {
		relax(s.AdditionalProperties)
	}
	for _, sub := range s.AnyOf {
		relax(sub)
	}
	if s.Properties != nil {
		for p := s.Properties.Oldest(); p != nil; p = p.Next() {
			if states := p.Value.AdditionalProperties; p.Key == "units" && states != nil {
				states.Enum = []any{string(plan.UnitEnabled), string(plan.UnitDisabled), string(plan.UnitMasked)}
			}
			relax(p.Value)
		}
	}
}
