package configs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
)

const (
	rulesFile = "prometheus/exeat.rules.yaml"
	testsFile = "prometheus/exeat.tests.yaml"
)

// runbookURL is where the alerts lead to. The comment at the head of the rules says
// how to replace it.
const runbookURL = "https://github.com/exeat-dev/exeat/blob/main/docs/runbook.md"

// ruleFile has the parts of a file of Prometheus rules that the tests check.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Record, Alert, Expr, For string

	Labels, Annotations map[string]string
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func rules(t *testing.T) []rule {
	t.Helper()
	var file ruleFile
	readYAML(t, rulesFile, &file)
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 20 {
		t.Fatalf("%s has %d rules", rulesFile, len(all))
	}
	return all
}

// known returns the names of the series that an expression may use: metrics of the
// gateway, those that Prometheus adds, and those that the rules record.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{"up": true}
	for _, m := range telemetry.Catalogue() {
		names[m.Prometheus] = true
		if strings.Contains(m.Name, ".duration") {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[m.Prometheus+suffix] = true
			}
		}
	}
	for _, r := range rules(t) {
		if r.Record != "" {
			names[r.Record] = true
		}
	}
	return names
}

// labels returns the labels of each series besides job and instance.
func labels() map[string][]string {
	all := map[string][]string{}
	for _, m := range telemetry.Catalogue() {
		all[m.Prometheus] = m.Labels
		all[m.Prometheus+"_bucket"] = append(slices.Clone(m.Labels), "le")
	}
	return all
}

// checkExpression checks the names of the series in an expression, and the labels by
// which it selects them.
func checkExpression(t *testing.T, place, expression string, known map[string]bool) {
	t.Helper()
	series := regexp.MustCompile(`\b(egress[_:][a-zA-Z0-9_:]+)(?:\{([^}]*)\})?`)
	label := regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"`)
	for _, m := range series.FindAllStringSubmatch(expression, -1) {
		name := m[1]
		if !known[name] {
			t.Errorf("%s uses %s, which does not exist", place, name)
		}
		if strings.Contains(name, ":") {
			continue // recorded by a rule, which determines its labels
		}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			if !hasLabel(name, l[1]) {
				t.Errorf("%s selects %s by %s, which it does not have", place, name, l[1])
			}
		}
	}
	checkGroups(t, place, expression)
	checkReasons(t, place, expression)
}

// hasLabel reports whether a series has a label: one of its own, or one that
// Prometheus or its operator gives to every series of a target.
func hasLabel(series, label string) bool {
	return slices.Contains([]string{"job", "instance", "fleet"}, label) || slices.Contains(labels()[series], label)
}

// checkGroups checks that a series of an expression has the labels that it is
// grouped or matched by. Of recorded series the rule says which these are.
func checkGroups(t *testing.T, place, expression string) {
	t.Helper()
	if strings.Contains(expression, "egress:") {
		return
	}
	series := regexp.MustCompile(`\begress_[a-z_]+`).FindAllString(expression, -1)
	for _, m := range regexp.MustCompile(`\b(?:by|on|without) \(([^)]*)\)`).FindAllStringSubmatch(expression, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if name != "" && !slices.ContainsFunc(series, func(s string) bool { return hasLabel(s, name) }) {
				t.Errorf("%s groups by %s, which none of %q has", place, name, series)
			}
		}
	}
}

// checkReasons checks that every reason which an expression selects is one.
func checkReasons(t *testing.T, place, expression string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`\breason(?:=~|!~|!=|=)"([^"]*)"`).FindAllStringSubmatch(expression, -1) {
		for token := range strings.SplitSeq(m[1], "|") {
			if !slices.ContainsFunc(allowlist.Reasons(), func(r allowlist.Reason) bool { return r.String() == token }) {
				t.Errorf("%s selects the reason %q, which is none", place, token)
			}
		}
	}
}

// TestDocumentsNameMetrics checks that every metric which a document names is one.
func TestDocumentsNameMetrics(t *testing.T) {
	paths, err := filepath.Glob("../docs/*.md")
	if err != nil || len(paths) < 5 {
		t.Fatalf("found %q, %v", paths, err)
	}
	names, found := known(t), 0
	for _, path := range append(paths, "../README.md", "../CHANGELOG.md") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\begress[_:][a-z0-9_:]+`).FindAllString(string(data), -1) {
			found++
			if !names[name] {
				t.Errorf("%s names %s, which nobody shows", path, name)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d names were found", found)
	}
}

// TestRules checks what promtool does not check: names, labels, and that every alert has
// a severity, a team, and a section in the runbook.
func TestRules(t *testing.T) {
	runbook, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	names := known(t)
	alerts := 0
	for _, r := range rules(t) {
		checkExpression(t, r.Record+r.Alert, r.Expr, names)
		if r.Alert == "" {
			continue
		}
		alerts++
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) ||
			!slices.Contains([]string{"platform", "security"}, r.Labels["team"]) || r.For == "" {
			t.Errorf("%s: severity, team or for is missing", r.Alert)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: summary or description is missing", r.Alert)
		}
		if want := runbookURL + "#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !strings.Contains(string(runbook), "\n## "+r.Alert+"\n") {
			t.Errorf("docs/runbook.md has no section %s", r.Alert)
		}
	}
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\n#   sed -i 's|"+runbookURL+"|URL|' ") || strings.Count(string(text), runbookURL) != alerts+1 {
		t.Errorf("the command that replaces %s does not reach all of %d alerts", runbookURL, alerts)
	}
	if sections := strings.Count(string(runbook), "\n## "); sections != alerts {
		t.Errorf("docs/runbook.md has %d sections for %d alerts", sections, alerts)
	}
}

// TestEveryAlertIsTested checks that the tests for promtool have a case in which each
// alert fires, and one in which it does not.
func TestEveryAlertIsTested(t *testing.T) {
	var file struct {
		Tests []struct {
			Cases []struct {
				Alert    string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, testsFile, &file)
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			if len(c.Expected) > 0 {
				fires[c.Alert] = true
			} else {
				quiet[c.Alert] = true
			}
		}
	}
	for _, r := range rules(t) {
		if r.Alert != "" && (!fires[r.Alert] || !quiet[r.Alert]) {
			t.Errorf("%s: tested that it fires: %v, that it does not: %v", r.Alert, fires[r.Alert], quiet[r.Alert])
		}
	}
}

// dashboard has the parts of a Grafana dashboard that the tests check.
type dashboard struct {
	UID, Title string

	Panels []struct {
		Title, Type string

		Targets []struct{ Expr string }
	}
	Templating  struct{ List []struct{ Query any } }
	Annotations struct{ List []struct{ Expr string } }
}

func TestDashboards(t *testing.T) {
	names, shown := known(t), finding(t)
	used := map[string]bool{}
	for _, name := range []string{"executive", "on-call", "debug"} {
		data, err := os.ReadFile(filepath.Join("grafana", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(data, &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d.UID != "exeat-"+name || d.Title == "" || len(d.Panels) < 5 {
			t.Errorf("%s: uid %q, title %q, %d panels", name, d.UID, d.Title, len(d.Panels))
		}
		for _, p := range d.Panels {
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %q has no query", name, p.Title)
			}
			for _, target := range p.Targets {
				checkExpression(t, name+": "+p.Title, target.Expr, names)
				use(used, target.Expr)
			}
		}
		for _, v := range d.Templating.List {
			checkExpression(t, name, fmt.Sprint(v.Query), names)
		}
		for _, a := range d.Annotations.List {
			checkExpression(t, name, a.Expr, names)
			if expr := strings.ReplaceAll(a.Expr, `{job=~"$job"}`, ""); !shown[expr] {
				t.Errorf("%s: no test in %s shows that %s finds anything", name, testsFile, expr)
			}
		}
	}
	for _, m := range telemetry.Catalogue() {
		if !used[m.Prometheus] {
			t.Errorf("no dashboard shows %s", m.Prometheus)
		}
	}
}

// finding returns the expressions whose results are in the tests for promtool.
func finding(t *testing.T) map[string]bool {
	t.Helper()
	var file struct {
		Tests []struct {
			Cases []struct {
				Expr     string
				Expected []any `yaml:"exp_samples"`
			} `yaml:"promql_expr_test"`
		}
	}
	readYAML(t, testsFile, &file)
	found := map[string]bool{}
	for _, test := range file.Tests {
		for _, c := range test.Cases {
			found[c.Expr] = found[c.Expr] || len(c.Expected) > 0
		}
	}
	return found
}

// use marks the metrics of an expression as used.
func use(used map[string]bool, expression string) {
	for _, name := range regexp.MustCompile(`egress_[a-z_]+`).FindAllString(expression, -1) {
		used[strings.TrimSuffix(name, "_bucket")] = true
	}
}

// TestCollector checks that the pipelines name only configured components.
func TestCollector(t *testing.T) {
	var file struct {
		Receivers, Processors, Exporters map[string]any
		Service                          struct {
			Pipelines map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	readYAML(t, "otel-collector.yaml", &file)
	for _, signal := range []string{"traces", "metrics", "logs"} {
		p, ok := file.Service.Pipelines[signal]
		if !ok || len(p.Receivers) == 0 || len(p.Exporters) == 0 {
			t.Errorf("no pipeline for %s", signal)
		}
		check := func(kind string, named []string, configured map[string]any) {
			for _, name := range named {
				if _, ok := configured[name]; !ok {
					t.Errorf("%s: %s %s is not configured", signal, kind, name)
				}
			}
		}
		check("receiver", p.Receivers, file.Receivers)
		check("processor", p.Processors, file.Processors)
		check("exporter", p.Exporters, file.Exporters)
	}
}
