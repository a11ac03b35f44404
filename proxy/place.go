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

// A place is a request's entry in the registry. The request has it from before the dial
// until the tunnel or exchange has ended. A nil place means that the request has none.
type place struct {
	registry *live.Registry
	entry    *live.Entry
	cancel   context.CancelFunc // ends the dial, or the exchange
}

// reached is the address that a request goes to, with the way by which the look-up led
// there.
type reached struct {
	addr netip.AddrPort
	way  allowlist.Way
}

// register gives the request a new place in the registry. A shutdown waits for the place,
// and a state that forbids the request ends the returned context, in which the request is
// dialled or forwarded. An earlier place is left after that, so that the request always
// has one. counts, if not nil, returns the bytes so far.
func register(ctx context.Context, x *request, counts func() (up, down int64)) (under context.Context) {
	before := x.place
	under, cancel := context.WithCancel(ctx)
	asked := x.decision.Request
	// The entry may outlive the head, whose memory it must not keep in use.
	asked.Method, asked.Path = strings.Clone(asked.Method), strings.Clone(asked.Path)
	entry := &live.Entry{
		ID: x.open.ID, Start: time.Now(), NotAfter: x.caller.NotAfter,
		Decided: live.Decided{Request: asked, Way: x.bound.way, FirstBytes: live.FirstBytesToCome},
		End:     func(tunnel.Reason, allowlist.Reason) { cancel() }, Counts: counts,
	}
	if x.caller.Proof == allowlist.ProofX509SVID {
		entry.Certificates = x.conn.Certificates
	}
	x.place = &place{registry: x.proxy.cfg.Registry, entry: entry, cancel: cancel}
	x.place.registry.Add(entry)
	before.leave()
	return under
}

// at sets the address that the request goes to, and its way. The caller must check the
// state in force after that.
func (p *place) at(to reached) {
	p.entry.Change(func(d *live.Decided) { d.Addr, d.Way = to.addr, to.way })
}

// promote turns the place into one of a tunnel to an address. From then on, a state that
// forbids it closes the tunnel. The caller must check the state in force and why after
// that, because a state that has ended the request before does not close the tunnel.
func (p *place) promote(to reached, t *tunnel.Tunnel) {
	p.at(to)
	p.entry.Promote(func(reason tunnel.Reason, _ allowlist.Reason) { t.Close(reason) }, t.Counts)
	p.cancel()
}

// why returns the reason for which a state or the shutdown has ended the request; NoReason
// if none has.
func (p *place) why() allowlist.Reason {
	if p == nil {
		return allowlist.NoReason
	}
	return p.entry.Why()
}

// leave removes the place from the registry. It does nothing if that was done before.
func (p *place) leave() {
	if p != nil {
		p.cancel()
		p.registry.Remove(p.entry)
	}
}
