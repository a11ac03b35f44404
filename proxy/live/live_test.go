package live

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestNothingInForceDenies checks that everything is denied before the first state, and
// by a nil and a zero state.
func TestNothingInForceDenies(t *testing.T) {
	dest, err := allowlist.ParseDestination("api.example:443")
	if err != nil {
		t.Fatal(err)
	}
	req := allowlist.Request{
		ID:    spiffeid.RequireFromString("spiffe://td.example/a"),
		Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Now(),
	}
	var none Current
	for name, state := range map[string]*State{
		"before the first Swap": none.Load(),
		"a zero state":          {},
		"a nil state":           nil,
	} {
		dec := state.Decide(req)
		if dec.Allowed() || dec.Reason != allowlist.PolicyUnavailable {
			t.Errorf("%s: %s %s, want deny policy-unavailable", name, dec.Verdict, dec.Reason)
		}
		if dec.Dest != req.Dest || dec.ID != req.ID {
			t.Errorf("%s: the decision does not say what was asked: %+v", name, dec.Request)
		}
	}
}

// TestGenerationsCountFromOne checks that each Swap puts a new state in force, whose
// generation is one more than that of the state before.
func TestGenerationsCountFromOne(t *testing.T) {
	policy, err := allowlist.Compile(allowlist.Spec{Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	var c Current
	now := time.Now()
	for want := uint64(1); want <= 3; want++ {
		before := c.Load()
		got := c.Swap(policy, now)
		if got.Generation != want || got.Policy != policy || !got.Loaded.Equal(now) {
			t.Errorf("Swap %d returned %+v", want, got)
		}
		if c.Load() != got {
			t.Errorf("generation %d is not in force", want)
		}
		if before != nil && before.Generation != want-1 {
			t.Errorf("Swap changed the state before it to generation %d", before.Generation)
		}
	}
}
