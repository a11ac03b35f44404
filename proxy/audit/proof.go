package audit

import "github.com/exeat-dev/exeat/allowlist"

// Unproven reports whether the record is of a datagram, or stands for datagrams
// only: their sender may have forged the address that they came from. Neither the
// client nor an identity that only the address shows is then proven.
func (r *Record) Unproven() bool { return r.Wire == WireUDP }

// proof is how far the caller of a record is shown. Records of different proofs
// are never merged, and take no room from each other: what is forged in the name
// of a caller leaves what is recorded of the caller itself alone.
type proof struct {
	mapped   bool // the identity is shown by source-map
	unproven bool // see Record.Unproven
}

func proofOf(rec *Record) proof {
	return proof{mapped: rec.Source == allowlist.SourceMap, unproven: rec.Unproven()}
}

// forgeable reports whether somebody may have forged the identity.
func (p proof) forgeable() bool { return p.mapped && p.unproven }

// mark notes the proof in the record that stands for others.
func (p proof) mark(rec *Record) *Record {
	if p.mapped {
		rec.Source = allowlist.SourceMap
	}
	if p.unproven {
		rec.Wire = WireUDP
	}
	return rec
}
