package configs

import (
	"os"
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
