// Package dashboards runs the queries of every panel of the Grafana dashboards with
// Prometheus's own engine, on scripted series, and compares the results with what the
// panel must show.
//
// The engine is that of promtool, which is built from a module of its own; without its
// path the queries do not run.
//
//	make dashboards
package dashboards

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

var promtool = flag.String("promtool", "", "path of promtool; without it no query is run")

const folder = "../../configs/grafana"

// dashboard holds the parts of a dashboard that the test reads.
type dashboard struct {
	Panels     []panel
	Templating struct{ List []variable }
}

type panel struct {
	Title, Type string
	Targets     []struct{ RefID, Expr, Format string }
}

// variable is a variable of a dashboard.
type variable struct {
	Name, Type, AllValue string
	IncludeAll, Multi    bool
	Query                any
}

// shown holds what the targets of a panel must return, by the target's letter: samples,
// each with its labels in braces and its value.
type shown map[string][]string

// expectations holds what each panel must show if all jobs are chosen, and if only the
// job exeat is chosen, by dashboard and title.
type expectations map[string]map[string]struct{ All, Exeat shown }

// series is one of the scripted series.
type series struct{ Series, Values string }

func TestPanels(t *testing.T) {
	var want expectations
	var data struct {
		Series []series `yaml:"input_series"`
	}
	readYAML(t, "expected.yaml", &want)
	readYAML(t, "data.yaml", &data)
	paths, err := filepath.Glob(folder + "/*.json")
	if err != nil || len(paths) < 3 {
		t.Fatalf("found %q, %v", paths, err)
	}
	var tests []unitTest
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		d := read(t, path)
		titles := map[string]bool{}
		for _, p := range d.Panels {
			if p.Type == "row" {
				continue
			}
			if titles[p.Title] {
				t.Errorf("%s: two panels are named %q", name, p.Title)
			}
			titles[p.Title] = true
			for job, expected := range map[string]shown{"All": want[name][p.Title].All, "exeat": want[name][p.Title].Exeat} {
				test := unitTest{Name: fmt.Sprintf("%s: %s, of job %s", name, p.Title, job), Interval: "1m"}
				test.ask(t, p, d.substitutions(t, data.Series, job), expected)
				test.Series = slices.DeleteFunc(slices.Clone(data.Series), func(s series) bool { return !test.uses(s) })
				tests = append(tests, test)
			}
		}
		for title := range want[name] {
			if !titles[title] {
				t.Errorf("%s: no panel is named %q", name, title)
			}
		}
	}
	if !t.Failed() {
		run(t, tests)
	}
}

// unitTest is a test in the format of promtool.
type unitTest struct {
	Name     string   `yaml:"name"`
	Interval string   `yaml:"interval"`
	Series   []series `yaml:"input_series"`
	Exprs    []query  `yaml:"promql_expr_test"`
}

// rounded returns a query whose samples are rounded to nine digits after the decimal
// point, so that the expected values can be written down.
func rounded(expr string) string { return "round((" + expr + "), 1e-9)" }

// ask adds the queries of a panel, and the results that they must have.
func (u *unitTest) ask(t *testing.T, p panel, values *strings.Replacer, expected shown) {
	t.Helper()
	for _, target := range p.Targets {
		if len(expected[target.RefID]) == 0 {
			t.Errorf("%s: nothing is expected of target %s", u.Name, target.RefID)
		}
		if (p.Type == "heatmap") != (target.Format == "heatmap") {
			t.Errorf("%s: target %s of a %s has the format %q", u.Name, target.RefID, p.Type, target.Format)
		}
		u.Exprs = append(u.Exprs, query{
			Expr: rounded(values.Replace(target.Expr)), At: "2h", Samples: samples(t, expected[target.RefID]),
		})
	}
	if len(u.Exprs) != len(expected) {
		t.Errorf("%s: it has %d targets, and %d are expected", u.Name, len(u.Exprs), len(expected))
	}
}

// uses reports whether a query of the test names the metric of a series.
func (u *unitTest) uses(s series) bool {
	metric, _, _ := strings.Cut(s.Series, "{")
	named := regexp.MustCompile(`\b` + metric + `\b`)
	return slices.ContainsFunc(u.Exprs, func(q query) bool { return named.MatchString(q.Expr) })
}

type query struct {
	Expr    string   `yaml:"expr"`
	At      string   `yaml:"eval_time"`
	Samples []sample `yaml:"exp_samples"`
}

type sample struct {
	Labels string  `yaml:"labels"`
	Value  float64 `yaml:"value"`
}

// samples splits each line into labels and value.
func samples(t *testing.T, lines []string) []sample {
	t.Helper()
	var all []sample
	for _, line := range lines {
		at := strings.LastIndex(line, " ")
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if at < 0 || err != nil {
			t.Fatalf("%q is no sample", line)
		}
		all = append(all, sample{Labels: line[:at], Value: value})
	}
	return all
}

// run runs the tests with promtool.
func run(t *testing.T, tests []unitTest) {
	t.Helper()
	if *promtool == "" {
		t.Skip("no promtool: run make dashboards")
	}
	text, err := yaml.Marshal(map[string]any{"fuzzy_compare": true, "tests": tests})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "panels.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), *promtool, "test", "rules", path).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// substitutions returns the values that Grafana inserts for the variables when one job,
// or all jobs, and all gateways are chosen.
func (d *dashboard) substitutions(t *testing.T, data []series, job string) *strings.Replacer {
	t.Helper()
	pairs := []string{"$__rate_interval", "4m", "$__range", "1h"}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		if !v.IncludeAll || !v.Multi {
			t.Errorf("of %s not all, or not several, can be chosen", v.Name)
		}
		text := "" // result of the query of v
		if q, ok := v.Query.(map[string]any); ok {
			text, _ = q["query"].(string)
		}
		value := v.AllValue
		switch {
		case v.Name == "job" && job != "All":
			value = regexp.QuoteMeta(job)
		case value == "": // Grafana lists the results of the query
			value = "(" + strings.Join(labelValues(t, data, strings.NewReplacer(pairs...).Replace(text)), "|") + ")"
		}
		pairs = append(pairs, "$"+v.Name, value)
	}
	return strings.NewReplacer(pairs...)
}

// labelValues is Grafana's label_values(metric, label), where the metric may have a
// selector of the job.
func labelValues(t *testing.T, data []series, text string) []string {
	t.Helper()
	m := regexp.MustCompile(`^label_values\((\w+)(?:\{job=~"([^"]*)"\})?, (\w+)\)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("%q is no query for values that this test knows", text)
	}
	job := regexp.MustCompile("^(?:" + m[2] + ")$")
	var values []string
	for _, s := range data {
		if !strings.HasPrefix(s.Series, m[1]+"{") || m[2] != "" && !job.MatchString(label(s.Series, "job")) {
			continue
		}
		values = append(values, regexp.QuoteMeta(label(s.Series, m[3])))
	}
	slices.Sort(values)
	return slices.Compact(values)
}

// label returns the value of a label of a series, or "" if it has none.
func label(series, name string) string {
	m := regexp.MustCompile(`[{ ]` + name + `="([^"]*)"`).FindStringSubmatch(series)
	if m == nil {
		return ""
	}
	return m[1]
}

func read(t *testing.T, path string) dashboard {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return d
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
