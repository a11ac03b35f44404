package allowlist

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestHolders checks that an identity has two holders, one for the proof source-map and
// one for all other proofs.
func TestHolders(t *testing.T) {
	a, b := spiffeid.RequireFromString("spiffe://td.example/a"), spiffeid.RequireFromString("spiffe://td.example/b")
	shown := HolderOf(a, ProofX509SVID)
	for s := NoProof; s.String() != "invalid"; s++ {
		h := HolderOf(a, s)
		if h.Mapped() != (s == ProofSourceMap) || (h == shown) == h.Mapped() || h.ID() != a {
			t.Errorf("%q: %+v", s, h)
		}
		req := Request{ID: a, Proof: s}
		dec := Decision{Request: req}
		if req.Holder() != h || dec.Holder() != h {
			t.Errorf("%q: a request has the holder %+v, its decision %+v", s, req.Holder(), dec.Holder())
		}
		if h == HolderOf(b, s) {
			t.Errorf("%q: two identities have the same holder", s)
		}
	}
	if (Holder{}) != HolderOf(spiffeid.ID{}, NoProof) || HolderOf(spiffeid.ID{}, ProofSourceMap) == (Holder{}) {
		t.Error("the zero value is not the holder of callers without an identity")
	}
}
