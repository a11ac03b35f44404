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
	return &judge{cfg: &e.cfg, state: state, now: now, trusted: map[string]trusted{}}
}

// forbids is the decision over an entry: the same as for a new request, on the
// address that it has. An SVID that has merely expired is no reason by itself, an
// authority that is no longer trusted is.
func (j *judge) forbids(e *Entry, d *Decided) allowlist.Reason {
	if reason := j.decide(d); reason != allowlist.NoReason {
		return reason
	}
	switch {
	case e.Certificates == nil:
		return allowlist.NoReason
	case !j.trusts(e.Certificates):
		return allowlist.IdentityUntrusted
	case j.cfg.CloseAtExpiry && e.expired(j.now):
		return allowlist.IdentityExpired
	}
	return allowlist.NoReason
}

// decide is what the policy says of it.
func (j *judge) decide(was *Decided) allowlist.Reason {
	req := was.Request
	if was.isConnection() {
		return j.state.Knows(req.ID, req.Source)
	}
	req.Time = j.now
	d := j.state.Decide(req)
	switch {
	case !d.Allowed():
		return d.Reason
	case was.Addr.IsValid() && d.CheckAddr(was.Addr) != nil:
		return allowlist.ResolvedAddressDenied
	case !was.Name.IsZero():
		req.Dest.Host = was.Name
		return j.state.Decide(req).Reason
	}
	return allowlist.NoReason
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
