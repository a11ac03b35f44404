package proxy

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// A place is a request's entry in the registry. The request holds it from before
// the dial until the tunnel or exchange has ended. A nil place means that it has
// none.
type place struct {
	registry *live.Registry
	entry    *live.Entry
	cancel   context.CancelFunc // ends the dial, or the exchange
}

// reached is the address that a request goes to, and how the look-up led there.
type reached struct {
	addr netip.AddrPort
	way  allowlist.Way
}

// register takes a place for the request: a shutdown waits for it, and a state
// that forbids it ends the context that it is dialled, or carried, in. One that it
// had is left afterwards, so that it is never without. Counts, if not nil, returns
// the bytes so far.
func register(ctx context.Context, x *request, counts func() (up, down int64)) (under context.Context) {
	before := x.place
	under, cancel := context.WithCancel(ctx)
	asked := x.decision.Request
	// The entry may outlive the head, which is not to be kept for a part of it.
	asked.Method, asked.Path = strings.Clone(asked.Method), strings.Clone(asked.Path)
	entry := &live.Entry{
		ID: x.open.ID, Start: time.Now(), NotAfter: x.caller.NotAfter,
		Decided: live.Decided{Request: asked, Way: x.bound.way, FirstBytes: live.FirstBytesToCome},
		End:     func(tunnel.Reason, allowlist.Reason) { cancel() }, Counts: counts,
	}
	if x.caller.Source == allowlist.SourceX509SVID {
		entry.Certificates = x.conn.Certificates
	}
	x.place = &place{registry: x.proxy.cfg.Registry, entry: entry, cancel: cancel}
	x.place.registry.Add(entry)
	before.leave()
	return under
}

// at says which address the request goes to, and on which way it came there. Whoever
// calls it must look at the state afterwards.
func (p *place) at(to reached) {
	p.entry.Change(func(d *live.Decided) { d.Addr, d.Way = to.addr, to.way })
}

// promote makes the place that of a tunnel to an address, which is closed in
// another way. The state must be looked at afterwards, and why asked: what ended
// the request before does not close the tunnel.
func (p *place) promote(to reached, t *tunnel.Tunnel) {
	p.at(to)
	p.entry.Promote(func(reason tunnel.Reason, _ allowlist.Reason) { t.Close(reason) }, t.Counts)
	p.cancel()
}

// why returns for which reason a state, or the shutdown, has ended it.
func (p *place) why() allowlist.Reason {
	if p == nil {
		return allowlist.NoReason
	}
	return p.entry.Why()
}

// leave gives the place back; the second time nothing happens.
func (p *place) leave() {
	if p != nil {
		p.cancel()
		p.registry.Remove(p.entry)
	}
}
