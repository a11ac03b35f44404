package listen

import (
	"context"
	"errors"
	"net"
	"strconv"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// manyOfSource says why a connection is Limited.
const manyOfSource = "too many connections are open from this address"

// takeSlot gives a connection that was accepted its slot, and reports whether there
// is one. Where nothing need be read to say who the caller is, it says so: the
// connection then takes no place of callers without an identity.
func (c *Conn) takeSlot(ctx context.Context) (ok bool) {
	l := c.home
	defer func() { l.contain(ctx, recover()) }()
	c.peer = peerName(c.raw)
	addr := c.Caller.Addr.Addr()
	owner := limit.Owner{Share: limit.ShareProxy, Addr: allowlist.SourceOf(addr)}
	if !l.behindProxy(addr) {
		if l.cfg.TLS == nil {
			c.Caller.assume(l.cfg.Fixed, l.cfg.Mapped)
			if c.Caller.Reason == allowlist.NoReason {
				c.Caller.full(l.cfg.Slots.Enter(&c.slot, c.owner(), c.giveWay))
				if !c.Caller.Busy {
					return true
				}
			}
		}
		owner = c.stranger()
	}
	cause := l.cfg.Slots.Enter(&c.slot, owner, c.giveWay)
	if cause != limit.NoCause {
		l.cfg.Cut(cause)
	}
	return cause == limit.NoCause
}

// OverLimit reports whether the caller has more connections than it may, so that it
// is to be refused whatever it asks: Busy or Limited. It returns the limit, which is
// NoKey without one; the detail says to the caller whose limit it is, and is "" if it
// is that of all callers.
func (c *Caller) OverLimit() (detail string, over limit.Key) {
	switch {
	case c.Busy && c.Crowded:
		return "this caller has as many connections open as it may", limit.KeyConnections
	case c.Busy:
		return "", limit.KeyConnections
	case c.Limited:
		return manyOfSource, limit.KeyConnectionsPerSource
	}
	return "", limit.NoKey
}

// full notes what came of the slot of a caller with an identity.
func (c *Caller) full(cause limit.Cause) {
	c.Busy, c.Crowded = cause != limit.NoCause, cause == limit.CauseCaller
}

// giveWay closes the connection for want of a slot. It may be called at any time.
// Behind its last answer, which waits to be read, the connection loses nothing, and
// what was refused by that answer has a record: it is not told of again.
func (c *Conn) giveWay(cause limit.Cause) {
	over := c.raw.Ended()
	_ = c.raw.Close()
	if cancel := c.unwait.Load(); cancel != nil { // who waits for a place reads nothing, and does not notice
		(*cancel)()
	}
	if !over {
		c.home.cfg.Cut(cause)
	}
}

// placeProxied takes up the caller that a load balancer connects for, and reports
// whether there is a slot for it.
func (c *Conn) placeProxied() bool {
	cfg := &c.home.cfg
	if cfg.TLS == nil {
		c.Caller.assume(cfg.Fixed, cfg.Mapped)
	} else {
		c.Caller.Reason = allowlist.IdentityMissing // until the handshake
	}
	cause := c.place()
	if cause != limit.NoCause && !c.GaveWay() {
		cfg.Cut(cause)
	}
	return cause == limit.NoCause
}

// place moves the connection's slot to whom it counts for, now that it is known who
// or where its caller is. An identity without room for one more stays among the
// callers without an identity, busy; if there is none even there, place returns why.
func (c *Conn) place() limit.Cause {
	if c.Caller.Reason == allowlist.NoReason {
		if c.Caller.full(c.slot.Move(c.owner())); !c.Caller.Busy {
			return limit.NoCause
		}
	}
	return c.slot.Move(c.stranger())
}

// handshakeFailed tells of a handshake that came to nothing, unless the connection
// was closed for want of a slot, which was told.
func (c *Conn) handshakeFailed(ctx context.Context, err error) {
	switch {
	case c.GaveWay():
	case c.Caller.Limited: // it would have been told so
		c.home.cfg.Refused(ctx, c.Caller.Addr, allowlist.RateLimited, limit.KeyConnectionsPerSource.Says(manyOfSource))
	case errors.Is(err, errLeft):
		c.home.cfg.Unused(ctx, c.Caller.Addr, allowlist.IdentityMissing, "")
	default:
		c.home.cfg.HandshakeFailed(ctx, c.Caller.Addr, err)
	}
}

// owner returns whom the slot of a caller with an identity counts for.
func (c *Conn) owner() limit.Owner {
	cfg := &c.home.cfg
	switch {
	case cfg.TLS != nil:
		return limit.Owner{Share: limit.ShareIdentity, Name: c.Caller.ID.String()}
	case cfg.Mapped != nil:
		// Its identity, too: many may be in one network of IPv6.
		return limit.Owner{Share: limit.ShareLocal, Addr: allowlist.SourceOf(c.Caller.Addr.Addr()), Name: c.Caller.ID.String()}
	case c.peer != "":
		return limit.Owner{Share: limit.ShareLocal, Name: c.peer}
	}
	return limit.Owner{Share: limit.ShareLocal, Name: "listener " + cfg.Name}
}

// stranger returns whom the slot of a caller without an identity counts for: its
// address, or on a unix socket its user.
func (c *Conn) stranger() limit.Owner {
	if addr := c.Caller.Addr.Addr(); addr.IsValid() {
		return limit.Owner{Addr: allowlist.SourceOf(addr)}
	}
	if c.peer != "" {
		return limit.Owner{Name: c.peer}
	}
	return limit.Owner{Name: "listener " + c.home.cfg.Name}
}

// peerName returns the user at the other end of a unix socket, "" where that is not
// known.
func peerName(conn *tunnel.Conn) string {
	unix, ok := conn.Conn.(*net.UnixConn)
	if !ok {
		return ""
	}
	uid, ok := peerUser(unix)
	if !ok {
		return ""
	}
	return "user " + strconv.FormatUint(uint64(uid), 10)
}

// Begin says that a request has been read: until End, the connection is not closed
// for want of a slot. It reports false if that has happened already.
func (c *Conn) Begin() bool { return c.slot.Begin() }

// End says that as much as possible of a request's answer was sent: the connection
// may be closed for another one, unless another request of it is under way.
func (c *Conn) End() { c.slot.End() }

// GaveWay reports whether the connection was closed for want of a slot, which was
// counted then.
func (c *Conn) GaveWay() bool { return c.slot.GivenUp() != limit.NoCause }
