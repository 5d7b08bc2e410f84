package render

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/vincent-petithory/dataurl"

	"github.com/alisw/kiln/internal/testplan"
	"github.com/alisw/kiln/plan"
)

// ignitionFiles is what the files of an Ignition config would hold.
func ignitionFiles(t testing.TB, ign []byte) map[string]string {
	t.Helper()
	var c struct {
		Storage struct {
			Files []struct {
				Path     string
				Contents struct{ Source, Compression string }
			}
		}
	}
	if err := json.Unmarshal(ign, &c); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range c.Storage.Files {
		u, err := dataurl.DecodeString(f.Contents.Source)
		if err != nil {
			t.Fatalf("%s: %v", f.Path, err)
		}
		data := u.Data
		if f.Contents.Compression == "gzip" {
			r, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if data, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
		files[f.Path] = string(data)
	}
	return files
}

func TestIgnitionGoldens(t *testing.T) {
	for name, o := range map[string]Options{
		"golden-flatcar": {},
		"golden-fcos":    {Variant: FCOS},
		"stock-flatcar":  {Target: Stock},
	} {
		t.Run(name, func(t *testing.T) {
			ign, err := Ignition(ignitionPlan(), o)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Ignition(ignitionPlan(), o)
			if err != nil || !bytes.Equal(ign, again) {
				t.Error("the same plan gave other bytes")
			}
			if !bytes.HasPrefix(ign, []byte(`{"ignition":{"version":"3.3.0"}`)) {
				t.Errorf("not Ignition 3.3.0: %.60s", ign)
			}
			var readable bytes.Buffer
			if err := json.Indent(&readable, ign, "", "  "); err != nil {
				t.Fatal(err)
			}
			golden(t, "ignition/"+name+".ign", readable.Bytes())
		})
	}
}

func TestIgnitionLimit(t *testing.T) {
	p := ignitionPlan()
	p.Host.Platform = plan.PlatformEC2
	if _, err := Ignition(p, Options{}); err != nil {
		t.Fatalf("a small config: %v", err)
	}
	var noise strings.Builder
	for i := range 20000 {
		noise.WriteByte(byte(' ' + (i*i*31+i*7)%90))
	}
	p.Host.Files = append(p.Host.Files, testplan.File("/etc/zz", "root", "root", 0o644, noise.String()))
	_, err := Ignition(p, Options{})
	if err == nil {
		ign, _ := Ignition(ignitionPlan(), Options{})
		t.Fatalf("no error for a config that is too large (a small one has %d bytes)", len(ign))
	}
	for _, want := range []string{"build01.example.org", "ec2", "16384", "ignition.config.replace"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in %v", want, err)
		}
	}
}

// TestIgnitionStrict shows that what Butane only warns of is an error.
func TestIgnitionStrict(t *testing.T) {
	for name, bu := range map[string]string{
		"a warning":      "variant: flatcar\nversion: 1.0.0\nstorage:\n  files:\n    - path: /a\n      mode: 755\n",
		"an unknown key": "variant: flatcar\nversion: 1.0.0\nstoreage: {}\n",
		"an error":       "variant: flatcar\nversion: 1.0.0\nstorage:\n  files:\n    - path: a\n",
	} {
		if _, err := translateButane([]byte(bu), Flatcar); err == nil || !strings.Contains(err.Error(), "butane refuses") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// oneSecret is what every reference resolves to.
type oneSecret string

func (s oneSecret) Resolve(context.Context, plan.Ref) (plan.Secret, error) {
	return plan.NewSecret(string(s)), nil
}

// TestIgnitionSecret shows what becomes of a secret that isn't resolved, and
// of one that is.
func TestIgnitionSecret(t *testing.T) {
	const path = "/etc/nomad.d/nomad.hcl"
	ign, err := Ignition(ignitionPlan(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := ignitionFiles(t, ign)[path]; !strings.Contains(got, `"kiln-secret:teigi://alibuild/consul_token"`) {
		t.Errorf("the reference isn't there: %s", got)
	}
	resolved, err := ignitionPlan().WithSecrets(t.Context(), oneSecret(`"}${HOME}{{key}}%{\`+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if ign, err = Ignition(resolved, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := ignitionFiles(t, ign)[path]; !strings.Contains(got, `"\"}\u0024{HOME}{{key}}\u0025{\\\n"`) {
		t.Errorf("the secret isn't there: %s", got)
	}
}
