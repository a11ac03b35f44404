package allowlist

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// Holder is the key under which budgets, shares and counts are kept: an identity and
// whether its proof is source-map. Requests with the proof source-map have one holder and
// those with any other proof another, so that a forged address uses up nothing that the
// identity has by a certificate or a listener. The zero value stands for callers without
// an identity. A Holder is comparable. The policy and the quarantine list do not use it;
// they know identities only.
type Holder struct {
	id     spiffeid.ID
	mapped bool // the proof is source-map
}

// HolderOf returns the holder for an identity and its proof. A zero identity with
// [ProofSourceMap] stands for callers whose address lies in no range of the source map.
func HolderOf(id spiffeid.ID, proof Proof) Holder {
	return Holder{id: id, mapped: proof == ProofSourceMap}
}

// ID returns the identity; zero for callers without one.
func (h Holder) ID() spiffeid.ID { return h.id }

// Mapped reports whether the proof of the identity is source-map.
func (h Holder) Mapped() bool { return h.mapped }

// Holder returns the holder whose budgets and shares the request uses.
func (r *Request) Holder() Holder { return HolderOf(r.ID, r.Proof) }
