// Package monitoring holds the chart's alerts, dashboard and runbook against
// the binary: what they name must be there, and what is there must be
// explained. ./... does not match this folder, and go's cache of results does
// not know of the programs that run here:
//
//	go test -count=1 ./.ci/monitoring
//
// It needs prometheus and promtool, from Debian's package prometheus.
package monitoring

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	chart         = "../../charts/token-sidecar/"
	alertsFile    = chart + "alerts.yaml"
	dashboardFile = chart + "dashboard.json"
	runbookFile   = chart + "RUNBOOK.md"
	runbookURL    = "https://github.com/token-sidecar/token-sidecar/blob/main/charts/token-sidecar/RUNBOOK.md"
	testsFile     = "alerts_test.yaml"
)

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// find returns what pattern has in its parentheses, at each place in content.
func find(pattern, content string) (all []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(content, -1) {
		all = append(all, match[1])
	}
	return all
}

// A query is one PromQL expression, and where it stands.
type query struct{ where, expr, legend string }

// An alert is a rule of alertsFile.
type alert struct{ name, expr, text string }

func alerts(t *testing.T) (all []alert) {
	block := regexp.MustCompile(`(?m)^        expr: (?:\|\n((?: {10}.*\n)+)|(.+))`)
	for _, text := range strings.Split(read(t, alertsFile), "      - alert: ")[1:] {
		a := alert{text: text}
		a.name, _, _ = strings.Cut(text, "\n")
		if match := block.FindStringSubmatch(text); match != nil {
			a.expr = match[1] + match[2]
		}
		all = append(all, a)
	}
	return all
}

type dashboard struct {
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               struct{ UID string }
		GridPos                  struct{ X, Y, W, H int }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct {
			Expr, LegendFormat, RefID string
			Datasource                struct{ UID string }
		}
	}
}

func loadDashboard(t *testing.T) (d dashboard) {
	if err := json.Unmarshal([]byte(read(t, dashboardFile)), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// dashboardQueries returns those of every panel, as Grafana would send them.
func dashboardQueries(t *testing.T) (all []query) {
	interval, selected := regexp.MustCompile(`\$__rate_interval\b`), regexp.MustCompile(`\$(namespace|pod)\b`)
	for _, panel := range loadDashboard(t).Panels {
		for _, target := range panel.Targets {
			expr := selected.ReplaceAllString(interval.ReplaceAllString(target.Expr, "1m"), ".*")
			all = append(all, query{"panel " + panel.Title, expr, target.LegendFormat})
		}
	}
	return all
}

func queries(t *testing.T) []query {
	all := dashboardQueries(t)
	for _, a := range alerts(t) {
		all = append(all, query{where: a.name, expr: a.expr})
	}
	for _, expr := range find("(?s)```promql\n(.*?)```", read(t, runbookFile)) {
		all = append(all, query{where: "RUNBOOK.md: " + expr, expr: expr})
	}
	return all
}

// A schema tells for each metric the values of its labels that were seen.
type schema map[string]map[string][]string

func exported(t *testing.T) schema {
	series := regexp.MustCompile(`(?m)^([a-z_]\w*)(?:{(.*)})? \S+$`)
	label := regexp.MustCompile(`(\w+)="((?:\\.|[^"\\])*)"`)
	all := schema{}
	for _, match := range series.FindAllStringSubmatch(string(exposition(t)), -1) {
		if all[match[1]] == nil {
			all[match[1]] = map[string][]string{}
		}
		for _, l := range label.FindAllStringSubmatch(match[2], -1) {
			all[match[1]][l[1]] = append(all[match[1]][l[1]], l[2])
		}
	}
	return all
}

// values returns those of a label of any metric.
func (s schema) values(label string) (all []string) {
	for _, labels := range s {
		all = append(all, labels[label]...)
	}
	return all
}

// faults tells what expr names and s does not have.
func (s schema) faults(expr string) (all []string) {
	selectors, grouped := scan(expr)
	if len(selectors) == 0 {
		all = append(all, "no metric")
	}
	known := slices.Clone(targetLabels)
	for _, selector := range selectors {
		labels, ok := s[selector.metric]
		if !ok {
			all = append(all, "no metric is called "+selector.metric)
		}
		known = slices.AppendSeq(known, maps.Keys(labels))
		for _, m := range selector.matchers {
			if !slices.Contains(targetLabels, m.label) && !m.mayMatch(labels[m.label]) {
				all = append(all, fmt.Sprintf("%s has no %s%s%q", selector.metric, m.label, m.op, m.value))
			}
		}
	}
	for _, label := range grouped {
		if !slices.Contains(known, label) {
			all = append(all, "no label is called "+label)
		}
	}
	return all
}

func (m matcher) mayMatch(values []string) bool {
	pattern := regexp.QuoteMeta(m.value)
	if strings.HasSuffix(m.op, "~") {
		pattern = m.value
	}
	return slices.ContainsFunc(values, regexp.MustCompile("^(?:"+pattern+")$").MatchString)
}

func TestMetricsAreAsPromtoolLikesThem(t *testing.T) {
	promtool(t, exposition(t), "check", "metrics")
}

func TestAlertsFireWhenTheyMustAndOnlyThen(t *testing.T) {
	t.Parallel()
	promtool(t, nil, "test", "rules", testsFile)
}

func TestEveryExpressionParses(t *testing.T) {
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for i, q := range queries(t) {
		if strings.Contains(q.expr, "$") {
			t.Errorf("%s: a variable that is not known: %s", q.where, q.expr)
		}
		rules = append(rules, rule{fmt.Sprintf("query:%d", i), q.expr})
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	content, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "queries", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(content)) // JSON is YAML
	promtool(t, nil, "check", "rules", file)

	said := promtool(t, nil, "check", "rules", alertsFile)
	if want := fmt.Sprintf(" %d rules found", len(alerts(t))); !strings.Contains(said, want) {
		t.Errorf("this test has not read alerts.yaml as Prometheus does: %s", said)
	}
}

func TestEveryExpressionAsksForWhatIsExported(t *testing.T) {
	all := exported(t)
	for _, q := range queries(t) {
		for _, fault := range all.faults(q.expr) {
			t.Errorf("%s: %s", q.where, fault)
		}
	}
	for _, v := range loadDashboard(t).Templating.List {
		if v.Type != "query" {
			continue
		}
		asked := regexp.MustCompile(`label_values\((.+), (\w+)\)`).FindStringSubmatch(fmt.Sprint(v.Query))
		if asked == nil || len(all.faults(asked[1])) > 0 || asked[2] != v.Name {
			t.Errorf("the variable %s has the values of %v", v.Name, v.Query)
		}
	}
	for _, series := range find(`(?m)^ +- series: (.+)$`, read(t, testsFile)) {
		for _, fault := range all.faults(series) {
			t.Errorf("%s: %s", testsFile, fault)
		}
	}
}

func TestEveryAlertIsExplainedAndTested(t *testing.T) {
	runbook, tests, all := read(t, runbookFile), read(t, testsFile), exported(t)
	var names []string
	for _, a := range alerts(t) {
		names = append(names, a.name)
		if want := runbookURL + "#" + strings.ToLower(a.name); !slices.Equal(find(`(?m)^ +runbook_url: (.*)$`, a.text), []string{want}) {
			t.Errorf("%s: want the runbook_url %s", a.name, want)
		}
		for _, want := range []string{`(?m)^          severity: (critical|warning|info)$`, `(?m)^          summary: (.+)$`, `(?m)^          description: (.+)$`} {
			if len(find(want, a.text)) != 1 {
				t.Errorf("%s: want one line like %s", a.name, want)
			}
		}
		for _, label := range find(`\$labels\.(\w+)`, a.text) {
			if faults := all.faults("sum by (" + label + ") (" + a.expr + ")"); len(faults) > 0 {
				t.Errorf("%s: $labels.%s: %s", a.name, label, faults)
			}
		}
		// An alert that fires, and a moment when it does not.
		fires := regexp.MustCompile(`alertname: ` + a.name + `\n +eval_time: .*\n +exp_alerts:\n`)
		silent := regexp.MustCompile(`alertname: ` + a.name + `, eval_time: \w+}|expr: 'ALERTS{alertname="` + a.name + `"}', eval_time: \w+}`)
		if !fires.MatchString(tests) || !silent.MatchString(tests) {
			t.Errorf("%s does not test when %s fires, and when not", testsFile, a.name)
		}
	}
	if sections := find(`(?m)^## (.*)$`, runbook); !slices.Equal(sections, names) {
		t.Errorf("the sections of RUNBOOK.md are %q, the alerts %q", sections, names)
	}
	for _, name := range find(`(TokenSidecar\w+)`, runbook+tests) {
		if !slices.Contains(names, name) {
			t.Errorf("there is no alert %s", name)
		}
	}
	for _, anchor := range find(`\(#(.*?)\)`, runbook) {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.ToLower(name) == anchor }) {
			t.Errorf("RUNBOOK.md has no section #%s", anchor)
		}
	}
}

// source is the program, without its tests.
func source(t *testing.T) string {
	var all strings.Builder
	for _, folder := range []string{"cmd", "proxy", "tokencache", "metrics"} {
		err := filepath.WalkDir("../../"+folder, func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				all.WriteString(read(t, path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

func TestRunbookSpeaksOfThisProgram(t *testing.T) {
	runbook, program, all := read(t, runbookFile), source(t), exported(t)
	help, err := exec.Command(binary, "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range find(`"msg":"(.*?)"`, runbook) {
		line = strings.TrimSuffix(line, " …")
		if before, reason, ok := strings.Cut(line, "request not served: "); ok && before == "" && slices.Contains(all.values("reason"), reason) {
			line = "request not served: "
		}
		if !strings.Contains(program, `"`+line) {
			t.Errorf("RUNBOOK.md quotes %q, which the program does not log", line)
		}
	}
	for _, name := range find("`([a-z]+(?:_[a-z]+)+)`", runbook) {
		if !strings.Contains(program, `"`+name+`"`) {
			t.Errorf("RUNBOOK.md speaks of %s, which the program does not know", name)
		}
	}
	for _, name := range find(`\b([A-Z]+(?:_[A-Z]+)+)\b`, runbook+read(t, alertsFile)+read(t, dashboardFile)) {
		// A Secret's key NAME is what NAME_FILE would name.
		if !regexp.MustCompile(`(?m)^ *` + name + `(_FILE)?\b`).Match(help) {
			t.Errorf("there is no variable %s", name)
		}
	}
	for _, value := range slices.Concat(all["token_sidecar_token_refresh_errors_total"]["reason"],
		all["token_sidecar_token_refusals_total"]["outcome"], all["token_sidecar_token_expiry_anomalies_total"]["kind"]) {
		if !strings.Contains(runbook, "`"+value+"`") {
			t.Errorf("RUNBOOK.md does not explain %s", value)
		}
	}
}

func TestRunbookSpeaksOfThisChart(t *testing.T) {
	values := read(t, chart+"values.yaml")
	for _, name := range find("`gateway\\.(\\w+)", read(t, runbookFile)) {
		if !regexp.MustCompile(`(?m)^  ` + name + `:`).MatchString(values) {
			t.Errorf("RUNBOOK.md speaks of gateway.%s, which values.yaml has not", name)
		}
	}
}

func TestMonitorsFindThePorts(t *testing.T) {
	for _, c := range []struct{ monitor, port, owner, name string }{
		{"podmonitor.yaml", `regex: '(.*)'}`, "injection.yaml", `"adminPortName" "(.*)"`},
		{"podmonitor.yaml", `regex: '(.*)'}`, "_container.tpl", `"(sidecar-[^"]*)"`},
		{"servicemonitor.yaml", `{port: ([\w-]+),`, "gateway.yaml", `{name: (sidecar-[\w-]+),`},
	} {
		ports, names := find(c.port, read(t, chart+"templates/"+c.monitor)), find(c.name, read(t, chart+"templates/"+c.owner))
		if len(ports) != 1 || len(names) == 0 {
			t.Fatalf("%s scrapes the ports %q, %s names %q", c.monitor, ports, c.owner, names)
		}
		for _, name := range names {
			if m := (matcher{op: "=~", value: ports[0]}); !m.mayMatch([]string{strings.ReplaceAll(name, "%v", "9091")}) {
				t.Errorf("%s scrapes the port %s, and misses %s of %s", c.monitor, ports[0], name, c.owner)
			}
		}
	}
}

func TestDashboardIsWhole(t *testing.T) {
	const datasource, columns = "${datasource}", 24
	d := loadDashboard(t)
	if d.SchemaVersion == 0 || len(d.Panels) == 0 || len(d.Panels) > 12 {
		t.Errorf("schema version %d, %d panels", d.SchemaVersion, len(d.Panels))
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q needs an id of its own, a title, a description, a unit and a query", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if taken[cell] != "" || cell[0] >= columns {
					t.Fatalf("panel %q lies over %q, or over the edge", p.Title, taken[cell])
				}
				taken[cell] = p.Title
			}
		}
		for _, target := range p.Targets {
			if p.Datasource.UID != datasource || target.Datasource.UID != datasource || target.LegendFormat == "" {
				t.Errorf("panel %q, query %s: want the data source %s and a legend", p.Title, target.RefID, datasource)
			}
		}
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	if want := []string{"datasource", "namespace", "pod"}; !slices.Equal(variables, want) {
		t.Errorf("variables %q, want %q", variables, want)
	}
}
