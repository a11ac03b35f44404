package dns

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

const (
	maxHead = 16 << 10
	// dohTimeout bounds an exchange over HTTP: reading, look-up and writing.
	dohTimeout = 15 * time.Second
)

// ServeDoH answers the HTTP requests of one connection (RFC 8484) until the connection
// ends. It speaks HTTP/2 if the handshake has agreed on that, and HTTP/1.1 otherwise.
func (s *Server) ServeDoH(ctx context.Context, conn *listen.Conn) {
	if s.draining.stage() == ended { // before net/http can read a request
		return
	}
	defer s.enter(listen.VerifiedOf(conn), conn.Cut)()
	h := &dohConn{server: s, conn: conn, ctx: ctx, http1: protocols(conn).HTTP1(), bodies: make(map[*http.ResponseController]struct{})}
	h.meter = meter{Conn: conn.Conn, free: int64(s.cfg.Limits.PerStream) * bytesPerQuery, spend: func() bool {
		caller := h.caller()
		left := s.spendQuery(&caller)
		if !left {
			s.counts.shed.Add(1)
		}
		return left
	}}
	one := &oneConn{conn: &h.meter, closed: make(chan struct{})}
	if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil { // until the first bytes come
		return
	}
	closed := make(chan struct{}) // closed when net/http has closed the connection
	srv := &http.Server{
		Handler: h, Protocols: protocols(conn), DisableGeneralOptionsHandler: true, // net/http would answer OPTIONS * without spending the budget
		ReadTimeout: readTimeout, WriteTimeout: dohTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHead,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: s.cfg.Limits.PerStream, MaxReadFrameSize: 16 << 10, WriteByteTimeout: writeTimeout,
		},
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // net/http logs mistakes of clients
		ConnState: func(_ net.Conn, state http.ConnState) {
			h.changed(state)
			if state == http.StateClosed {
				close(closed)
				_ = one.Close()
			}
		},
	}
	var ending sync.WaitGroup
	endNow := make(chan struct{}) // closed when the connection must end without further waiting
	forget := s.draining.add(func(at stage) {
		if at == ended {
			close(endNow)
		}
		ending.Go(func() { h.shutDown(srv, endNow, closed) })
	})
	if err := srv.Serve(one); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		s.cfg.Log.LogAttrs(ctx, slog.LevelError, "serving a connection", slog.String("listener", conn.Listener), slog.Any("error", err))
	}
	if one.accepted() { // false if the connection ended before Serve
		<-closed
	}
	forget()
	ending.Wait()
	h.wait()
	if !conn.Used() {
		s.recordUnanswered(ctx, h.transport(), conn)
	}
}

// read returns the packet of a request, if it is a query. endIncomplete ends the reading
// of a body that has not come whole. A request without a body is complete: net/http would
// take a deadline for the end of the client, and the request would have no answer.
func (h *dohConn) read(w http.ResponseWriter, r *http.Request) ([]byte, *badRequest) {
	if r.ContentLength == 0 {
		return queryIn(r)
	}
	body := http.NewResponseController(w)
	h.mu.Lock()
	h.bodies[body] = struct{}{}
	if h.ending {
		_ = body.SetReadDeadline(past())
	}
	h.mu.Unlock()
	msg, err := queryIn(r)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.bodies, body)
	if h.ending && err != nil && err.text == noBody {
		err = &badRequest{http.StatusServiceUnavailable, allowlist.Draining.Info().Text}
	}
	return msg, err
}

// queryIn returns the packet of a request, if it is a query.
func queryIn(r *http.Request) ([]byte, *badRequest) {
	if r.URL.Path != DoHPath {
		return nil, &badRequest{http.StatusNotFound, "queries are taken at " + DoHPath}
	}
	return (&HTTPRequest{Method: r.Method, Parameters: r.URL.RawQuery, ContentType: r.Header.Get("Content-Type"), Body: r.Body}).query()
}

// protocols returns the version of HTTP that the handshake has agreed on. HTTP/2 is
// marked as unencrypted, because net/http speaks HTTP/2 over TLS only on a *tls.Conn,
// and the meter wraps it.
func protocols(conn *listen.Conn) *http.Protocols {
	p := new(http.Protocols)
	secure, ok := conn.Conn.(*tls.Conn)
	p.SetUnencryptedHTTP2(ok && secure.ConnectionState().NegotiatedProtocol == "h2")
	p.SetHTTP1(!p.UnencryptedHTTP2())
	return p
}

// oneConn is a net.Listener that accepts one connection.
type oneConn struct {
	mu     sync.Mutex
	conn   net.Conn // nil when it has been accepted
	closed chan struct{}
}

// Accept returns the connection. Later calls wait for Close.
func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

// accepted reports whether the connection has been accepted.
func (l *oneConn) accepted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn == nil
}

// Close ends Accept.
func (l *oneConn) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

// Addr returns an address without a name, because the listener has none.
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// dohConn answers the requests of one connection.
type dohConn struct {
	server   *Server
	meter    meter
	ctx      context.Context //nolint:containedctx // context of the connection; net/http passes none to handlers that would do
	http1    bool            // says that the connection speaks HTTP/1.1
	handlers sync.WaitGroup

	mu         sync.Mutex // guards the fields below
	conn       *listen.Conn
	waitCalled bool                                  // says that wait has been called
	running    int                                   // number of handlers
	begun      int                                   // number of requests for which conn.Begin was called but not yet conn.End
	ending     bool                                  // says that endIncomplete has been called
	used       bool                                  // says that net/http has read the head of a request, or the preface of HTTP/2
	idle       bool                                  // says that net/http has sent all answers
	bodies     map[*http.ResponseController]struct{} // holds the requests whose body is being read
}

// enter begins a request. ok is false if the connection has ended: over HTTP/2, net/http
// does not wait for the goroutines of handlers, so that the last of them may start after
// the end. late reports whether the connection was closed for want of a slot before.
func (h *dohConn) enter() (late, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waitCalled {
		return false, false
	}
	h.handlers.Add(1)
	h.running++
	if caller := &h.conn.Caller; caller.Reason != allowlist.NoReason || isOverLimit(caller) {
		// With Begin, the connection would keep a slot of callers without an identity
		// as long as the client holds back the body or the window for the answer.
		return h.conn.LostSlot(), true
	}
	h.begun++
	return !h.conn.Begin(), true
}

// leave ends a request whose handler has returned. Most answers are sent only after
// that.
func (h *dohConn) leave() {
	defer h.handlers.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running--
	h.endRequests()
}

// changed follows the states of the connection. With HTTP/2, where many requests run at
// the same time, net/http reports the idle state when every answer has been sent or
// given up.
func (h *dohConn) changed(state http.ConnState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used = h.used || state != http.StateNew
	h.idle = state == http.StateIdle
	h.endRequests()
}

// endRequests ends the requests of an idle connection, once no handler runs: a handler may
// still be running although the client has given up its answer. The caller holds mu.
func (h *dohConn) endRequests() {
	if !h.idle || h.running > 0 {
		return
	}
	for ; h.begun > 0; h.begun-- {
		h.conn.End()
	}
}

// wait waits for the running requests, and lets no other begin.
func (h *dohConn) wait() {
	h.mu.Lock()
	h.waitCalled = true
	h.mu.Unlock()
	h.handlers.Wait()
}

// ServeHTTP answers one request.
func (h *dohConn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	late, ok := h.enter()
	if !ok {
		return
	}
	defer h.leave()
	h.meter.requestBegan()
	e := httpExchange{
		transport: h.transport(), server: h.server, conn: h.conn, caller: h.caller(), attributed: r.Header.Get(audit.AttributedField),
		read: func() ([]byte, *badRequest) { return h.read(w, r) },
	}
	e.caller.Busy = e.caller.Busy || late
	a := e.answer(h.ctx)
	err := h.write(w, r, &a)
	if a.Done != nil {
		a.Done(err)
	}
}

// write writes an answer. The error says that the client has left, as far as that is
// known: net/http may keep what is written until the handler returns. The answer is the
// last one of its connection if the server drains.
func (h *dohConn) write(w http.ResponseWriter, r *http.Request, a *HTTPAnswer) error {
	// A body that a drain has ended looks like the end of the client, so that only a
	// query is left without its answer.
	if err := r.Context().Err(); err != nil && a.Done != nil {
		return err
	}
	fields := w.Header()
	maps.Copy(fields, a.Fields)
	fields.Set("Content-Length", strconv.Itoa(len(a.Body)))
	if a.Last || h.server.draining.stage() != serving {
		fields.Set("Connection", "close") // also over HTTP/2, where net/http sends a GOAWAY for this field
	}
	w.WriteHeader(a.Status)
	_, err := w.Write(a.Body)
	if err == nil && h.http1 { // over HTTP/2 it would wait for flow control, and cost another frame
		err = http.NewResponseController(w).Flush()
	}
	return err
}

func (h *dohConn) transport() transport { return transport{listener: h.conn.Listener, wire: wireDoH} }

// caller returns the caller, re-verified if the trust bundles have changed.
func (h *dohConn) caller() listen.Caller {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn.Renew()
	return h.conn.Caller
}
