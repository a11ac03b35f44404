// Package forward carries one approved plain request to its origin and the
// answer back.
//
// Package proxy parses and decides first, and gives the [Forwarder] an [Exchange]: the
// parsed head and target, the decision, and the reader of the body. The request that goes
// out is built from these; the received head is never copied to the origin. goproxy connects the
// two sides, with a transport, a response writer and filters of this package.
//
// The client speaks HTTP/1.x, or it speaks HTTP/2 and is a [Stream]. Its wire frames the
// bodies and the answer; all else is the same for both.
//
// The package dials only what the decision allows. A connection to an origin is kept for more
// requests of the same identity, destination and rule, and for no others, so that no
// caller can use a connection of another one. A connection on which a caller has logged
// in, or was asked to, is kept for the same connection of that caller: see [Logins].
//
// The package does not decide, and writes no refusal: if the origin gives no answer, the
// [Result] has a reason, and package proxy refuses the request.
package forward

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/head"
)

// The defaults of Config.
const (
	defaultIdle     = 15 * time.Minute
	defaultMax      = 12 * time.Hour
	DefaultBody     = time.Minute
	DefaultResponse = 2 * time.Minute
)

// pseudonym is the name of the gateway in Via.
const pseudonym = "exeat"

// Config says how requests are forwarded. Dial is required.
type Config struct {
	// Dial connects to the destination of a decision, and to nothing else.
	Dial func(context.Context, *allowlist.Decision) (dial.Result, error)
	// Idle is how long an exchange may last in which no byte moves either way; zero
	// means 15 minutes.
	Idle time.Duration
	// Max is how long one exchange may last; zero means 12 hours.
	Max time.Duration
	// Body is how long one read of a request's body may take; zero means DefaultBody.
	Body time.Duration
	// Response is how long an origin may take from the end of the request to
	// the head of its answer; zero means DefaultResponse.
	Response time.Duration
	// NoVia leaves the field Via out, in both directions.
	NoVia bool
	// PassForwarded sends the caller's Forwarded and X-Forwarded fields on. They are
	// removed otherwise, because they reveal the internal network to origins.
	PassForwarded bool
	// Scarce reports whether connections to origins should be closed instead of being
	// kept for more requests; nil means that they are kept.
	Scarce func() bool
	// RoundTripper, if not nil, carries the requests in place of connections to origins,
	// which are not made: Dial and Scarce are not needed, and Connected is not called. It
	// calls the functions of net/http/httptrace for interim answers. No client can log a
	// connection in.
	RoundTripper http.RoundTripper
}

// Forwarder forwards exchanges. It is safe for concurrent use.
type Forwarder struct {
	cfg   Config
	pools pools
	proxy *goproxy.ProxyHttpServer
}

// New returns a forwarder.
func New(cfg Config) (*Forwarder, error) {
	if cfg.Dial == nil && cfg.RoundTripper == nil {
		return nil, errors.New("forward: a dialer is required")
	}
	cfg.Idle = cmp.Or(cfg.Idle, defaultIdle)
	cfg.Max = cmp.Or(cfg.Max, defaultMax)
	cfg.Body = cmp.Or(cfg.Body, DefaultBody)
	cfg.Response = cmp.Or(cfg.Response, DefaultResponse)
	f := &Forwarder{cfg: cfg, pools: pools{response: cfg.Response, scarce: cfg.Scarce}}
	f.proxy = newProxy()
	return f, nil
}

// CloseIdle closes the connections to origins that carry no request now. Call it after a
// new state has come into force, since an earlier state allowed the idle connections.
func (f *Forwarder) CloseIdle() { f.pools.closeIdle() }

// Exchange is one approved request. Everything but Reader, Logins, Upgrade, Note, Spend, Last
// and Progress is required; Reader is too unless Client is a Stream, and Decision and
// Connected are not with a RoundTripper.
type Exchange struct {
	Decision allowlist.Decision
	Head     *head.Head
	URL      allowlist.URL
	// Body is the length of the body, or head.Chunked. Reader reads the body, and
	// after it the next head. The body of a Stream is read from the Stream, where
	// head.Chunked means that its length is not known.
	Body   int64
	Reader *head.Reader
	// Client is the connection that the answer is written to, or the Stream of a request
	// over HTTP/2. Forward sets its deadlines, and leaves none set if another request
	// may follow.
	Client net.Conn
	// Logins holds the connections to origins on which the client's connection is
	// logged in; nil keeps none. A Stream has none.
	Logins *Logins
	// Upgrade lists the protocols that are requested from the origin, in the form of
	// the field Upgrade; "" requests none.
	Upgrade string

	// Note is called when the head of the answer has come, or of a switch of protocols.
	// The client gets its result as the field Proxy-Status; "" or nil adds none.
	Note func() string
	// Spend is called before the head goes out, and before bytes of the body and its
	// trailer go out. The exchange ends with upload-limit if it returns false; nil
	// means no limit.
	Spend func(n int) bool

	// Last reports whether no other request may follow on the client's connection,
	// even if the client would keep it open. It is called when the head of the answer
	// is written, but not for a Stream; nil means that others may follow.
	Last func() bool
	// Connected is called with each connection that the request is about to go out
	// on, before any byte of it goes out. If it returns an error nothing goes out,
	// and the error is in the result. An *allowlist.ReasonError gives the result its
	// reason.
	Connected func(Upstream) error
	// Answer is called once, when the head of the answer has come. It either calls
	// write, which sends the head to the client, or returns an error. In that case
	// Forward writes nothing to the client. problem says for the record what the client
	// cannot do with the answer; "" if there is nothing to say.
	Answer func(status int, problem string, write func() error) error
	// Progress is called from time to time with the bytes so far; nil means that
	// nobody needs them. Calls do not overlap.
	Progress func(up, down int64)
}

// spend reports whether n more bytes may go out.
func (ex *Exchange) spend(n int) bool { return n == 0 || ex.Spend == nil || ex.Spend(n) }

// Upstream is a connection to an origin.
type Upstream struct {
	// Dialed is the dial that made the connection. Its durations are zero if the
	// connection was used before.
	Dialed dial.Result
}

// Result describes an exchange that has ended.
type Result struct {
	// Reason says why there is no answer, and Err is its cause for the record. Reason
	// is NoReason if the head of an answer was sent or the exchange was switched. Err
	// then says why not all of the answer was sent; it is nil if all was.
	Reason allowlist.Reason
	Err    error
	// Dialed is the dial that failed; nil if there is no answer for another reason.
	Dialed *dial.Result
	// Complete says that the whole answer was sent.
	Complete bool
	// Sent says that a byte of the request may have gone out to an origin.
	Sent bool
	// Limited says that the answer is incomplete because Spend returned false.
	Limited bool
	// Cut says that the answer is incomplete and ends with the connection, as it does
	// for clients of HTTP/1.0, or with the Stream. The connection must be aborted, or
	// the Stream reset, so that the client does not take the answer for complete.
	Cut bool
	// Linger says that the answer is complete and that the client may still be sending
	// on its connection, which must close after the client had time to read the answer.
	Linger bool
	// Reusable says that another request may be read from the client.
	Reusable bool
	// Up and Down are the bytes sent to the origin and to the client, heads
	// included.
	Up, Down int64
	// Switched, if not nil, is a connection to an origin that has agreed to
	// another protocol. The caller must close it.
	Switched *Switched
}

// Switched is the origin's side of a tunnel that began as a request.
type Switched struct {
	Conn   net.Conn
	Dialed dial.Result // the dial that made Conn
	// Head is the answer for the client, with the bytes that the origin sent behind it.
	Head []byte
}

// errIdle ends an exchange in which no byte has moved for Idle, or which has lasted for Max.
var errIdle = errors.New("nothing has moved for too long")

// Forward carries out one exchange, which ends at the latest when ctx does. After it has
// returned no goroutine reads from or writes to the client any more.
func (f *Forwarder) Forward(ctx context.Context, ex *Exchange) Result {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, done := context.WithTimeoutCause(ctx, f.cfg.Max, errIdle)
	defer done()
	r := &run{Exchange: ex, cfg: &f.cfg, cancel: cancel, done: ctx.Done()}
	r.meter.report = ex.Progress
	r.down = downstream{conn: ex.Client, idle: f.cfg.Idle, done: r.done, meter: &r.meter}
	r.wire, r.answer = newWire(r), newWriter(r)
	defer unblock(ctx, ex.Client)()
	req, err := r.request(ctx)
	if err != nil {
		return Result{Reason: allowlist.ReasonOf(err), Err: err}
	}
	well := false
	if f.cfg.RoundTripper == nil {
		r.lane = f.pools.acquire(ex)
		defer func() { f.pools.release(r.lane, ex.logins(), well) }()
	}
	r.meter.start(f.cfg.Idle, func() { cancel(errIdle) })
	defer r.meter.stop()
	f.proxy.ServeHTTP(r.answer, req)
	res := r.end()
	well = res.Complete && (ex.Upgrade == "" || r.lane != nil && r.lane.dedicated)
	if text := r.panics.first.Load(); text != nil {
		if res.Switched != nil {
			_ = res.Switched.Conn.Close()
		}
		panic(*text)
	}
	return res
}

// run is an exchange under way.
type run struct {
	*Exchange
	cfg      *Config
	cancel   context.CancelCauseFunc
	done     <-chan struct{} // closed when the exchange is to end
	lane     *lane           // the lane to the origin; nil with a RoundTripper
	body     *requestBody    // nil if the request has no body
	expect   *expectation    // nil if the client does not wait for 100 (Continue)
	wire     wire            // the protocol of the client
	answer   *writer
	down     downstream // the connection to the client
	meter    meter
	panics   panics
	head     int             // size of the request's head in bytes
	trailers map[string]bool // trailers of the request that may be sent on

	upstream     *upstream         // last connection that the request was given; nil before the first
	mayHaveSent  atomic.Bool       // a byte may have been sent to an origin
	heads        heads             // heads of the answers
	nominated    map[variable]bool // fields that Connection of the final answer lists
	loginProblem string            // why the client cannot log in as the answer asks; "" if it can or need not
	interims     int               // number of interim answers
	bodyComplete bool              // the body of the answer was read to its end
	answerErr    error             // error that ended reading the body of the answer; nil if none did
	failure      error             // first error for which there is no answer; nil if there is none
	switched     *Switched         // the origin's side of the tunnel after an upgrade; nil without one
}

// runKey is the context key of the run that a request belongs to.
type runKey struct{}

// runOf returns the run that a context belongs to, or nil.
func runOf(ctx context.Context) *run {
	r, _ := ctx.Value(runKey{}).(*run)
	return r
}

// fail notes why there is no answer.
func (r *run) fail(err error) {
	if r.failure == nil {
		r.failure = err
	}
}

// unblock ends reads from and writes to the client when ctx ends, by a deadline in the
// past. The returned function turns that off, and returns when no deadline will be set any
// more.
func unblock(ctx context.Context, client net.Conn) (end func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = client.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// trace returns the functions that the transport calls during the exchange.
func (r *run) trace() *httptrace.ClientTrace {
	trace := &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if conn, ok := info.Conn.(*upstream); ok {
				r.connected(conn, info.Reused)
			}
		},
		Got1xxResponse: r.interim,
	}
	if e := r.expect; e != nil {
		trace.GotFirstResponseByte = func() { e.heard.Store(true) }
		trace.Got100Continue = func() { e.once.Do(func() { close(e.proceed) }) }
	}
	return trace
}

// connected calls Connected for a connection that the request is about to go out on. If
// the request may not go out there, it closes the connection before the transport writes.
func (r *run) connected(conn *upstream, reused bool) {
	retried := r.upstream != nil // the transport tries another connection
	if retried {
		r.upstream.release(r)
	}
	r.upstream = conn
	r.lane.conn = conn
	r.heads.reset()
	conn.assign(r, reused)
	u := Upstream{Dialed: conn.dialed}
	if reused {
		u.Dialed.Resolve, u.Dialed.Dial = 0, 0
	}
	var err error
	switch {
	case reused && r.Decision.CheckAddr(conn.dialed.Addr) != nil:
		err = &allowlist.ReasonError{Reason: allowlist.ResolvedAddressDenied, Err: r.Decision.CheckAddr(conn.dialed.Addr)}
	case retried && r.lane.dedicated && r.meter.uploaded() > 0:
		err = &allowlist.ReasonError{Reason: allowlist.ResponseFailed, Cause: allowlist.CauseTerminated, Err: errLoggedIn}
	case !r.spend(r.head):
		err = &allowlist.ReasonError{Reason: allowlist.UploadLimit, Err: errSpent}
	default:
		err = r.Connected(u)
	}
	if err != nil {
		r.fail(err)
		_ = conn.Close()
		r.cancel(err)
	}
}

// errLoggedIn ends an exchange whose connection to the origin was logged in and has ended
// after a part of the request had gone out. The request may depend on that login, and is
// not sent on another connection.
var errLoggedIn = errors.New("the connection that the client has logged in on has ended")

// end ends the exchange and returns its result.
func (r *run) end() Result {
	bodyDone := r.body.stop()
	r.down.stop()
	if r.upstream != nil {
		r.upstream.release(r)
	}
	r.meter.stop()
	res := Result{Sent: r.mayHaveSent.Load(), Up: r.meter.uploaded(), Down: r.down.sent, Switched: r.switched}
	if r.switched != nil {
		return res
	}
	if !r.down.begun {
		res.Reason, res.Dialed, res.Err = r.reason()
		return res
	}
	res.Complete = r.bodyComplete && r.answer.finish()
	if !res.Complete {
		res.Err = r.incompleteError()
	}
	res.Down = r.down.sent
	body := r.body.failure()
	res.Limited = !res.Complete && body != nil && body.Reason == allowlist.UploadLimit
	r.wire.end(&res, bodyDone)
	return res
}

// reason returns the reason for which there is no answer, the dial if that has failed, and
// the error.
func (r *run) reason() (allowlist.Reason, *dial.Result, error) {
	err := r.failure
	if body := r.body.failure(); body != nil {
		return body.Reason, nil, body
	}
	if failed, ok := errors.AsType[*dialError](err); ok {
		return allowlist.ReasonOf(failed.err), &failed.result, err
	}
	if _, ok := errors.AsType[*allowlist.ReasonError](err); ok {
		return allowlist.ReasonOf(err), nil, err
	}
	if timeout, ok := errors.AsType[net.Error](err); errors.Is(err, errIdle) || ok && timeout.Timeout() {
		return allowlist.ResponseTimeout, nil, timeoutError(r, err)
	}
	return allowlist.ResponseFailed, nil, r.noAnswerError(err)
}
