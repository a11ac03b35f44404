package audit

import "github.com/exeat-dev/exeat/allowlist"

// Unproven reports whether the record is about a datagram, or about datagrams only.
// Their sender may have forged the address, so that neither the client nor an identity
// that only the address shows is proven.
func (r *Record) Unproven() bool { return r.Wire == WireUDP }

// proof says how well the caller of a record is proven. Records with different proofs
// are never merged, and do not compete for room: forged requests in the name of a
// caller do not displace the records of the caller itself.
type proof struct {
	mapped   bool // the identity comes from source-map
	unproven bool // see Record.Unproven
}

func proofOf(rec *Record) proof {
	return proof{mapped: rec.Proof == allowlist.ProofSourceMap, unproven: rec.Unproven()}
}

// forgeable reports whether the identity may be forged.
func (p proof) forgeable() bool { return p.mapped && p.unproven }

// mark sets the proof in a record that stands for others.
func (p proof) mark(rec *Record) *Record {
	if p.mapped {
		rec.Proof = allowlist.ProofSourceMap
	}
	if p.unproven {
		rec.Wire = WireUDP
	}
	return rec
}
