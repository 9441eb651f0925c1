package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImportsPointOneWay keeps the rooms apart: what each may import of ours,
// and which of the large packages it must do without.
func TestImportsPointOneWay(t *testing.T) {
	const module = "github.com/token-sidecar/token-sidecar/"
	const prometheus, http, env = "github.com/prometheus/client_golang", "net/http", "github.com/caarlos0/env"
	for room, rule := range map[string]struct{ may, mustNot []string }{
		"proxy":                {mustNot: []string{prometheus, env}},
		"metrics":              {mustNot: []string{env}},
		"tokencache":           {mustNot: []string{http, prometheus, env}},
		"tokencache/grant":     {may: []string{"tokencache"}, mustNot: []string{prometheus, env, "golang.org/x/oauth2"}},
		"tokencache/granttest": {mustNot: []string{prometheus, env, "go.uber.org/zap"}},
		"examples/quickstart":  {may: []string{"tokencache/granttest"}},
		"examples/figures":     {may: []string{"tokencache/granttest"}},
	} {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, module+room).Output()
		if err != nil {
			t.Fatal(err)
		}
		for imported := range strings.Lines(string(out)) {
			imported = strings.TrimSpace(imported)
			if ours, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(rule.may, ours) {
				t.Errorf("%s imports %s", room, ours)
			}
			if slices.ContainsFunc(rule.mustNot, func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") }) {
				t.Errorf("%s imports %s", room, imported)
			}
		}
	}
}
