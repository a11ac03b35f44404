package dns

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// DoHPath is where queries are taken.
const DoHPath = "/dns-query"

const (
	dnsMessage = "application/dns-message"
	maxHead    = 16 << 10
	// dohTimeout bounds an exchange over HTTP: the lookup and both ways.
	dohTimeout = 15 * time.Second
)

// ServeDoH answers the HTTP requests of one connection (RFC 8484) until it
// ends: HTTP/1.1, or HTTP/2 if the handshake has agreed on that.
func (s *Server) ServeDoH(ctx context.Context, conn *listen.Conn) {
	if s.draining.stage() == ended { // net/http might take a request before it is told
		return
	}
	defer s.enter(conn)()
	h := &dohConn{server: s, conn: conn, ctx: ctx}
	h.meter = meter{Conn: conn.Conn, free: int64(s.cfg.Limits.PerStream) * bytesPerQuery, spend: func() bool {
		caller := h.caller()
		left := s.spendQuery(&caller)
		if !left {
			s.counts.shed.Add(1)
		}
		return left
	}}
	one := &oneConn{conn: &h.meter, closed: make(chan struct{})}
	if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil { // until the first bytes
		return
	}
	gone := make(chan struct{})
	srv := &http.Server{
		Handler: h, Protocols: protocols(conn), DisableGeneralOptionsHandler: true, // which would answer OPTIONS * beside the budget
		ReadTimeout: readTimeout, WriteTimeout: dohTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHead,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: s.cfg.Limits.PerStream, MaxReadFrameSize: 16 << 10, WriteByteTimeout: writeTimeout,
		},
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // what clients do wrong
		ConnState: func(_ net.Conn, state http.ConnState) {
			h.changed(state)
			if state == http.StateClosed {
				close(gone)
				_ = one.Close()
			}
		},
	}
	var ending sync.WaitGroup
	over := make(chan struct{}) // closed when it is to end without any further wait
	forget := s.draining.add(func(at stage) {
		if at == ended {
			close(over)
		}
		ending.Go(func() { h.shutDown(srv, over, gone) })
	})
	if err := srv.Serve(one); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
		s.cfg.Log.LogAttrs(ctx, slog.LevelError, "serving a connection", slog.String("listener", conn.Listener), slog.Any("error", err))
	}
	if one.accepted() { // or the end came before
		<-gone
	}
	forget()
	ending.Wait()
	h.wait()
	if !conn.Asked() {
		s.unasked(ctx, h.origin(), conn)
	}
}

// shutDown ends the connection of a server once its requests are answered: after
// drainingTime, or when it is over or gone.
func (h *dohConn) shutDown(srv *http.Server, over, gone <-chan struct{}) {
	later := time.NewTimer(drainingTime)
	defer later.Stop()
	select {
	case <-later.C:
	case <-over:
	case <-gone:
	case <-h.ctx.Done():
	}
	h.endUnused()
	_ = srv.Shutdown(h.ctx) // its error is that of ctx, which cuts the connection
}

// endUnused ends a connection on which no request has begun: net/http waits five
// seconds more for the first one.
func (h *dohConn) endUnused() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.used {
		_ = h.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// protocols are the version of HTTP that the handshake has agreed on. net/http,
// which knows HTTP/2 over TLS only of a bare connection of crypto/tls, takes it as
// if it came in the clear.
func protocols(conn *listen.Conn) *http.Protocols {
	p := new(http.Protocols)
	secure, ok := conn.Conn.(*tls.Conn)
	p.SetUnencryptedHTTP2(ok && secure.ConnectionState().NegotiatedProtocol == "h2")
	p.SetHTTP1(!p.UnencryptedHTTP2())
	return p
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	mu     sync.Mutex
	conn   net.Conn // nil when it was accepted
	closed chan struct{}
}

// Accept returns the connection, and later waits for Close.
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

// accepted reports whether the connection was.
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

// Addr returns that of a listener that has none.
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// dohConn answers the requests of one connection.
type dohConn struct {
	server            *Server
	meter             meter
	ctx               context.Context //nolint:containedctx // of the connection, for whose handlers net/http takes none
	handlers, lookups sync.WaitGroup

	mu      sync.Mutex // over what follows
	conn    *listen.Conn
	over    bool // wait was called
	running int  // number of handlers
	begun   int  // number of requests that the connection was told of, and not yet of their end
	used    bool // net/http has read the head of a request, or the preface of HTTP/2
	resting bool // net/http has sent all answers
}

// enter takes up a request, unless the connection is over: with HTTP/2 its
// handlers have goroutines of their own, which net/http does not wait for, and
// the last of them may start after it. It also reports whether the connection had
// been closed for want of a slot before.
func (h *dohConn) enter() (late, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return false, false
	}
	h.handlers.Add(1)
	h.running++
	if caller := &h.conn.Caller; caller.Reason != allowlist.NoReason || isOver(caller) {
		// It would keep a slot of those without an identity by a body that it holds
		// back, or a window.
		return h.conn.GaveWay(), true
	}
	h.begun++
	return !h.conn.Begin(), true
}

// leave says that a handler has returned. Most answers are sent only after that.
func (h *dohConn) leave() {
	defer h.handlers.Done()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running--
	h.settle()
}

// changed is told of the states of the connection. Of one with HTTP/2, which has
// many requests at a time, net/http says that it is idle when every answer has
// been sent, or was given up.
func (h *dohConn) changed(state http.ConnState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used = h.used || state != http.StateNew
	h.resting = state == http.StateIdle
	h.settle()
}

// settle ends the requests of a connection that rests: a handler may still run whose
// answer the client has given up. It is called with mu held.
func (h *dohConn) settle() {
	if !h.resting || h.running > 0 {
		return
	}
	for ; h.begun > 0; h.begun-- {
		h.conn.End()
	}
}

// wait waits for the requests under way and lets no other begin.
func (h *dohConn) wait() {
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	h.handlers.Wait()
	h.lookups.Wait()
}

// ServeHTTP answers one request.
func (h *dohConn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	late, ok := h.enter()
	if !ok {
		return
	}
	defer h.leave()
	h.meter.taken()
	caller := h.caller()
	if late {
		caller.Busy = true
	}
	if isOver(&caller) || caller.Excess {
		isLast(w)
	}
	msg, err := readQuery(r)
	if err != nil {
		h.server.counts.ignored.Add(1)
		if !h.server.spendQuery(&caller) {
			err = &badRequest{http.StatusTooManyRequests, "too many queries, and this one is none"}
			w.Header().Set("Retry-After", "1")
			isLast(w) // a handshake has a budget of its own
		}
		if err.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", "GET, POST")
		}
		h.markDraining(w)
		http.Error(w, err.text, err.status)
		return
	}
	h.conn.Ask()
	answered := make(dohReply, 1)
	x := h.server.take(h.origin(), answered, &caller)
	h.server.handle(h.ctx, &h.lookups, x, msg)
	x = <-answered
	h.markDraining(w)
	x.done(h.ctx, writeResponse(w, r, &x.response))
}

// isLast makes an answer the last one of its connection: over HTTP/2, too, where
// net/http makes a GOAWAY of the field.
func isLast(w http.ResponseWriter) { w.Header().Set("Connection", "close") }

// markDraining makes an answer the last one of its connection if the server drains.
func (h *dohConn) markDraining(w http.ResponseWriter) {
	if h.server.draining.stage() != serving {
		isLast(w)
	}
}

func (h *dohConn) origin() origin { return origin{listener: h.conn.Listener, wire: wireDoH} }

// caller returns who asks, by the trust of now.
func (h *dohConn) caller() listen.Caller {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn.Renew()
	return h.conn.Caller
}

// dohReply takes one response to the handler that waits for it.
type dohReply chan *exchange

func (c dohReply) reply(_ context.Context, x *exchange) { c <- x }

// writeResponse answers the request: a DNS error is a good HTTP answer (RFC 8484
// section 4.2.1). The error says that the client has left, as far as that is known:
// net/http keeps what is written until the handler returns.
func writeResponse(w http.ResponseWriter, req *http.Request, r *response) error {
	if err := req.Context().Err(); err != nil {
		return err
	}
	if r.silent { // a fault of the gateway
		http.Error(w, "there is no answer", http.StatusInternalServerError)
		return nil
	}
	head := w.Header()
	head.Set("Content-Type", dnsMessage)
	head.Set("Content-Length", strconv.Itoa(len(r.buf)))
	head.Set("Cache-Control", fmt.Sprintf("private, max-age=%d", int(r.ttl/time.Second))) // one caller's answer is none of another's
	_, err := w.Write(r.buf)
	if err == nil && req.ProtoMajor == 1 { // over HTTP/2 it would wait for the client's leave, and cost a frame more
		err = http.NewResponseController(w).Flush()
	}
	return err
}

// badRequest is an HTTP request that holds no query.
type badRequest struct {
	status int
	text   string
}

// readQuery returns the packet of a request, which may be answered.
func readQuery(r *http.Request) ([]byte, *badRequest) {
	msg, err := readPacket(r)
	if err == nil && !isQuery(msg) {
		err = &badRequest{http.StatusBadRequest, "that is no DNS query"}
	}
	return msg, err
}

// readPacket returns the packet of a request.
func readPacket(r *http.Request) ([]byte, *badRequest) {
	if r.URL.Path != DoHPath {
		return nil, &badRequest{http.StatusNotFound, "queries are taken at " + DoHPath}
	}
	switch r.Method {
	case http.MethodGet:
		text := r.URL.Query().Get("dns")
		if len(text) > base64.RawURLEncoding.EncodedLen(maxQuery) {
			return nil, &badRequest{http.StatusRequestEntityTooLarge, "the query is too long"}
		}
		msg, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(msg) == 0 {
			return nil, &badRequest{http.StatusBadRequest, "the parameter dns is no query in base64url without padding"}
		}
		return msg, nil
	case http.MethodPost:
		if r.Header.Get("Content-Type") != dnsMessage {
			return nil, &badRequest{http.StatusUnsupportedMediaType, "write a body of " + dnsMessage}
		}
		msg, err := io.ReadAll(io.LimitReader(r.Body, keptQuery))
		switch {
		case err != nil:
			return nil, &badRequest{http.StatusBadRequest, "the body cannot be read"}
		case len(msg) > maxQuery:
			return nil, &badRequest{http.StatusRequestEntityTooLarge, "the query is too long"}
		}
		return msg, nil
	}
	return nil, &badRequest{http.StatusMethodNotAllowed, "write GET or POST"}
}
