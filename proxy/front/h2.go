package front

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// H2 is the front of HTTP/2. Each stream is one request. It is safe for concurrent use.
type H2 struct {
	cfg Config

	mu       sync.Mutex // guards the fields below
	open     map[*h2.Conn]struct{}
	draining bool
	stopped  bool
}

// serve answers the requests of one connection, whose preface was read, until it has ended
// and all its requests with it. early are the bytes that came behind the preface.
func (f *H2) serve(ctx context.Context, conn Conn, early []byte, handler Handler) {
	link, err := tunnel.NewLink(conn.Conn)
	if err != nil {
		return
	}
	refusals := new(atomic.Int32)
	session := h2.New(h2.Config{
		Serve: func(s *h2.Stream, head h2.Head) func() {
			x := &exchange{front: f, stream: s, refusals: refusals}
			defer x.contain(conn.Panicked)
			return x.serve(parseStream(head, conn.IsQueryAuthority), handler)
		},
		MaxStreams: f.cfg.Streams, HeadLimit: f.cfg.HeadLimit, HeadTimeout: f.cfg.HeadTimeout,
		Idle: f.cfg.KeepAlive, Max: f.cfg.Max, Memory: f.cfg.Memory,
	}, link)
	f.add(session)
	defer f.remove(session)
	if broken, ok := errors.AsType[*h2.Error](session.Run(ctx, early)); ok && conn.Broken != nil {
		conn.Broken(broken.IsFlood(), broken.Error())
	}
}

// add adds a connection; remove removes it.
func (f *H2) add(session *h2.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		f.open = make(map[*h2.Conn]struct{})
	}
	f.open[session] = struct{}{}
	switch {
	case f.stopped:
		session.CloseIdle()
	case f.draining:
		session.Leave()
	}
}

func (f *H2) remove(session *h2.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, session)
}

// drain asks the clients of all connections to open no more streams.
func (f *H2) drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.draining = true
	for session := range f.open {
		go session.Leave() // it may wait for a client that does not read
	}
}

// stop ends every connection without a stream, now or later.
func (f *H2) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	for session := range f.open {
		session.CloseIdle()
	}
}

// exchange is one stream with its request and the answer.
type exchange struct {
	front    *H2
	stream   *h2.Stream
	refusals *atomic.Int32 // number of requests of the connection that were refused with 407
}

// serve answers the request of a stream. It returns the function that relays the tunnel,
// or nil if none was opened.
func (x *exchange) serve(r *Request, handler Handler) (run func()) {
	r.Client, r.Stream = x.stream, true
	switch {
	case r.Query != nil:
		_ = x.stream.SetReadDeadline(time.Now().Add(x.front.cfg.HeadTimeout)) // a stream takes any deadline
		r.Query.Body = &streamQueryBody{stream: x.stream, left: r.Body, awaited: r.Body != 0 && r.Head.Lists("Expect", "100-continue")}
	case r.IsPlain():
		r.Client = plainStream{x.stream}
	}
	a := handler.Handle(x.stream.Context(), r)
	defer a.done(errNotWritten)
	switch a.Kind {
	case Opened:
		fields := []h2.Field{{Name: ":status", Value: "200"}}
		if a.Note != "" {
			fields = append(fields, h2.Field{Name: "Proxy-Status", Value: a.Note})
		}
		err := x.stream.WriteFields(fields, false)
		a.done(err)
		if err == nil {
			return a.Run
		}
	case Local:
		if a.Last {
			x.stream.LeaveConn() // as in refuse
		}
		a.done(x.respond(r, &a.Response))
	case Forwarded:
		a.Done = nil // the handler has written the answer itself
		if a.End == Abort {
			x.stream.Reset(http2.ErrCodeInternal)
		}
	case Refused:
		x.refuse(r, &a)
	}
	return nil
}

// GoneReason returns the reason to refuse a request whose context has ended before its
// answer: the client has left, or its stream was ended because the client has broken the
// protocol.
func GoneReason(ctx context.Context) allowlist.Reason {
	if _, broken := errors.AsType[*h2.Error](context.Cause(ctx)); broken {
		return allowlist.MalformedHeader
	}
	return allowlist.ClientGone
}

// contain ends the stream after a panic, which must not end the others.
func (x *exchange) contain(panicked func(cause any, stack []byte)) {
	if panicked == nil {
		return
	}
	if cause := recover(); cause != nil {
		x.stream.Reset(http2.ErrCodeInternal)
		panicked(cause, debug.Stack())
	}
}

// refuse writes a refusal.
func (x *exchange) refuse(r *Request, a *Answer) {
	resp := a.refusal(r, x.front.cfg.Disclosure)
	if resp.Status == 0 { // the stream is reset when serve has returned
		a.done(nil)
		return
	}
	if a.Last || resp.Status == http.StatusProxyAuthRequired && x.refusals.Add(1) >= maxRefused {
		x.stream.LeaveConn() // first, so that no other request follows the answer
	}
	a.done(x.write(resp.Status, resp.Fields, resp.Body))
}

// plainStream is the stream of a plain request, on which the handler writes the answer of
// an origin.
type plainStream struct{ *h2.Stream }

// Read reads the body. If the client has broken the protocol, the request is malformed.
func (s plainStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if broken, ok := errors.AsType[*h2.Error](err); ok {
		err = &allowlist.ReasonError{Reason: allowlist.MalformedHeader, Err: broken}
	}
	return n, err
}

// WriteHead sends the head of an answer, interim or final. end says that neither body nor
// trailer follows.
func (s plainStream) WriteHead(status int, fields http.Header, end bool) error {
	all := make([]h2.Field, 1, 1+len(fields))
	all[0] = h2.Field{Name: ":status", Value: strconv.Itoa(status)}
	return s.WriteFields(appendFields(all, fields), end)
}

// WriteTrailer sends the trailer, which may be empty, and ends the answer.
func (s plainStream) WriteTrailer(fields http.Header) error {
	if len(fields) == 0 {
		return s.CloseWrite()
	}
	return s.WriteFields(appendFields(nil, fields), true)
}

// appendFields appends fields in the order of their names.
func appendFields(all []h2.Field, fields http.Header) []h2.Field {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		for _, value := range fields[name] {
			all = append(all, h2.Field{Name: name, Value: value})
		}
	}
	return all
}

// respond writes an answer of the gateway itself.
func (x *exchange) respond(r *Request, resp *Response) error {
	fields := appendFields([]h2.Field{{Name: ":status", Value: strconv.Itoa(resp.Status)}}, resp.fields())
	if r.Method == http.MethodHead {
		return x.writeAll(fields, nil)
	}
	return x.writeAll(fields, resp.Body)
}

// write writes the answer to a refused request.
func (x *exchange) write(status int, fields []refusal.Field, body []byte) error {
	all := make([]h2.Field, 0, 1+len(fields))
	all = append(all, h2.Field{Name: ":status", Value: strconv.Itoa(status)})
	for _, f := range fields {
		all = append(all, h2.Field{Name: f.Name, Value: f.Value})
	}
	return x.writeAll(all, body)
}

// writeAll writes an answer and ends the stream. Only a body can wait for the client, so the
// head that opens a tunnel needs no deadline and no timer for it.
func (x *exchange) writeAll(fields []h2.Field, body []byte) error {
	_ = x.stream.SetWriteDeadline(time.Now().Add(x.front.cfg.HeadTimeout)) // a stream takes any deadline
	return x.stream.Respond(fields, body)
}
