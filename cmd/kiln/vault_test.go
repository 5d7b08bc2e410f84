package main

import (
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/alisw/kiln/internal/testvault"
)

// vaultServer starts a Vault that knows the token hvs.leaked-canary with the
// accessor leaked, and that may be told to refuse writes to a path: vault [PATH].
// The operator's token for it is hvs.operator-canary.
func vaultServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: vault [PATH]")
	}
	v := testvault.New()
	v.Tokens["hvs.leaked-canary"] = "leaked"
	refused := len(args) == 1
	v.Before = func(w http.ResponseWriter, r *http.Request, path string) bool {
		if refuses := refused && path == args[0] && r.Method == http.MethodPut; refuses {
			refused = false // but the next one isn't
			testvault.Refuse(w, http.StatusForbidden, "permission denied")
			return true
		}
		return false
	}
	server := httptest.NewServer(v)
	ts.Defer(server.Close)
	for name, value := range map[string]string{"VAULT_ADDR": server.URL, "VAULT_TOKEN": "hvs.operator-canary", "VAULT_MAX_RETRIES": "0"} {
		ts.Setenv(name, value)
	}
}

// tokenless checks that neither stream of the last command has shown a token: tokenless.
func tokenless(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: tokenless")
	}
	if all := ts.ReadFile("stdout") + ts.ReadFile("stderr"); strings.Contains(all, "canary") {
		ts.Fatalf("it shows a token:\n%s", all)
	}
}
