package allowlist

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// Holder is for whom budgets, shares and counts are kept: an identity, by what
// shows it. What came by source-map is one holder, and what came by any other
// proof another, so that whoever forges an address spends nothing that the
// identity has by a certificate or a listener. The zero value stands for callers
// without an identity. It is comparable; the policy and the quarantine list know
// identities only.
type Holder struct {
	id     spiffeid.ID
	mapped bool
}

// HolderOf returns the holder of what an identity does that was shown by a
// source. A zero identity with [SourceMap] stands for callers whose address
// stands for nobody.
func HolderOf(id spiffeid.ID, source Source) Holder {
	return Holder{id: id, mapped: source == SourceMap}
}

// ID returns the identity; zero for callers without one.
func (h Holder) ID() spiffeid.ID { return h.id }

// Mapped reports whether an address is all that shows the identity.
func (h Holder) Mapped() bool { return h.mapped }

// Holder returns for whom the budgets and shares of the request are kept.
func (r *Request) Holder() Holder { return HolderOf(r.ID, r.Source) }
