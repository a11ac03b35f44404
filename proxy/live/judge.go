package live

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// judge decides entries by one state at one moment. It is used by one goroutine only.
type judge struct {
	cfg   *EnforcerConfig
	state *State
	now   time.Time
	// lastEnforced is the state that was last enforced completely; it is nil if nothing may
	// be held. since is when the policy of state was loaded.
	lastEnforced *State
	since        time.Time
	// trusted caches the answers of Trusts by the bytes of the leaf. A caller often has
	// many tunnels, and Trusts would hash the whole chain for each of them.
	trusted map[string]trusted
}

// trusted is the answer of Trusts for a chain.
type trusted struct {
	certs  []*x509.Certificate
	answer bool
}

func (e *Enforcer) judge(state *State, now time.Time) *judge {
	return &judge{cfg: &e.cfg, state: state, now: now, lastEnforced: e.lastEnforced(), since: e.parts.since, trusted: map[string]trusted{}}
}

// forbids decides an entry as it would decide a new request, with the address that the
// entry has in place of a look-up, and checks that the proof of the caller's identity is
// still valid. why is NoReason if the entry is allowed. held says that the end of a
// forbidden entry may be held. mustGreet says that the entry must begin with a ClientHello,
// which has not come yet.
func (j *judge) forbids(e *Entry, d *Decided) (why allowlist.Reason, held, mustGreet bool) {
	why, mustGreet = decide(j.state, d, j.now)
	if why != allowlist.NoReason && !j.mayHold(d, why) {
		return why, false, false
	}
	if gone := j.proof(e, d.Request.Proof); gone != allowlist.NoReason {
		return gone, false, false
	}
	return why, why != allowlist.NoReason, mustGreet
}

// proof returns the reason for which the proof of the caller's identity is no longer
// valid, or NoReason. An expired SVID is no reason unless CloseAtExpiry is set; an
// authority that is no longer trusted is one. A proof that this function does not know
// is not trusted.
func (j *judge) proof(e *Entry, proof allowlist.Proof) allowlist.Reason {
	trusted := false
	switch proof {
	case allowlist.ProofListener, allowlist.ProofSourceMap: // the policy says whether it accepts these
		trusted = true
	case allowlist.ProofX509SVID:
		trusted = j.trusts(e.Certificates)
	case allowlist.NoProof:
	}
	switch {
	case !trusted:
		return allowlist.IdentityUntrusted
	case j.cfg.CloseAtExpiry && e.expired(j.now):
		return allowlist.IdentityExpired
	}
	return allowlist.NoReason
}

// decide returns the reason for which a state forbids an entry at a moment, or NoReason,
// and whether the entry must begin with a ClientHello that has not come yet.
func decide(state *State, entry *Decided, now time.Time) (why allowlist.Reason, mustGreet bool) {
	req := entry.Request
	if entry.isConnection() {
		return state.Knows(req.ID, req.Proof), false
	}
	req.Time = now
	d := state.Decide(req)
	switch {
	case !d.Allowed():
		return d.Reason, false
	case entry.Addr.IsValid() && d.CheckAddr(entry.Addr) != nil:
		return allowlist.ResolvedAddressDenied, false
	}
	if why = d.CheckWay(entry.Way); why != allowlist.NoReason {
		return why, false
	}
	if why = checkFirstBytes(state, &d, entry); why != allowlist.NoReason || entry.Name.IsZero() {
		return why, awaitsHello(&d, entry)
	}
	req.Dest.Host = entry.Name
	return state.Decide(req).Reason, false
}

// forbidsAt reports whether a state forbids an entry at a moment.
func (s *State) forbidsAt(d *Decided, now time.Time) bool {
	why, _ := decide(s, d, now)
	return why != allowlist.NoReason
}

// trusts returns the answer of Trusts for a chain, from the cache if it is there.
func (j *judge) trusts(certs []*x509.Certificate) bool {
	if j.cfg.Trusts == nil || len(certs) == 0 {
		return false
	}
	known, ok := j.trusted[string(certs[0].Raw)]
	if !ok || !slices.EqualFunc(known.certs, certs, (*x509.Certificate).Equal) {
		known = trusted{certs: certs, answer: j.cfg.Trusts(certs)}
		j.trusted[string(certs[0].Raw)] = known
	}
	return known.answer
}
