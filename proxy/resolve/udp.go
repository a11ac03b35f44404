package resolve

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// askUDP asks over a socket of its own, so that the port is one that nobody
// can guess, connected, so that the kernel drops what comes from elsewhere. A
// packet that is no answer to the query is passed over: the true one may still
// come.
func (u *upstream) askUDP(ctx context.Context, q Question, newQuery newQuery) (*wire.Message, error) {
	query, err := newQuery(q, true)
	if err != nil {
		return nil, err
	}
	if !u.descriptors.Take(1) {
		return nil, limit.ErrNoDescriptor
	}
	defer u.descriptors.Give(1)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", u.server.Addr.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(query.Packet()); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096) // larger than what we ask for: some servers send more
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, ended(ctx, err)
		}
		msg, err := query.Parse(buf[:n])
		switch {
		case err == nil:
			return msg.Unauthenticated(), nil
		case !errors.Is(err, wire.ErrStray):
			return nil, err
		}
	}
}

// ended returns why waiting ended, if it did, in place of what a socket made
// of it.
func ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}
