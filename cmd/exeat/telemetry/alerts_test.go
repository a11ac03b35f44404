package telemetry

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestSeriesOfAlertsExistFromTheStart checks that each series of which an alert takes the
// increase, or asks whether its rate is above zero, is shown at zero before anything
// happens: with the first increment its first sample would be one already, and Prometheus
// would see no increase. The rates of decisions are left out: their alerts ask for
// minutes of them.
func TestSeriesOfAlertsExistFromTheStart(t *testing.T) {
	rules, err := os.ReadFile("../../../configs/prometheus/exeat.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	samples := scrape(t, quiet(t))
	counted := regexp.MustCompile(`(increase|rate)\((egress_\w+_total)(?:\{([^}]*)\})?\[`)
	found := 0
	for _, alert := range strings.Split(string(rules), "- alert: ")[1:] {
		name, _, _ := strings.Cut(alert, "\n")
		for _, m := range counted.FindAllStringSubmatch(alert, -1) {
			if m[1] == "rate" && m[2] == "egress_decisions_total" {
				continue
			}
			found++
			for _, labels := range alternatives(t, m[3]) {
				if !slices.ContainsFunc(samples, func(s string) bool { return isZero(s, m[2], labels) }) {
					t.Errorf("%s: no series of %s has %q from the start", name, m[2], labels)
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("the rules take %d increases and rates, want 10 at least", found)
	}
}

// alternatives returns the label values of a selector, one list for each alternative of
// its pattern. Labels with a negative matcher are left out.
func alternatives(t *testing.T, selector string) [][]string {
	t.Helper()
	all := [][]string{nil}
	for _, m := range regexp.MustCompile(`(\w+)(=~|!=|!~|=)"([^"]*)"`).FindAllStringSubmatch(selector, -1) {
		if strings.HasPrefix(m[2], "!") {
			continue
		}
		var longer [][]string
		for value := range strings.SplitSeq(m[3], "|") {
			for _, labels := range all {
				longer = append(longer, append(slices.Clone(labels), m[1]+`="`+value+`"`))
			}
		}
		all = longer
	}
	return all
}

// isZero reports whether a sample is zero and has a name and labels.
func isZero(sample, name string, labels []string) bool {
	return strings.HasPrefix(sample, name+"{") && strings.HasSuffix(sample, " 0") &&
		!slices.ContainsFunc(labels, func(label string) bool { return !strings.Contains(sample, label) })
}

// quiet returns a Telemetry of a process in which nothing has happened.
func quiet(t *testing.T) *Telemetry {
	t.Helper()
	tel := newTelemetry(t, Config{})
	err := tel.Observe(Observed{
		Tunnels:    func() int { return 0 },
		Held:       func() int { return 0 },
		Unanswered: func() Unanswered { return Unanswered{} },
		Resolver: func() []ServerErrors {
			return []ServerErrors{{"192.0.2.1:53", "servfail", 0}, {"192.0.2.1:53", "bogus", 0}, {"192.0.2.1:53", "code", 0}}
		},
		Policy:          func() (Policy, bool) { return Policy{}, false },
		IdentityReloads: func() (loaded, refused uint64) { return 0, 0 },
		Expiry:          time.Now,
		Descriptors:     func() []Descriptors { return []Descriptors{{Purpose: "accepted"}, {Purpose: "opened"}} },
		Records:         func() []audit.SinkStats { return []audit.SinkStats{{Name: "all"}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	tel.Instruments().Cut("main", "source", 0) // as the gateway does for each listener
	return tel
}
