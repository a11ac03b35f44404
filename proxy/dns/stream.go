package dns

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// ServeStream answers the queries of one connection over TCP or TLS until the
// connection ends: many at the same time, each as soon as its answer is known (RFC
// 7766).
func (s *Server) ServeStream(ctx context.Context, conn *listen.Conn) {
	defer s.enter(listen.VerifiedOf(conn), conn.Cut)()
	t := &stream{
		server: s, conn: conn, began: time.Now(), transport: transport{listener: conn.Listener, wire: wireTCP, prefix: 2},
		slots: make(chan struct{}, s.cfg.Limits.PerStream), out: make(chan *exchange, s.cfg.Limits.PerStream),
	}
	if _, secure := conn.Conn.(*tls.Conn); secure {
		t.wire = wireDoT
	}
	defer s.draining.add(t.stageChanged)()
	var writing, lookups sync.WaitGroup
	writing.Go(func() { t.write(ctx) })
	t.read(ctx, &lookups)
	lookups.Wait()
	close(t.out)
	writing.Wait()
	if !conn.Used() {
		s.recordUnanswered(ctx, t.transport, conn)
	}
	if s.draining.stage() != serving { // a query may be on its way: with a lingering close its client still gets the earlier answers
		conn.Continue = func() { tunnel.Linger(conn.Conn) }
	}
}

// enter adds a connection, or a query on a connection with other requests, to the registry
// if the policy knows its caller. A state which does not know the caller any more then
// calls end. Queries on other connections are refused, and these connections time out or
// are closed.
func (s *Server) enter(from listen.Verified, end func()) (leave func()) {
	caller, id := &from.Caller, from.Caller.ID
	if isOverLimit(caller) || caller.Reason != allowlist.NoReason ||
		s.cfg.Current.Load().Knows(id, caller.Proof) != allowlist.NoReason {
		return func() {}
	}
	entry := &live.Entry{
		Start: time.Now(), NotAfter: caller.NotAfter,
		Decided: live.Decided{Request: allowlist.Request{ID: id, Proof: caller.Proof}},
		End:     func(tunnel.Reason, allowlist.Reason) { end() },
	}
	if caller.Proof == allowlist.ProofX509SVID {
		entry.Certificates = from.Certificates
	}
	s.cfg.Registry.Add(entry)
	// A state that came into force before Add has not seen the entry.
	if s.cfg.Current.Load().Knows(id, caller.Proof) != allowlist.NoReason {
		end()
	}
	return func() { s.cfg.Registry.Remove(entry) }
}

// stream is a connection whose messages follow their lengths.
type stream struct {
	server *Server
	conn   *listen.Conn
	transport
	began time.Time
	slots chan struct{}  // has one element for each query that is being read or answered
	out   chan *exchange // has room for as many
}

// read reads queries until the client ends the connection, sends something invalid, or
// is idle for too long. From a caller that is over a limit it reads one query.
func (t *stream) read(ctx context.Context, lookups *sync.WaitGroup) {
	r := bufio.NewReaderSize(t.conn, keptQuery)
	for {
		t.slots <- struct{}{}
		size, ok := t.nextLength(r)
		if !ok {
			return
		}
		msg, err := r.Peek(min(size, keptQuery))
		if err != nil {
			return
		}
		if !isQuery(msg) { // a packet that gets no answer costs its sender nothing, and could repeat for ever
			t.server.counts.ignored.Add(1)
			return
		}
		t.conn.MarkUsed()
		began := t.conn.Begin()
		t.conn.Renew()
		x := t.server.getExchange(t.transport, t, &t.conn.Caller)
		if !began {
			x.caller.Busy = true
		}
		last := isOverLimit(&x.caller)
		t.server.handle(ctx, lookups, x, msg)
		if _, err := r.Discard(size); err != nil || last || t.conn.Caller.Excess {
			return
		}
	}
}

// nextLength waits for a message and returns its length. It returns false if there is none,
// or if the message is too short to be answered: the bytes after it may not begin a
// message either.
func (t *stream) nextLength(r *bufio.Reader) (size int, ok bool) {
	if !t.setIdleDeadline(r) {
		return 0, false
	}
	if _, err := r.Peek(1); err != nil {
		return 0, false
	}
	if t.conn.SetReadDeadline(time.Now().Add(readTimeout)) != nil {
		return 0, false
	}
	prefix, err := r.Peek(2)
	if err != nil {
		return 0, false
	}
	if t.wire == wireTCP && isHello(r, prefix) {
		t.server.cfg.Recorder.Event(audit.Record{
			Event: audit.EventHandshake, Listener: t.conn.Listener, Client: t.conn.Caller.Addr,
			Reason: allowlist.TLSHandshakeFailed, Detail: "a TLS ClientHello came on a listener without TLS",
		})
		return 0, false
	}
	size = int(binary.BigEndian.Uint16(prefix))
	if _, err = r.Discard(2); err != nil || size < headLen {
		return 0, false
	}
	return size, true
}

// isHello reports whether a connection begins with a TLS ClientHello (RFC 8446 sections
// 4 and 5.1), because the client speaks DNS over TLS. As a query, the same bytes would
// have a length of 5635.
func isHello(r *bufio.Reader, prefix []byte) bool {
	const handshake, major, clientHello = 0x16, 0x03, 0x01
	if prefix[0] != handshake || prefix[1] != major {
		return false
	}
	// The head of a TLS record is its type, version and length. After it come the type
	// of the message and its length in three bytes, the first of which is zero.
	head, err := r.Peek(7)
	return err == nil && head[2] <= 4 && head[5] == clientHello && head[6] == 0
}

// setIdleDeadline sets how long the connection may wait for a message, and returns false
// if it may not wait. Bytes that have been read from the client already need no wait.
func (t *stream) setIdleDeadline(r *bufio.Reader) bool {
	for {
		at, deadline := t.server.draining.stage(), time.Now().Add(idleTimeout)
		if at != serving {
			deadline = t.server.draining.until(t.began)
		}
		switch {
		case at == ended && r.Buffered() == 0, t.conn.SetReadDeadline(deadline) != nil:
			return false
		case t.server.draining.stage() == at: // stageChanged sets its deadline after this, or did before
			return true
		}
	}
}

// stageChanged wakes up the reader in time; setIdleDeadline then checks the stage.
func (t *stream) stageChanged(at stage) {
	deadline := time.Now().Add(drainingTime)
	if at == ended {
		deadline = time.Unix(1, 0)
	}
	_ = t.conn.SetReadDeadline(deadline)
}

// reply passes a response to the writer, whose channel has room for it.
func (t *stream) reply(_ context.Context, x *exchange) { t.out <- x }

// write writes responses until the channel is closed. After an error it closes the
// connection, and only ends the remaining exchanges.
func (t *stream) write(ctx context.Context) {
	var broken error
	for x := range t.out {
		if broken == nil && !x.response.silent {
			if broken = t.send(x.response.buf); broken != nil {
				t.conn.Cut()
			}
		}
		err := broken
		if x.response.silent {
			err = nil
		}
		x.done(ctx, err)
		t.conn.End()
		<-t.slots
	}
}

func (t *stream) send(response []byte) error {
	if err := t.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := t.conn.Write(response)
	return err
}
