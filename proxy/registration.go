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

// A registration is a request's entry in the registry. The request has it from before the
// dial until the tunnel or exchange has ended. A nil registration means that the request
// is not registered.
type registration struct {
	registry *live.Registry
	entry    *live.Entry
	cancel   context.CancelFunc // ends the dial, or the exchange; nil for a tunnel
}

// resolvedAddr is the address that a request goes to, with the way by which the look-up
// led there.
type resolvedAddr struct {
	addr netip.AddrPort
	way  allowlist.Way
}

// register gives the request a new registration. A shutdown waits for it, and a state that
// forbids the request ends the returned context, in which the request is dialled or
// forwarded. An earlier registration is removed only then, so that the request always has
// one. counts, if not nil, returns the bytes so far.
func register(ctx context.Context, x *request, counts func() (up, down int64)) (dialCtx context.Context) {
	previous := x.registration
	dialCtx, cancel := context.WithCancel(ctx)
	asked := x.decision.Request
	// The entry may outlive the head, whose memory it must not keep in use.
	asked.Method, asked.Path = strings.Clone(asked.Method), strings.Clone(asked.Path)
	entry := &live.Entry{
		ID: x.pending.ID, Start: time.Now(), NotAfter: x.caller.NotAfter,
		Decided: live.Decided{Request: asked, Way: x.bound.way, FirstBytes: live.FirstBytesToCome},
		End:     func(tunnel.Reason, allowlist.Reason) { cancel() }, Counts: counts,
	}
	if x.caller.Proof == allowlist.ProofX509SVID {
		entry.Certificates = x.certificates
	}
	x.registration = &registration{registry: x.proxy.cfg.Registry, entry: entry, cancel: cancel}
	x.registration.registry.Add(entry)
	previous.remove()
	return dialCtx
}

// setAddr sets the address that the request goes to, and its way. The caller must check the
// state in force after that.
func (r *registration) setAddr(to resolvedAddr) {
	r.entry.Change(func(d *live.Decided) { d.Addr, d.Way = to.addr, to.way })
}

// promote turns the registration into that of a tunnel to an address. From then on, a
// state that forbids it closes the tunnel. The caller must check the state in force and
// endReason after that, because a state that has ended the request before does not close
// the tunnel.
func (r *registration) promote(to resolvedAddr, t *tunnel.Tunnel) {
	r.setAddr(to)
	r.entry.Promote(func(reason tunnel.Reason, _ allowlist.Reason) { t.Close(reason) }, t.Counts)
	r.cancel()
	r.cancel = nil // so that the tunnel does not keep the context of the dial
}

// endReason returns the reason for which a state or the shutdown has ended the request;
// NoReason if none has.
func (r *registration) endReason() allowlist.Reason {
	if r == nil {
		return allowlist.NoReason
	}
	return r.entry.Why()
}

// remove removes the registration from the registry. A second call does nothing.
func (r *registration) remove() {
	if r != nil {
		if r.cancel != nil {
			r.cancel()
		}
		r.registry.Remove(r.entry)
	}
}
