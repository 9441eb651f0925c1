package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/token-sidecar/token-sidecar/metrics"
	"github.com/token-sidecar/token-sidecar/proxy"
)

var update = flag.Bool("update", false, "write the generated tables into README.md")

func TestReadmeTablesMatchTheCode(t *testing.T) {
	const path = "../../README.md"
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := string(content)
	for section, table := range map[string]string{"configuration": configurationTable(), "metrics": metricsTable(t)} {
		begin := strings.Index(want, "<!-- begin "+section)
		end := strings.Index(want, "<!-- end "+section)
		if begin < 0 || end < begin {
			t.Fatalf("README.md has no section %s", section)
		}
		begin += strings.Index(want[begin:], "\n") + 1
		want = want[:begin] + table + want[end:]
	}
	if want == string(content) {
		return
	}
	if !*update {
		t.Fatal("README.md is out of step with the code: go test ./cmd/token-sidecar -run Readme -update")
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func configurationTable() string {
	var b strings.Builder
	fmt.Fprintln(&b, "| Variable | Default | Meaning |\n|---|---|---|")
	for _, v := range variables() {
		byDefault := ""
		if v.defaultValue != "" {
			byDefault = "`" + v.defaultValue + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.name, byDefault, v.help)
	}
	return b.String()
}

// registry holds every metric, each with at least one series.
func registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "test")
	m.Expect(labels)
	m.TokenRefreshed("refresh_token", "success", "", time.Second)
	m.RequestStarted()
	m.RequestServed("GET", 200, time.Second)
	return reg
}

func metricsTable(t *testing.T) string {
	families, err := registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintln(&b, "| Metric | Type | Labels | Meaning |\n|---|---|---|---|")
	for _, family := range families {
		var labels []string
		for _, label := range family.Metric[0].Label {
			labels = append(labels, "`"+label.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", family.GetName(), strings.ToLower(family.GetType().String()),
			strings.Join(labels, ", "), family.GetHelp())
	}
	return b.String()
}

func TestDocumentsNameTestsThatExist(t *testing.T) {
	files, err := filepath.Glob("../../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	deeper, _ := filepath.Glob("../../*/*/*_test.go")
	var tests strings.Builder
	for _, file := range append(files, deeper...) {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(content)
	}
	for _, document := range []string{"README.md", "SECURITY.md"} {
		content, err := os.ReadFile("../../" + document)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(string(content), -1)
		if len(named) == 0 {
			t.Errorf("%s names no test", document)
		}
		for _, name := range named {
			if !strings.Contains(tests.String(), "\nfunc "+name[1]+"(") {
				t.Errorf("%s promises what %s shows, but there is no such test", document, name[1])
			}
		}
	}
}

func TestMetricsAreNamedByConvention(t *testing.T) {
	problems, err := testutil.GatherAndLint(registry())
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// The rooms know nothing of each other, so what they have in common is
// compared here.
func TestHelpTextNamesEveryReason(t *testing.T) {
	table := metricsTable(t)
	for _, reason := range slices.Concat(proxy.Reasons, proxy.Outcomes) {
		if !strings.Contains(table, reason+" (") {
			t.Errorf("no help text explains %s", reason)
		}
	}
}

func TestHelpTextNamesEveryForbiddenMethod(t *testing.T) {
	for _, method := range proxy.ForbiddenMethods {
		if !regexp.MustCompile("ALLOWED_METHODS.*all but.*" + method + ".* never are").MatchString(configurationTable()) {
			t.Errorf("no help text tells that %s is never allowed", method)
		}
	}
}

func TestEveryVariableIsDocumented(t *testing.T) {
	for _, v := range variables() {
		if v.name == "" || v.help == "" || !strings.HasSuffix(v.help, ".") {
			t.Errorf("field %s: variable %q, help %q", v.field, v.name, v.help)
		}
		if strings.HasSuffix(v.name, "_PORT") || strings.HasSuffix(v.name, "_HOST") {
			t.Errorf("%s may be set by Kubernetes for a Service", v.name)
		}
	}
	if rows := strings.Count(configurationTable(), "\n") - 2; rows != len(variables()) {
		t.Error("the table leaves variables out")
	}
}
