package dns

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/proxy/listen"
)

// DoHPath is the path of queries over HTTP.
const DoHPath = "/dns-query"

const dnsMessage = "application/dns-message"

// HTTPRequest is an HTTP request for DoHPath, which should contain a query (RFC 8484).
type HTTPRequest struct {
	Method      string
	Parameters  string // query part of the URL, without the question mark
	ContentType string
	Attributed  string // first field audit.AttributedField; "" without one
	// Body reads the body, and returns io.EOF at its end. It is nil for a body in chunks
	// that the caller of this package does not read.
	Body io.Reader
}

// HTTPAnswer is the answer to an HTTP request.
type HTTPAnswer struct {
	Status int
	Fields http.Header // without Content-Length and the fields that belong to a connection
	Body   []byte      // valid until Done is called
	// Last says that no other request may follow on the connection.
	Last bool
	// Done must be called once, after the answer was sent; err says why it could not be
	// sent. It is nil if the request contained no query.
	Done func(err error)
}

// AnswerHTTP answers a request of a connection that carries more than queries: CONNECTs
// and plain requests, of which package dns knows nothing. Such a connection is one of the
// proxy, which gives each query a slot as any other request.
//
//   - The query is in the registry, and not the connection. So a shutdown waits for the
//     query, and a state that does not know the caller any more ends its look-up, after
//     which the name is decided again. If the connection were in the registry, its end
//     would also cut off a tunnel, which the same state ends by itself and for a reason
//     that its record names. An idle connection without an entry does no harm: each later
//     request is decided by the state in force then.
//   - The look-up does not end when the client resets the stream of its query: the record
//     would blame the servers for a time-out, and the next client finds the answer in the
//     cache.
//   - Bytes that belong to no query are not counted (meter), since they may belong to a
//     tunnel. The front bounds heads and bodies, and each head that it accepts is a request
//     which spends a budget.
func (s *Server) AnswerHTTP(ctx context.Context, from listen.Verified, r *HTTPRequest) HTTPAnswer {
	e := httpExchange{
		transport: transport{listener: from.Listener, wire: wireDoH, shared: true},
		server:    s, conn: from.Conn, caller: from.Caller, attributed: r.Attributed, read: r.query,
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	leave := s.enter(from, cancel)
	release := func() {
		defer cancel()
		leave()
	}
	panics := true
	defer func() {
		if panics {
			release()
		}
	}()
	a := e.answer(ctx)
	panics = false
	done := a.Done
	a.Done = func(err error) {
		defer release()
		if done != nil {
			done(err)
		}
	}
	return a
}

// httpExchange is an HTTP request with its answer.
type httpExchange struct {
	transport

	server *Server
	conn   *listen.Conn
	caller listen.Caller
	// attributed is the field audit.AttributedField; "" without one.
	attributed string
	read       func() ([]byte, *badRequest) // returns the packet of the request, if it is a query
}

// answer answers the request. A request without a query has no record. It spends a query
// of the caller's budget all the same, since it could repeat for ever otherwise.
func (e *httpExchange) answer(ctx context.Context) HTTPAnswer {
	last := isOverLimit(&e.caller) || e.caller.Excess
	msg, err := e.read()
	if err != nil {
		e.server.counts.ignored.Add(1)
		if !e.server.spendQuery(&e.caller) {
			err = &badRequest{http.StatusTooManyRequests, "too many queries, and this one is none"}
			last = true // a new connection costs a handshake, which has a budget of its own
		}
		return err.answer(last)
	}
	e.conn.MarkUsed()
	answered := make(dohReply, 1)
	var lookups sync.WaitGroup
	x := e.server.getExchange(e.transport, answered, &e.caller)
	x.attributed = e.attributed
	e.server.handle(ctx, &lookups, x, msg)
	<-answered
	lookups.Wait()
	a := x.response.httpAnswer()
	a.Last, a.Done = last, func(err error) { x.done(ctx, err) }
	return a
}

// dohReply passes one response to the goroutine that waits for it.
type dohReply chan *exchange

func (c dohReply) reply(_ context.Context, x *exchange) { c <- x }

// httpAnswer returns the response of a query as an answer over HTTP. A DNS error has the
// status 200 (RFC 8484 section 4.2.1).
func (r *response) httpAnswer() HTTPAnswer {
	if r.silent { // a fault of the gateway
		return textAnswer(http.StatusInternalServerError, "there is no answer")
	}
	return HTTPAnswer{Status: http.StatusOK, Body: r.buf, Fields: http.Header{
		"Content-Type":  {dnsMessage},
		"Cache-Control": {fmt.Sprintf("private, max-age=%d", int(r.ttl/time.Second))}, // the answer for one caller must not be served to another
	}}
}

// badRequest is the answer to an HTTP request that contains no query.
type badRequest struct {
	status int
	text   string
}

func (b *badRequest) answer(last bool) HTTPAnswer {
	a := textAnswer(b.status, b.text)
	switch b.status {
	case http.StatusTooManyRequests:
		a.Fields.Set("Retry-After", "1")
	case http.StatusMethodNotAllowed:
		a.Fields.Set("Allow", "GET, POST")
	}
	a.Last = last
	return a
}

// textAnswer returns an answer with a line of text.
func textAnswer(status int, text string) HTTPAnswer {
	return HTTPAnswer{Status: status, Body: []byte(text + "\n"), Fields: http.Header{
		"Content-Type":           {"text/plain; charset=utf-8"},
		"X-Content-Type-Options": {"nosniff"},
	}}
}

// noBody is the answer to a request whose body does not come whole.
const noBody = "the body cannot be read"

// query returns the packet of a request, if it is a query.
func (r *HTTPRequest) query() ([]byte, *badRequest) {
	msg, err := r.packet()
	if err == nil && !isQuery(msg) {
		err = &badRequest{http.StatusBadRequest, "that is no DNS query"}
	}
	return msg, err
}

// packet returns the packet of a request.
func (r *HTTPRequest) packet() ([]byte, *badRequest) {
	switch r.Method {
	case http.MethodGet:
		parameters, _ := url.ParseQuery(r.Parameters) // malformed ones are left out
		text := parameters.Get("dns")
		if len(text) > base64.RawURLEncoding.EncodedLen(maxQuery) {
			return nil, &badRequest{http.StatusRequestEntityTooLarge, "the query is too long"}
		}
		msg, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(msg) == 0 {
			return nil, &badRequest{http.StatusBadRequest, "the parameter dns is no query in base64url without padding"}
		}
		return msg, nil
	case http.MethodPost:
		if r.ContentType != dnsMessage {
			return nil, &badRequest{http.StatusUnsupportedMediaType, "write a body of " + dnsMessage}
		}
		if r.Body == nil {
			return nil, &badRequest{http.StatusLengthRequired, "write the length of the body (Content-Length), and no chunks"}
		}
		msg, err := io.ReadAll(io.LimitReader(r.Body, keptQuery))
		switch {
		case err != nil:
			return nil, &badRequest{http.StatusBadRequest, noBody}
		case len(msg) > maxQuery:
			return nil, &badRequest{http.StatusRequestEntityTooLarge, "the query is too long"}
		}
		return msg, nil
	}
	return nil, &badRequest{http.StatusMethodNotAllowed, "write GET or POST"}
}
