package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/hello"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// DefaultHelloTimeout is the default of Config.HelloTimeout.
const DefaultHelloTimeout = 10 * time.Second

// accessDenied is the TLS alert access_denied, fatal (RFC 8446 section 6).
func accessDenied() []byte { return []byte{21, 3, 3, 0, 2, 2, 49} }

// firstBytes checks the first bytes of one tunnel: a ClientHello in them must ask for the
// destination that was decided. The state that is in force when they come decides how
// strictly they are checked. Nothing keeps a firstBytes when they have come.
type firstBytes struct {
	expected
	relay   *relay // the tunnel
	current *live.Current

	reader hello.Reader
	wait   time.Duration // how long the client may take to send the first bytes
	// observed is the decision about the name that the ClientHello asks for, if it is
	// let through only because the caller is observed; nil otherwise.
	observed *stateDecision
}

// expected holds what the first bytes are compared with.
type expected struct {
	request    allowlist.Request
	names      []resolve.Binding // names by which the address was allowed; nil if it was allowed otherwise
	addr       netip.AddrPort    // the address that was dialled
	state      *live.State       // the state that opened the tunnel; nil if inspection holds for every state
	inspection inspection        // how that state checks the first bytes
}

// inspection says how first bytes are checked. The zero value refuses what does not match.
type inspection struct {
	mode allowlist.TLSMode
	ech  allowlist.ECHMode
	held bool // the state forbids the tunnel, whose end is held
}

// stateDecision is a decision about a name, with the generation of the state that made it.
type stateDecision struct {
	allowlist.Decision
	generation uint64
}

// newFirstBytes returns the check of the first bytes of a tunnel to an address.
func newFirstBytes(x *request, r *relay, addr netip.AddrPort) *firstBytes {
	c := &firstBytes{relay: r, current: x.proxy.cfg.Current}
	if x.read.IsPlain() { // the origin has agreed to an upgrade in clear text
		c.inspection.mode = allowlist.TLSOff
		return c
	}
	c.request, c.names, c.addr = x.decision.Request, x.bound.names, addr
	if c.inspection.mode, c.inspection.ech = x.decision.TLS(); len(c.names) > 0 {
		c.inspection = c.inspectionUnder(x.state)
	}
	c.state = x.state // set last, because inspectionUnder returns inspection for this state
	return c
}

// inspectionUnder returns how the first bytes are checked under a state. If the state
// forbids the tunnel, which then exists only because its end is held, they are checked as
// before.
func (e *expected) inspectionUnder(state *live.State) inspection {
	if state == e.state || e.request.Dest.Host.IsZero() {
		return e.inspection
	}
	req := e.request
	req.Time = time.Now()
	d := state.Decide(req)
	if !d.Allowed() {
		return inspection{mode: e.inspection.mode, ech: e.inspection.ech, held: true}
	}
	var how inspection
	how.mode, how.ech = d.TLS()
	proved := false // see decideByBoundNames
	for _, b := range e.names {
		other, ok := decideBoundName(state, req, e.addr, b)
		if !ok || b.Mapped && proved {
			continue
		}
		proved = !b.Mapped
		if stricter(other, d) {
			d = other
			how.mode, _ = d.TLS()
		}
		if _, ech := other.TLS(); ech == allowlist.ECHRefuse {
			how.ech = ech
		}
	}
	return how
}

// gate returns the gate that checks the first bytes of the tunnel, or nil if they are not
// checked.
func (c *firstBytes) gate(ctx context.Context, timeout time.Duration) *tunnel.Gate {
	c.wait = timeout
	how := c.initialInspection()
	switch how.mode {
	case allowlist.TLSOff:
		return nil
	case allowlist.TLSAuto: // the gate waits while the client is silent, unless a later state requires TLS
		c.relay.registration.entry.Await(c.relay.Hurry)
		if c.inspectionUnder(c.current.Load()).mode == allowlist.TLSRequire { // that state came before Await, and could not call Hurry
			c.relay.Hurry()
		}
	case allowlist.TLSRequire, allowlist.TLSDefault:
	}
	return &tunnel.Gate{
		Inspect:  func(p []byte, last bool) tunnel.Ruling { return c.inspect(ctx, p, last) },
		Wait:     timeout,
		Speak:    how.mode == allowlist.TLSRequire,
		Farewell: accessDenied(),
	}
}

// initialInspection returns how the first bytes are checked under the state in force. If
// they are not checked, it notes in the entry that they are unseen, for later states.
func (c *firstBytes) initialInspection() inspection {
	for {
		state := c.current.Load()
		how := c.inspectionUnder(state)
		if how.mode == allowlist.TLSOff {
			c.relay.registration.entry.Change(func(d *live.Decided) { d.FirstBytes = live.FirstBytesUnseen })
			if c.current.Load() != state {
				c.relay.registration.entry.Change(func(d *live.Decided) { d.FirstBytes = live.FirstBytesToCome })
				continue
			}
		}
		return how
	}
}

// inspect decides about the first bytes that have come. last says that no more will be waited
// for.
func (c *firstBytes) inspect(ctx context.Context, p []byte, last bool) tunnel.Ruling {
	h, err := c.reader.Read(p)
	for {
		state := c.current.Load()
		how := c.inspectionUnder(state)
		v := c.evaluate(how, p, last, h, err)
		if v.ruling == tunnel.More {
			return v.ruling
		}
		if v.ruling == tunnel.Pass {
			c.relay.registration.entry.Change(func(d *live.Decided) { d.FirstBytes, d.ECH, d.Hidden = v.first, v.seen.ECH, v.hidden })
			if c.current.Load() != state { // the new state may have been enforced before the change of the entry
				continue
			}
			if how.held { // the last enforced policy may not be the one that opened the tunnel
				c.relay.registration.registry.JudgeAgain()
			}
		}
		c.finish(ctx, state, v)
		return v.ruling
	}
}

// checkResult is the result of checking first bytes under one state.
type checkResult struct {
	ruling tunnel.Ruling
	reason allowlist.Reason // NoReason if they pass
	detail string           // explains the reason in the record; "" if there is nothing to add
	seen   audit.Hello      // description of the first bytes, for the record
	first  live.FirstBytes  // what the first bytes were, for later states
	hidden []live.Hidden    // names that ECH may hide
}

// finish records the result of the check under a state.
func (c *firstBytes) finish(ctx context.Context, state *live.State, v checkResult) {
	c.relay.registration.entry.Await(nil)
	if v.first != live.FirstBytesUnseen {
		c.relay.record.SetHello(v.seen)
	}
	if v.ruling == tunnel.Refuse {
		c.relay.denied = v.reason
		if v.detail != "" {
			c.relay.record.SetDetail(v.detail)
		}
		c.refuse(ctx, state)
		return
	}
	if o := c.observed; o != nil {
		c.relay.record.Observe(ctx, o.Decision, o.generation)
	}
}

// refuse records the refusal of the first bytes under a state. If that is not the state
// which opened the tunnel, and it allows the tunnel, the record has its decision;
// otherwise the record has the decision that opened the tunnel.
func (c *firstBytes) refuse(ctx context.Context, state *live.State) {
	if state != c.state && state != nil {
		if d := c.decide(state, c.request.Dest.Host); d.Allowed() {
			c.relay.record.RefuseByState(ctx, c.relay.denied, d.Decision, d.generation)
			return
		}
	}
	c.relay.record.Refuse(ctx, c.relay.denied)
}

// evaluate checks first bytes against the destination. h is the ClientHello in them if
// err is nil.
func (c *firstBytes) evaluate(how inspection, p []byte, last bool, h hello.Hello, err error) checkResult {
	if how.mode == allowlist.TLSOff {
		return checkResult{ruling: tunnel.Pass}
	}
	if len(p) > 0 && how.mode == allowlist.TLSAuto {
		switch begins, sure := hello.Begins(p); {
		case !begins:
			return checkResult{ruling: tunnel.Pass, seen: audit.Hello{TLS: audit.TLSNone}, first: live.FirstBytesNotTLS}
		case !sure && !last:
			return checkResult{ruling: tunnel.More}
		}
	}
	if errors.Is(err, hello.ErrIncomplete) && !last {
		return checkResult{ruling: tunnel.More}
	}
	v := checkResult{seen: audit.Hello{TLS: audit.TLSNone}, reason: allowlist.NotTLS, detail: c.explainNoHello(p, err), first: live.FirstBytesNotTLS}
	if err == nil {
		v.seen, v.reason = c.compare(h, how.ech)
		v.first = live.FirstBytesHello
		if h.Name == "" {
			v.first = live.FirstBytesNoName
		}
	}
	if v.reason == allowlist.NoReason {
		v.ruling = tunnel.Pass
	}
	if h.ECH {
		for _, b := range c.names {
			if b.Mapped && !c.names[0].Mapped { // as in decideByBoundNames; names that are mapped come last
				break
			}
			v.hidden = append(v.hidden, live.Hidden{Name: b.Name, Way: b.Way})
		}
	}
	return v
}

// explainNoHello explains why first bytes are not a ClientHello; it returns "" if they
// are one.
func (c *firstBytes) explainNoHello(p []byte, err error) string {
	switch {
	case err == nil:
		return ""
	case !errors.Is(err, hello.ErrIncomplete):
		return err.Error()
	case len(p) == 0:
		return fmt.Sprintf("the client sent nothing within %v", c.wait)
	}
	return fmt.Sprintf("%v: %d bytes came before the end of the client's way or within %v", err, len(p), c.wait)
}

// compare compares a ClientHello with the destination. mode says how the rule of the
// destination treats Encrypted Client Hello.
func (c *firstBytes) compare(h hello.Hello, mode allowlist.ECHMode) (seen audit.Hello, reason allowlist.Reason) {
	c.observed = nil
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
	default: // a name that no rule allows is a mismatch, even if it is let through
		seen.TLS, reason = audit.TLSMismatch, allowlist.SNIMismatch
		if err != nil {
			break
		}
		switch d := c.decideOtherName(host); d.Verdict {
		case allowlist.Allow:
			seen.TLS, reason = audit.TLSMatch, allowlist.NoReason
			if _, ech := d.TLS(); ech == allowlist.ECHRefuse && len(c.names) > 0 { // inspectionUnder has left out names that are mapped
				mode = ech
			}
		case allowlist.Observe:
			c.observed, reason = &d, allowlist.NoReason
		case allowlist.Deny, allowlist.Fail:
		}
	}
	if h.ECH && mode == allowlist.ECHRefuse {
		reason = allowlist.ECHRefused
	}
	return seen, reason
}

// decideOtherName decides about a name that is not the destination, under the state in
// force. The name may be one of those by which the address was allowed, if it still leads
// there. In a tunnel to another address, it may be any name that the caller may reach on
// the same port. Every other name is denied. From then on, every new state decides about
// the name.
func (c *firstBytes) decideOtherName(name allowlist.Host) stateDecision {
	for _, b := range c.names {
		if b.Name != name {
			continue
		}
		c.relay.registration.entry.Change(func(d *live.Decided) { d.Request.Dest.Host, d.Way = name, b.Way })
		d := c.decide(c.current.Load(), name) // loaded after Change, so that no state is missed
		if d.CheckAddr(c.addr) != nil || d.CheckWay(b.Way) != allowlist.NoReason {
			return stateDecision{}
		}
		return d
	}
	if name.IsAddr() || !c.request.Dest.Host.IsAddr() {
		return stateDecision{}
	}
	c.relay.registration.entry.Change(func(d *live.Decided) { d.Name = name })
	return c.decide(c.current.Load(), name) // loaded after Change, as above
}

// decide returns the decision of a state about a name in place of the destination.
func (c *firstBytes) decide(state *live.State, name allowlist.Host) (d stateDecision) {
	req := c.request
	req.Dest.Host, req.Time = name, time.Now()
	if d.Decision = state.Decide(req); state != nil {
		d.generation = state.Generation
	}
	return d
}
