package load

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// A Session is a connection of HTTP/2 to a proxy, made by the gateway's own engine, which
// reads and writes frames of up to 64 KiB. Its tunnels may be used at the same time.
type Session struct {
	conn  *h2.Conn
	ended chan struct{}
}

// Session connects to the proxy and begins a session.
func (c *Client) Session(ctx context.Context) (*Session, error) {
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	link, err := tunnel.NewLink(conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	s := &Session{conn: h2.New(h2.Config{Client: true}, link), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		_ = s.conn.Run(context.WithoutCancel(ctx), nil) // its error is also that of every stream
	}()
	return s, nil
}

// Open opens a tunnel to the target, HOST:PORT as the proxy resolves it.
func (s *Session) Open(ctx context.Context, target string) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	fields := []h2.Field{{Name: ":method", Value: http.MethodConnect}, {Name: ":authority", Value: target}}
	stream, err := s.conn.Open(ctx, fields, false)
	if err != nil {
		return nil, err
	}
	head, err := stream.Answer(ctx)
	if status := head.Get(":status"); err == nil && status != "200" {
		err = fmt.Errorf("answer over HTTP/2 to CONNECT %s: %s", target, status)
	}
	if err != nil {
		_ = stream.Close()
		return nil, err
	}
	return stream, stream.SetDeadline(time.Time{})
}

// Close ends the session and waits for its end.
func (s *Session) Close() {
	s.conn.Close()
	<-s.ended
}
