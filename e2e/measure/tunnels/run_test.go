package tunnels

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/policyfile"
)

func TestFlags(t *testing.T) {
	changed := fullRun()
	changed.pairs, changed.output = 5, "x.md"
	small := quickRun()
	small.tunnels = 7
	some := fullRun()
	some.peers, some.only = true, "bulk"
	for _, test := range []struct {
		args string
		want options
	}{
		{"", fullRun()},
		{"-quick", quickRun()},
		{"-pairs 5 -o x.md", changed},
		{"-quick -tunnels 7", small},
		{"-peers -only bulk", some},
	} {
		got, err := parse(strings.Fields(test.args), &bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, test.want, cmp.AllowUnexported(options{})); diff != "" {
			t.Errorf("%q: %s", test.args, diff)
		}
	}
}

func TestWrongUse(t *testing.T) {
	for _, args := range []string{"-pairs -1", "-bytes x", "-idle 1001", "-unknown", "-only x", "-peers -only denials", "argument"} {
		if _, err := parse(strings.Fields(args), &bytes.Buffer{}); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
}

func TestThePolicyHasTenThousandRulesAndLeadsToTheOrigin(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString(trustDomain)
	text := policy(td, []string{"127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"})
	p, err := policyfile.Parse(policyfile.Options{TrustDomain: td}, map[string][]byte{"policy.yaml": []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(text, "host: "); got != 10_000 {
		t.Errorf("%d rules, want 10000", got)
	}
	for target, want := range map[string]bool{originName + ":1003": true, originName + ":1004": false, deniedName: false} {
		dest, err := allowlist.ParseDestination(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Decide(allowlist.Request{ID: callerID(td, 999), Proof: allowlist.ProofX509SVID, Dest: dest}); got.Allowed() != want {
			t.Errorf("%s: allowed is %v, want %v", target, got.Allowed(), want)
		}
	}
}
