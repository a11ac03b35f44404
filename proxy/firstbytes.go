package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/hello"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// DefaultHelloTimeout is what a zero Config.HelloTimeout means.
const DefaultHelloTimeout = 10 * time.Second

// accessDenied is the TLS alert access_denied, fatal (RFC 8446 section 6).
func accessDenied() []byte { return []byte{21, 3, 3, 0, 2, 2, 49} }

// firstBytes checks the first bytes of one tunnel: what the origin will see
// must ask for the destination that was decided.
type firstBytes struct {
	request allowlist.Request
	mode    allowlist.TLSMode
	ech     allowlist.ECHMode
	current *live.Current
	record  *audit.Tunnel
	names   []allowlist.Host // of an address that was allowed by these; nil otherwise
	addr    netip.AddrPort   // that was dialled
	entry   *live.Entry      // what the registry knows of the tunnel

	reader hello.Reader
	reason allowlist.Reason // why the first bytes were refused
	// observed is the decision about the name that the ClientHello asks for, if
	// only observation lets it through; nil otherwise.
	observed *ruling
}

// ruling is a decision about a name, and the generation of the state that made
// it.
type ruling struct {
	allowlist.Decision
	generation uint64
}

// newFirstBytes returns the check that was decided for a tunnel to an address.
func newFirstBytes(x *request, r *relaying, addr netip.AddrPort) *firstBytes {
	c := &firstBytes{
		request: x.decision.Request, current: x.proxy.cfg.Current, record: r.record, names: x.bound.names,
		addr: addr, entry: r.place.entry,
	}
	if c.mode, c.ech = x.decision.TLS(); x.read.IsPlain() { // what was asked for in clear
		c.mode, c.request = allowlist.TLSOff, allowlist.Request{}
	}
	if x.bound.ech == allowlist.ECHRefuse {
		c.ech = x.bound.ech
	}
	return c
}

// gate returns the check as a gate of its tunnel; nil if nothing is checked.
func (c *firstBytes) gate(ctx context.Context, timeout time.Duration) *tunnel.Gate {
	if c.mode == allowlist.TLSOff {
		return nil
	}
	return &tunnel.Gate{
		Look:     func(p []byte, last bool) tunnel.Ruling { return c.look(ctx, p, last) },
		Wait:     timeout,
		Speak:    c.mode == allowlist.TLSRequire,
		Farewell: accessDenied(),
	}
}

func (c *firstBytes) look(ctx context.Context, p []byte, last bool) tunnel.Ruling {
	if len(p) > 0 && c.mode == allowlist.TLSAuto {
		switch begins, sure := hello.Begins(p); {
		case !begins:
			c.record.Saw(audit.Hello{TLS: audit.TLSNone})
			return tunnel.Pass
		case !sure && !last:
			return tunnel.More
		}
	}
	h, err := c.reader.Read(p)
	if errors.Is(err, hello.ErrIncomplete) && !last {
		return tunnel.More
	}
	seen, reason := audit.Hello{TLS: audit.TLSNone}, allowlist.NotTLS
	if err == nil {
		seen, reason = c.compare(h)
	}
	c.record.Saw(seen)
	if reason != allowlist.NoReason {
		c.reason = reason
		c.record.Refuse(ctx, reason)
		return tunnel.Refuse
	}
	if o := c.observed; o != nil {
		c.observed = nil // it is not needed for as long as the tunnel lasts
		c.record.Observe(ctx, o.Decision, o.generation)
	}
	return tunnel.Pass
}

// compare holds a ClientHello against the destination.
func (c *firstBytes) compare(h hello.Hello) (seen audit.Hello, reason allowlist.Reason) {
	seen = audit.Hello{SNI: h.Name, ECH: h.ECH}
	literal := c.request.Dest.Host.IsAddr()
	host, err := allowlist.ParseHost(h.Name)
	switch {
	case h.Name == "":
		seen.TLS = audit.TLSAbsent
		if !literal {
			reason = allowlist.SNIMissing
		}
	case err == nil && host == c.request.Dest.Host:
		seen.TLS = audit.TLSMatch
	default: // what a rule does not allow is never a match, also where it is let through
		seen.TLS, reason = audit.TLSMismatch, allowlist.SNIMismatch
		if err != nil {
			break
		}
		switch d := c.another(host); d.Verdict {
		case allowlist.Allow:
			seen.TLS, reason = audit.TLSMatch, allowlist.NoReason
		case allowlist.Observe:
			c.observed, reason = &d, allowlist.NoReason
		case allowlist.Deny, allowlist.Fail:
		}
	}
	if h.ECH && c.ech == allowlist.ECHRefuse {
		reason = allowlist.ECHRefused
	}
	return seen, reason
}

// another decides, by the state in force, about a name that is not the
// destination: one of those that the address was allowed by, which must still
// lead there, or in a tunnel to an address any that the caller may reach on the
// same port. Every other name is denied. From then on every new state decides
// about the name.
func (c *firstBytes) another(name allowlist.Host) ruling {
	if slices.Contains(c.names, name) {
		c.entry.Change(func(d *live.Decided) { d.Request.Dest.Host = name })
		d := c.decide(name) // after that: a state that came before would not be asked
		if d.CheckAddr(c.addr) != nil {
			return ruling{}
		}
		return d
	}
	if name.IsAddr() || !c.request.Dest.Host.IsAddr() {
		return ruling{}
	}
	c.entry.Change(func(d *live.Decided) { d.Name = name })
	return c.decide(name) // as above
}

// decide asks the state in force about a name in place of the destination.
func (c *firstBytes) decide(name allowlist.Host) (d ruling) {
	req := c.request
	req.Dest.Host, req.Time = name, time.Now()
	state := c.current.Load()
	if d.Decision = state.Decide(req); state != nil {
		d.generation = state.Generation
	}
	return d
}

// why returns the reason of the closed set by which a tunnel was ended.
func (c *firstBytes) why(reason tunnel.Reason, p *place) allowlist.Reason {
	switch reason { //nolint:exhaustive // the others are no refusals
	case tunnel.Revoked, tunnel.Quarantined:
		return p.why()
	case tunnel.Denied:
		return c.reason
	case tunnel.Limit:
		return allowlist.UploadLimit
	}
	return allowlist.NoReason
}
