package live

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// judge decides over entries by one state at one moment. It belongs to one
// goroutine.
type judge struct {
	cfg   *EnforcerConfig
	state *State
	now   time.Time
	// before is what was last enforced whole, if the policy of the state, which came
	// at since, may be held; nil if it may not.
	before *State
	since  time.Time
	// trusted remembers answers by the bytes of the leaf: few callers have many
	// tunnels, and Trusts would hash every chain to know it again.
	trusted map[string]trusted
}

// trusted is what Trusts said of a chain.
type trusted struct {
	certs  []*x509.Certificate
	answer bool
}

func (e *Enforcer) judge(state *State, now time.Time) *judge {
	return &judge{cfg: &e.cfg, state: state, now: now, before: e.before(), since: e.parts.since, trusted: map[string]trusted{}}
}

// forbids is the decision over an entry: the same as for a new request, on the
// address that it has, and whether its caller may still rest on its proof. Held
// means that it stays open if the policy is held; hello, that it must begin with a
// ClientHello, which is to come.
func (j *judge) forbids(e *Entry, d *Decided) (why allowlist.Reason, held, hello bool) {
	why, hello = decide(j.state, d, j.now)
	if why != allowlist.NoReason && !j.mayHold(d, why) {
		return why, false, false
	}
	if gone := j.proof(e, d.Request.Source); gone != allowlist.NoReason {
		return gone, false, false
	}
	return why, why != allowlist.NoReason, hello
}

// proof returns why the caller's identity no longer counts. An SVID that has merely
// expired is no reason by itself, an authority that is no longer trusted is. A
// proof that this function does not know is not trusted.
func (j *judge) proof(e *Entry, source allowlist.Source) allowlist.Reason {
	trusted := false
	switch source {
	case allowlist.SourceListener, allowlist.SourceMap: // the policy itself accepts the listener's word
		trusted = true
	case allowlist.SourceX509SVID:
		trusted = j.trusts(e.Certificates)
	case allowlist.SourceNone:
	}
	switch {
	case !trusted:
		return allowlist.IdentityUntrusted
	case j.cfg.CloseAtExpiry && e.expired(j.now):
		return allowlist.IdentityExpired
	}
	return allowlist.NoReason
}

// decide is what a state says of an entry at a moment, and whether it must begin with
// a ClientHello which is to come.
func decide(state *State, was *Decided, now time.Time) (why allowlist.Reason, hello bool) {
	req := was.Request
	if was.isConnection() {
		return state.Knows(req.ID, req.Source), false
	}
	req.Time = now
	d := state.Decide(req)
	switch {
	case !d.Allowed():
		return d.Reason, false
	case was.Addr.IsValid() && d.CheckAddr(was.Addr) != nil:
		return allowlist.ResolvedAddressDenied, false
	}
	if why = d.CheckWay(was.Way); why != allowlist.NoReason {
		return why, false
	}
	if why = checkFirstBytes(state, &d, was); why != allowlist.NoReason || was.Name.IsZero() {
		return why, mustBeHello(&d, was)
	}
	req.Dest.Host = was.Name
	return state.Decide(req).Reason, false
}

// forbidsAt reports whether a state forbids an entry at a moment.
func (s *State) forbidsAt(d *Decided, now time.Time) bool {
	why, _ := decide(s, d, now)
	return why != allowlist.NoReason
}

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
