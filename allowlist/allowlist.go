// Package allowlist decides which identity may reach which destination, and
// says why.
//
// A [Policy] is compiled once from a [Spec] and never changes. [Policy.Decide]
// turns a [Request] into a [Decision]; the decision then checks every address
// that a name resolves to with [Decision.CheckAddr]. Both are pure: no clock,
// no lookup, no log, no allocation. Deny is the zero value of everything here:
// a nil policy and a zero decision deny.
//
// The package does not read files (see policyfile), does not verify identities
// (see package identity) and never touches the network.
package allowlist

// Verdict is what was decided. The zero value denies.
type Verdict uint8

// The verdicts. Fail is not a decision of policy: the request was allowed and
// something behind the decision failed (a lookup, a dial, the gateway itself).
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

// Mode says whether denials are enforced or only observed. The zero value is
// "not set", which enforces where no entry sets another.
type Mode uint8

// The modes of an entry.
const (
	ModeUnset Mode = iota
	ModeEnforce
	ModeObserve
)

// String returns the word that the policy and records use; an unset mode
// enforces and says so.
func (m Mode) String() string {
	switch m {
	case ModeUnset, ModeEnforce:
		return "enforce"
	case ModeObserve:
		return "observe"
	}
	return "invalid"
}

// Source is how a caller proved its identity.
type Source uint8

// The identity sources. The zero value proves nothing and is never accepted.
const (
	SourceNone     Source = iota
	SourceX509SVID        // a client certificate
	SourceListener        // the listener names the identity (self or fixed)
	SourceMap             // an address range names the identity
)

// String returns the word that the policy and records use.
func (s Source) String() string {
	switch s {
	case SourceNone:
		return ""
	case SourceX509SVID:
		return "x509-svid"
	case SourceListener:
		return "listener"
	case SourceMap:
		return "source-map"
	}
	return "invalid"
}

// ParseSource reads the word that String writes; ok is false for any other.
func ParseSource(word string) (s Source, ok bool) {
	for s = SourceX509SVID; s <= SourceMap; s++ {
		if s.String() == word {
			return s, true
		}
	}
	return SourceNone, false
}

// Sources is a set of identity sources. The zero value is "not set": then
// x509-svid and listener are accepted.
type Sources uint8

// SourcesOf returns the set of the given sources.
func SourcesOf(sources ...Source) Sources {
	var set Sources
	for _, s := range sources {
		set |= 1 << s
	}
	return set
}

// has reports whether s is in the set.
func (set Sources) has(s Source) bool {
	return s != SourceNone && set&(1<<s) != 0
}
