package resolve

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// askUDP asks over a new socket, so that nobody can guess its port. The socket is
// connected, so that the kernel drops packets from other addresses. A packet that is
// not the answer to the query is ignored, because the real answer may still come.
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
	buf := make([]byte, 4096) // larger than the size in the query, because some servers send more
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

// ended returns why ctx is done, if it is, and otherwise the error of the socket.
func ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return err
}
