package proxy

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestRecordNamesTheStateThatEndedTheRequest checks a request that one state ends and the
// next one allows, both after its dial: its record has the decision of the state that has
// ended it.
func TestRecordNamesTheStateThatEndedTheRequest(t *testing.T) {
	var current live.Current
	var registry live.Registry
	enforcer, err := live.NewEnforcer(live.EnforcerConfig{Current: &current, Registry: &registry})
	if err != nil {
		t.Fatal(err)
	}
	caller := spiffeid.RequireFromString("spiffe://test.example/builder")
	only, err := allowlist.ParseIdentityPattern(caller.String())
	if err != nil {
		t.Fatal(err)
	}
	host, err := allowlist.ParseHost("a.example")
	if err != nil {
		t.Fatal(err)
	}
	apply := func(version, allowed string) *live.State {
		t.Helper()
		pattern, err := allowlist.ParseHostPattern(allowed)
		if err != nil {
			t.Fatal(err)
		}
		p, err := allowlist.Compile(allowlist.Spec{Version: version, Entries: []allowlist.Entry{{
			Pattern: only, Allow: []allowlist.Rule{{At: "policy.yaml:1", Host: pattern}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		enforcer.Apply(t.Context(), live.Change{Policy: p, Quarantine: allowlist.NewQuarantineList(nil), Classifier: allowlist.NewClassifier(allowlist.Local{})})
		return current.Load()
	}
	apply("allows", "a.example")
	asked := allowlist.Request{ID: caller, Proof: allowlist.ProofListener, Dest: allowlist.Destination{Host: host, Port: 443}, Time: time.Now()}
	entry := &live.Entry{
		ID: "1", Decided: live.Decided{Request: asked, FirstBytes: live.FirstBytesToCome},
		End: func(tunnel.Reason, allowlist.Reason) {},
	}
	registry.Add(entry)
	forbids := apply("forbids", "b.example")
	allows := apply("allows again", "a.example")

	x := &request{
		session: &session{proxy: new(Proxy)}, read: new(front.Request), pending: new(audit.Pending),
		caller: listen.Caller{ID: caller, Proof: allowlist.ProofListener}, asked: asked, state: allows,
	}
	x.decide(time.Now())
	r := &registration{registry: &registry, entry: entry, cancel: func() {}}
	decideAsEnded(x, r)
	if reason := r.endReason(); reason != allowlist.NotOnAllowlist || x.decision.Reason != reason {
		t.Errorf("ended because of %q, the decision is %q", reason, x.decision.Reason)
	}
	if got := x.pending; got.Generation != forbids.Generation || got.Policy != "forbids" {
		t.Errorf("the record names generation %d of %q, want %d of \"forbids\"", got.Generation, got.Policy, forbids.Generation)
	}
}
