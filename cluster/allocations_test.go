package cluster

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"
)

// TestRunning: the allocations of all nodes that a host's name can mean, those that
// are over left out.
func TestRunning(t *testing.T) {
	answers := map[string]any{
		"/v1/nodes": []nomad.NodeListStub{{ID: "a", Name: "build01.example.org"}, {ID: "b", Name: "build01"}, {ID: "c", Name: "build02"}, {ID: "d", Name: "build01.example.com"}},
		"/v1/node/a/allocations": []nomad.Allocation{
			{ID: "11111111-1", JobID: "ci", DesiredStatus: "run", ClientStatus: "running"},
			{ID: "22222222-2", JobID: "done", DesiredStatus: "run", ClientStatus: "complete"},
			{ID: "33333333-3", JobID: "stopping", DesiredStatus: "stop", ClientStatus: "running"},
		},
		"/v1/node/b/allocations": []nomad.Allocation{{ID: "44444444-4", JobID: "soon", DesiredStatus: "run", ClientStatus: "pending"}},
		"/v1/node/c/allocations": []nomad.Allocation{{ID: "55555555-5", JobID: "other", DesiredStatus: "run", ClientStatus: "running"}},
		"/v1/node/d/allocations": []nomad.Allocation{{ID: "66666666-6", JobID: "elsewhere", DesiredStatus: "run", ClientStatus: "running"}},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			http.Error(w, "no path to region", http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	defer server.Close()
	t.Setenv("NOMAD_ADDR", server.URL)
	n, err := NewNomad("")
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string][]string{
		"build01.example.org": {"ci (11111111)", "stopping (33333333)", "soon (44444444)"},
		"build02.example.org": {"other (55555555)"},
		"build03.example.org": nil,
	} {
		if got, err := n.Running(t.Context(), host); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s runs %q, %v", host, got, err)
		}
	}
	delete(answers, "/v1/node/c/allocations")
	if _, err := n.Running(t.Context(), "build02"); err == nil || !strings.Contains(err.Error(), "build02") {
		t.Errorf("an error of Nomad's is %v", err)
	}
}
