package boot

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/alisw/kiln/builder/render"
)

var active = Unit{Load: "loaded", Active: "active", Sub: "running", Result: "success", Type: "exec", Ran: true}

// unit is a unit that is active, but for what change changes.
func unit(change func(*Unit)) Unit {
	u := active
	change(&u)
	return u
}

func TestUnitProblem(t *testing.T) {
	for _, tt := range []struct {
		name string
		unit Unit
		want string
	}{
		{"active", active, ""},
		{"no such unit", Unit{Load: "not-found", Active: "inactive", Unmet: true}, "there is no such unit"},
		{"masked", Unit{Load: "masked", Active: "inactive"}, "it can't be started: masked"},
		{"failed", unit(func(u *Unit) { u.Active, u.Result = "failed", "exit-code" }), "it failed: exit-code"},
		{"a condition", Unit{Load: "loaded", Active: "inactive", Result: "success", Unmet: true}, "it wasn't started: a condition isn't met"},
		{"never started", Unit{Load: "loaded", Active: "inactive", Result: "success"}, "it was never started"},
		{"oneshot", unit(func(u *Unit) { u.Active, u.Type = "inactive", "oneshot" }), ""},
		{"oneshot that never ran", unit(func(u *Unit) { u.Active, u.Type, u.Ran = "inactive", "oneshot", false }), "it was never started"},
		{"a daemon that ended", unit(func(u *Unit) { u.Active = "inactive" }), "it has ended: success"},
		{"restarts", unit(func(u *Unit) { u.Restarts = 2 }), "it runs now, but had to be started 3 times"},
		{"flapping", unit(func(u *Unit) { u.Active, u.Sub = "activating", "auto-restart" }), "it doesn't settle: it's activating (auto-restart)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.unit.problem(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReport(t *testing.T) {
	good := Report{State: "running", CloudInit: CloudInit{Done: true}, Hostname: "build01", Units: map[string]Unit{"nomad.service": active}}
	if !good.Ready() || good.Err() != nil {
		t.Errorf("a host that is as it should be: %v", good.Err())
	}
	bad := Report{
		State: "degraded", Failed: []string{"nomad.service", "x\x1b[2J.service"}, Hostname: "build01",
		Units:     map[string]Unit{"nomad.service": unit(func(u *Unit) { u.Active, u.Result = "failed", "exit-code" })},
		Journals:  map[string][]string{"nomad.service": {"starting", "no data_dir\x07"}, "consul.service": nil},
		CloudInit: CloudInit{Errors: []string{"Failed loading yaml blob"}},
	}
	if bad.Ready() {
		t.Error("it's ready")
	}
	want := `build01 came up, but not as it should:
    cloud-init didn't get to its end
    cloud-init: Failed loading yaml blob
    x·[2J.service: failed
    nomad.service: it failed: exit-code
  the last that the journal has of nomad.service:
    starting
    no data_dir·`
	if diff := cmp.Diff(want, bad.Err().Error()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := (&Report{State: "starting", CloudInit: CloudInit{Done: true}}).Problems(); len(got) != 1 || got[0] != "the system is starting" {
		t.Errorf("got %q", got)
	}
}

func TestReportVendorData(t *testing.T) {
	data := ReportVendorData([]string{"nomad.service", `odd"\name@.service`})
	script, ok := strings.CutPrefix(string(data), "#cloud-boothook\n")
	if !ok || !strings.HasPrefix(script, "#!/bin/sh\n") {
		t.Fatalf("cloud-init wouldn't run it:\n%s", data)
	}
	if !strings.Contains(script, `UNITS = ["nomad.service","odd\"\\name@.service"]`) {
		t.Error("the units aren't in it")
	}
	check := exec.Command("sh", "-n")
	check.Stdin = strings.NewReader(script)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !bytes.Contains(ReportVendorData(nil), []byte("UNITS = []\n")) {
		t.Error("without units there is no empty list")
	}
}

func TestReporting(t *testing.T) {
	names := func(files []render.NamedFile) map[string]string {
		m := map[string]string{}
		for _, f := range files {
			m[f.Name] = string(f.Data)
		}
		return m
	}
	vendor := string(ReportVendorData([]string{"a.service"}))
	bare, err := reporting(nil, []string{"a.service"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"user-data": "#cloud-config\n{}\n", "meta-data": "instance-id: kiln-boot\n", "vendor-data": vendor}, names(bare)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	seed := []render.NamedFile{{Name: "user-data", Data: []byte("#cloud-config\nx: 1\n")}, {Name: "meta-data", Data: []byte("{}")}, {Name: "vendor-data", Data: []byte("#cloud-config\ny: 2\n")}}
	both, err := reporting(seed, []string{"a.service"})
	if err != nil {
		t.Fatal(err)
	}
	if string(seed[2].Data) != "#cloud-config\ny: 2\n" {
		t.Error("the caller's seed was changed")
	}
	m, err := mail.ReadMessage(strings.NewReader(names(both)["vendor-data"]))
	if err != nil {
		t.Fatal(err)
	}
	_, parameters, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	r := multipart.NewReader(m.Body, parameters["boundary"])
	for _, want := range []string{"#cloud-config\ny: 2\n", vendor} {
		part, err := r.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(part); err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"state": "running", "units": {"a": {"active": "failed", "load": "loaded"}}, "failed": ["b"], "journals": {"a": ["x"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Report
		if json.Unmarshal(b, &r) != nil {
			return
		}
		err := r.Err()
		if (err == nil) != r.Ready() {
			t.Errorf("ready: %v, error: %v", r.Ready(), err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\x07\r\x00") {
			t.Errorf("a terminal would obey %q", err)
		}
	})
}

// TestFilesAreLaid runs the script that lays files into a guest, on this
// machine.
func TestFilesAreLaid(t *testing.T) {
	root := t.TempDir()
	key := bytes.Repeat([]byte{0, 1, 0xff, '\n'}, 100)
	files := []GuestFile{
		{Path: root + "/etc/grid-security/hostkey.pem", Mode: 0o400, Data: key},
		{Path: root + "/etc/empty", Mode: 0o644},
	}
	seed, err := reporting([]render.NamedFile{{Name: "vendor-data", Data: []byte("#cloud-config\ny: 2\n")}}, nil, files...)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(seed, func(f render.NamedFile) bool { return f.Name == "vendor-data" })
	m, err := mail.ReadMessage(bytes.NewReader(seed[i].Data))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	var texts []string
	for {
		part, err := parts.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(text))
	}
	if len(texts) != 3 || !strings.HasPrefix(texts[1], "#cloud-boothook\n#!/bin/sh\n") || texts[2] != string(ReportVendorData(nil)) {
		t.Fatalf("the vendor-data is %q", texts)
	}
	script := exec.Command("sh", "-s")
	script.Stdin = strings.NewReader(texts[1])
	if out, err := script.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, f := range files {
		got, err := os.ReadFile(f.Path)
		info, statErr := os.Stat(f.Path)
		if err != nil || statErr != nil || !bytes.Equal(got, f.Data) || info.Mode() != f.Mode {
			t.Errorf("%s: %v, %v, %q", f.Path, err, info, got)
		}
	}
	if info, err := os.Stat(filepath.Join(root, "etc/grid-security")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("its directory: %v, %v", info, err)
	}
}
