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

// tooManyOpen is the detail for a connection that is Limited.
const tooManyOpen = "too many connections are open from this address"

// takeSlot takes a slot for an accepted connection, and reports whether there is one.
// If the caller can be identified without reading anything, takeSlot does so, and the
// connection does not count among callers without an identity.
func (c *Conn) takeSlot(ctx context.Context) (ok bool) {
	l := c.parent
	defer func() { l.contain(ctx, recover()) }()
	c.peer = peerName(c.raw)
	addr := c.Caller.Addr.Addr()
	owner := limit.Owner{Share: limit.ShareProxy, Addr: allowlist.SourceOf(addr)}
	if !l.behindProxy(addr) {
		if l.cfg.TLS == nil {
			c.Caller.assignIdentity(l.cfg.Fixed, l.cfg.Mapped)
			if c.Caller.Reason == allowlist.NoReason {
				c.Caller.setBusy(l.cfg.Slots.Enter(&c.slot, c.identifiedOwner(), c.loseSlot))
				if !c.Caller.Busy {
					return true
				}
			}
		}
		owner = c.unidentifiedOwner()
	}
	cause := l.cfg.Slots.Enter(&c.slot, owner, c.loseSlot)
	if cause != limit.NoCause {
		l.cfg.Shed(cause)
	}
	return cause == limit.NoCause
}

// OverLimit reports whether the caller has more connections than it may, so that every
// request of it must be refused: it returns the limit, or NoKey if the caller is
// neither Busy nor Limited. The detail tells the caller whose limit that is, and is ""
// if it is the limit of all callers together.
func (c *Caller) OverLimit() (detail string, key limit.Key) {
	switch {
	case c.Busy && c.Crowded:
		return "this caller has as many connections open as it may", limit.KeyConnections
	case c.Busy:
		return "", limit.KeyConnections
	case c.Limited:
		return tooManyOpen, limit.KeyConnectionsPerSource
	}
	return "", limit.NoKey
}

// setBusy sets Busy and Crowded from the result of taking a slot for a caller with an
// identity.
func (c *Caller) setBusy(cause limit.Cause) {
	c.Busy, c.Crowded = cause != limit.NoCause, cause == limit.CauseCaller
}

// loseSlot closes the connection for want of a slot. It may be called at any time. If
// the last answer was sent and only waits to be read, Shed is not called: the connection
// loses nothing, and a request that this answer refused has a record already.
func (c *Conn) loseSlot(cause limit.Cause) {
	answered := c.raw.Ended() // the last answer was sent
	_ = c.raw.Close()
	if cancel := c.cancelPermitWait.Load(); cancel != nil { // a connection that waits for a permit is not read, and does not notice the end otherwise
		(*cancel)()
	}
	if !answered {
		c.parent.cfg.Shed(cause)
	}
}

// assignProxied identifies a caller behind a load balancer, as far as that needs no TLS
// handshake, and moves the slot to the caller. It reports whether there is one for it.
func (c *Conn) assignProxied() bool {
	cfg := &c.parent.cfg
	if cfg.TLS == nil {
		c.Caller.assignIdentity(cfg.Fixed, cfg.Mapped)
	} else {
		c.Caller.Reason = allowlist.IdentityMissing // until the handshake is complete
	}
	cause := c.assignSlot()
	if cause != limit.NoCause && !c.LostSlot() {
		cfg.Shed(cause)
	}
	return cause == limit.NoCause
}

// assignSlot moves the connection's slot to the caller, whose identity or address is now
// known. If an identity has no slot left, the connection counts among the callers
// without an identity, and is Busy. If these callers have no slot left either,
// assignSlot returns the cause, and the connection keeps the slot that it has.
func (c *Conn) assignSlot() limit.Cause {
	if c.Caller.Reason == allowlist.NoReason {
		if c.Caller.setBusy(c.slot.Move(c.identifiedOwner())); !c.Caller.Busy {
			return limit.NoCause
		}
	}
	return c.slot.Move(c.unidentifiedOwner())
}

// handshakeFailed reports a failed handshake, unless the connection was closed for want
// of a slot, which has been reported.
func (c *Conn) handshakeFailed(ctx context.Context, err error) {
	switch {
	case c.LostSlot():
	case c.Caller.Limited: // an answer would have said so
		c.parent.cfg.Refused(ctx, c.Caller.Addr, allowlist.RateLimited, limit.KeyConnectionsPerSource.WithDetail(tooManyOpen))
	case errors.Is(err, errLeft):
		c.parent.cfg.Unused(ctx, c.Caller.Addr, allowlist.IdentityMissing, "")
	default:
		c.parent.cfg.HandshakeFailed(ctx, c.Caller.Addr, err)
	}
}

// identifiedOwner returns the owner of the slot of a caller with an identity.
func (c *Conn) identifiedOwner() limit.Owner {
	cfg := &c.parent.cfg
	switch {
	case cfg.TLS != nil:
		return limit.Owner{Share: limit.ShareIdentity, Name: c.Caller.ID.String()}
	case cfg.Mapped != nil:
		// With the identity, because one IPv6 network may contain many callers.
		return limit.Owner{Share: limit.ShareLocal, Addr: allowlist.SourceOf(c.Caller.Addr.Addr()), Name: c.Caller.ID.String()}
	case c.peer != "":
		return limit.Owner{Share: limit.ShareLocal, Name: c.peer}
	}
	return limit.Owner{Share: limit.ShareLocal, Name: "listener " + cfg.Name}
}

// unidentifiedOwner returns the owner of the slot of a caller without an identity: its
// address, or its user on a unix socket.
func (c *Conn) unidentifiedOwner() limit.Owner {
	if addr := c.Caller.Addr.Addr(); addr.IsValid() {
		return limit.Owner{Addr: allowlist.SourceOf(addr)}
	}
	if c.peer != "" {
		return limit.Owner{Name: c.peer}
	}
	return limit.Owner{Name: "listener " + c.parent.cfg.Name}
}

// peerName returns a name for the user at the other end of a unix socket, or "" if the
// user is not known.
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

// Begin notes that a request has been read: until End, the connection is not closed for
// want of a slot. Begin returns false if it has been closed already.
func (c *Conn) Begin() bool { return c.slot.Begin() }

// End notes that as much as possible of a request's answer was sent: the connection may
// be closed to free its slot, unless another of its requests is running.
func (c *Conn) End() { c.slot.End() }

// EnterStream takes another slot of the caller, for one of many requests that the
// connection carries at the same time; Slot.Leave gives it back. It returns the cause if
// there is none. It must not be called while Renew is called.
func EnterStream(c *Conn, slot *limit.Slot) limit.Cause {
	owner := c.unidentifiedOwner()
	if c.Caller.Reason == allowlist.NoReason && !c.Caller.Busy {
		owner = c.identifiedOwner()
	}
	return c.parent.cfg.Slots.Enter(slot, owner, func(limit.Cause) {}) // it is given up only in the moment before its Begin, which reports that
}

// LostSlot reports whether the connection was closed for want of a slot. Config.Shed has
// counted it.
func (c *Conn) LostSlot() bool { return c.slot.GivenUp() != limit.NoCause }
