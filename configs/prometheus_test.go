package configs

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestDestinationsThatFail checks that the indicator behind ExeatDestinationsFail counts
// every reason for which a destination fails, and none that is the gateway's fault.
func TestDestinationsThatFail(t *testing.T) {
	rules, err := os.ReadFile("prometheus/exeat.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(rules), "record: egress:failed:ratio5m")
	_, after, _ = strings.Cut(after, `reason=~"`)
	list, _, _ := strings.Cut(after, `"`)
	var want []string
	for _, r := range allowlist.Reasons() {
		if status := r.Info().Status; (status == 502 || status == 504) && r != allowlist.CutOff {
			want = append(want, r.String())
		}
	}
	if got := strings.Split(list, "|"); !slices.Equal(got, want) {
		t.Errorf("the indicator counts %q, want %q", got, want)
	}
}

// TestUndecidedRequestsAreLeftOut checks that the indicators behind ExeatMostlyDenied and
// ExeatNamesMostlyDenied leave out the requests that no policy decided, such as health
// checks over HTTP: those without an identity, and those that could not be read.
func TestUndecidedRequestsAreLeftOut(t *testing.T) {
	rules, err := os.ReadFile("prometheus/exeat.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{allowlist.IdentityMissing.String()}
	for _, r := range allowlist.Reasons() {
		if r.Info().ProxyError == "http_request_error" {
			want = append(want, r.String())
		}
	}
	for record, more := range map[string][]string{
		"egress:decisions:rate5m": nil, "egress:names:rate5m": {allowlist.SpecialName.String()},
	} {
		_, after, _ := strings.Cut(string(rules), "record: "+record)
		_, after, _ = strings.Cut(after, `reason!~"`)
		list, _, _ := strings.Cut(after, `"`)
		if got, want := strings.Split(list, "|"), slices.Concat(more, want); !slices.Equal(got, want) {
			t.Errorf("%s leaves out %q, want %q", record, got, want)
		}
	}
}

// TestListsAreTheSameEverywhere checks that rules and dashboards count the same reasons
// as attempts to reach unapproved destinations, and leave out the same handshakes
// and decisions.
func TestListsAreTheSameEverywhere(t *testing.T) {
	lists := func(path string) []string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, m := range regexp.MustCompile(`(?:reason=~\\?"not-on|(?:reason|result)!~\\?")[^"\\]*`).FindAllString(string(data), -1) {
			all = append(all, strings.ReplaceAll(m, `\`, ""))
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	inRules, shown := lists(rulesFile), lists("grafana/executive.json")
	if len(inRules) != 5 || !slices.Equal(inRules, shown) {
		t.Errorf("the rules have the lists %q, the dashboard %q", inRules, shown)
	}
	for _, list := range inRules {
		if strings.HasPrefix(list, `reason=~`) && strings.Contains(list, allowlist.SpecialName.String()) {
			t.Errorf("%s counts names that search lists make", list)
		}
	}
}
