// Package allowlist decides which identity may reach which destination, and gives the
// reason for every denial.
//
// A [Policy] is compiled once from a [Spec] and never changes. [Policy.Decide] turns a
// [Request] into a [Decision]. [Decision.CheckAddr] then checks every address that the
// destination's name resolves to. Both are pure functions: they read no clock, look up
// nothing, log nothing, and Decide allocates nothing. Every zero value denies: a nil
// policy and a zero decision deny.
//
// The package does not read files (see policyfile), does not verify identities (see
// package identity) and never uses the network.
package allowlist

// Verdict is the result of a decision. The zero value denies.
type Verdict uint8

// The verdicts. The policy never decides Fail: it is the verdict of a request that could
// not be served for another cause than the policy's rules (a look-up, a dial, a
// handshake, or the state of the gateway).
const (
	Deny Verdict = iota
	Allow
	Observe
	Fail
)

// String returns the word that records use.
func (v Verdict) String() string {
	switch v {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	case Observe:
		return "observe"
	case Fail:
		return "fail"
	}
	return "invalid"
}

// Mode says whether denials are enforced or only observed. The zero value means "not
// set"; denials are enforced if no entry sets a mode.
type Mode uint8

// The modes of an entry.
const (
	ModeUnset Mode = iota
	ModeEnforce
	ModeObserve
)

// String returns the word that the policy and records use. It is "enforce" for an unset
// mode.
func (m Mode) String() string {
	switch m {
	case ModeUnset, ModeEnforce:
		return "enforce"
	case ModeObserve:
		return "observe"
	}
	return "invalid"
}

// Proof is the proof of a caller's identity: how the identity was shown.
type Proof uint8

// The proofs of an identity. The zero value proves nothing and is never accepted.
const (
	NoProof        Proof = iota
	ProofX509SVID        // a client certificate
	ProofListener        // the configuration of the listener names the identity (self or fixed)
	ProofSourceMap       // the caller's address lies in a range that stands for the identity
)

// String returns the word that the policy and records use.
func (p Proof) String() string {
	switch p {
	case NoProof:
		return ""
	case ProofX509SVID:
		return "x509-svid"
	case ProofListener:
		return "listener"
	case ProofSourceMap:
		return "source-map"
	}
	return "invalid"
}

// ParseProof returns the proof for a word that String returns; ok is false for any
// other word.
func ParseProof(word string) (p Proof, ok bool) {
	for p = ProofX509SVID; p <= ProofSourceMap; p++ {
		if p.String() == word {
			return p, true
		}
	}
	return NoProof, false
}

// Proofs is a set of proofs. The zero value means "not set": the proofs x509-svid and
// listener are accepted then.
type Proofs uint8

// ProofsOf returns the set of the given proofs.
func ProofsOf(proofs ...Proof) Proofs {
	var set Proofs
	for _, p := range proofs {
		set |= 1 << p
	}
	return set
}

// has reports whether p is in the set.
func (set Proofs) has(p Proof) bool {
	return p != NoProof && set&(1<<p) != 0
}
