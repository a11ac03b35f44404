// Package forward carries one approved plain request to its origin and the
// answer back.
//
// A door parses and decides first, and gives the [Forwarder] an [Exchange]: the
// parsed head and target, the decision, and where the body comes from. The
// request that leaves is rebuilt from those; no byte of the received head is
// sent as it came. Between the two connections stands goproxy, with a
// transport, a response writer and filters of this package.
//
// It dials nothing but what the decision allows. Connections to origins are
// kept for more requests of the same identity, destination and rule, and for no
// others: what one caller may reach, or has left behind on a connection, is
// never another's. A connection that a caller has logged in on, or was asked to,
// is kept for that one connection of the caller's: see [Logins].
//
// It does not decide, and refuses nothing by itself: where there is no answer,
// the [Result] has a reason and the door answers.
package forward

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/head"
)

// What a zero field of Config means.
const (
	defaultIdle     = 15 * time.Minute
	defaultMax      = 12 * time.Hour
	DefaultBody     = time.Minute
	DefaultResponse = 2 * time.Minute
)

// pseudonym is the name of the gateway in Via.
const pseudonym = "exeat"

// Config says how requests are carried. Dial is required.
type Config struct {
	// Dial connects to the destination of a decision, and to nothing else.
	Dial func(context.Context, *allowlist.Decision) (dial.Result, error)
	// Idle is how long no byte may move either way; zero means 15 minutes.
	Idle time.Duration
	// Max is how long one exchange may last; zero means 12 hours.
	Max time.Duration
	// Body is how long the next bytes of a request's body may take; zero means
	// DefaultBody.
	Body time.Duration
	// Response is how long an origin may take from the end of the request to
	// the head of its answer; zero means DefaultResponse.
	Response time.Duration
	// NoVia leaves the field Via out, in both directions.
	NoVia bool
	// PassForwarded sends the caller's Forwarded and X-Forwarded fields on.
	// They are removed otherwise: they tell the outside of the inside.
	PassForwarded bool
	// Scarce reports whether connections to origins are to be closed, and not kept
	// for more requests; nil is never.
	Scarce func() bool
}

// Forwarder carries exchanges. It is safe for concurrent use.
type Forwarder struct {
	cfg   Config
	pools pools
	proxy *goproxy.ProxyHttpServer
}

// New returns a forwarder.
func New(cfg Config) (*Forwarder, error) {
	if cfg.Dial == nil {
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

// CloseIdle closes the connections to origins that carry no request now. Call
// it when a new state has come into force: what is idle was opened by the leave
// of another one.
func (f *Forwarder) CloseIdle() { f.pools.closeIdle() }

// Exchange is one approved request. Everything but Logins, Spend and Last is
// required.
type Exchange struct {
	Decision allowlist.Decision
	Head     *head.Head
	URL      allowlist.URL
	// Body is the length of the body, or head.Chunked; Reader is where it, and
	// after it the next head, comes from.
	Body   int64
	Reader *head.Reader
	// Client is where the answer goes. Its deadlines are set here, and Forward
	// leaves none behind.
	Client net.Conn
	// Logins belong to the connection of the client; nil keeps none of them.
	Logins *Logins
	// Upgrade asks the origin for one of these protocols, as the field of that
	// name lists them; "" asks for none.
	Upgrade string

	// Spend is asked before the head goes out, and before bytes of the body and
	// its trailer do. False ends the exchange as upload-limit; nil is always true.
	Spend func(n int) bool

	// Last reports whether no other request may follow on the client's connection,
	// whatever the client says. It is asked when the head of the answer is written;
	// nil is never.
	Last func() bool
	// Connected is called with each connection that the request is about to go
	// out on, before any byte of it does. After an error, which Forward passes
	// on in its result, none does. An *allowlist.ReasonError gives the result its
	// reason.
	Connected func(Upstream) error
	// Answer is called once, when the head of the answer has come. It calls
	// write, which sends the head to the client, or returns an error and the
	// client gets nothing from here.
	Answer func(status int, write func() error) error
	// Progress is told of the bytes so far, now and then. Calls do not overlap.
	Progress func(up, down int64)
}

// spend reports whether n more bytes may go out.
func (ex *Exchange) spend(n int) bool { return n == 0 || ex.Spend == nil || ex.Spend(n) }

// Upstream is a connection to an origin.
type Upstream struct {
	// Dialed is how it was made; its durations are zero if it was used before.
	Dialed dial.Result
}

// Result is what became of an exchange.
type Result struct {
	// Reason why there is no answer, and Err what the gateway's own log and the
	// record may say of it. NoReason means that the head of an answer was sent, or
	// that the exchange was switched; then Err says why not all of it was sent.
	Reason allowlist.Reason
	Err    error
	// Dialed is the dial that failed; nil if that is not why there is no answer.
	Dialed *dial.Result
	// Complete means that the whole answer was sent.
	Complete bool
	// Sent means that a byte of the request may have gone out to an origin.
	Sent bool
	// Limited means that the answer was cut short by what Spend said.
	Limited bool
	// Cut means that a part of the answer was sent that only the end of the
	// connection ends, to a client of HTTP/1.0: that must not look proper.
	Cut bool
	// Reusable means that another request may be read from the client.
	Reusable bool
	// Up and Down are the bytes sent to the origin and to the client, heads
	// included.
	Up, Down int64
	// Switched, if not nil, is a connection to an origin that has agreed to
	// another protocol. It belongs to the caller.
	Switched *Switched
}

// Switched is the other end of a tunnel that began as a request.
type Switched struct {
	Conn   net.Conn
	Dialed dial.Result // how it was made
	// Head is the answer for the client, and what the origin sent behind it.
	Head []byte
}

// errIdle ends an exchange in which nothing moves.
var errIdle = errors.New("nothing has moved for too long")

// Forward carries one exchange and returns when nothing of it goes on: no
// goroutine reads from or writes to the client any more. The end of ctx ends it.
func (f *Forwarder) Forward(ctx context.Context, ex *Exchange) Result {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, done := context.WithTimeoutCause(ctx, f.cfg.Max, errIdle)
	defer done()
	r := &run{Exchange: ex, cfg: &f.cfg, cancel: cancel, done: ctx.Done()}
	r.meter.report = ex.Progress
	r.down = downstream{conn: ex.Client, idle: f.cfg.Idle, done: r.done, meter: &r.meter}
	r.answer = newWriter(r)
	req, err := r.request(ctx)
	if err != nil {
		return Result{Reason: allowlist.MalformedTarget, Err: err}
	}
	well := false
	r.lane = f.pools.take(ex)
	defer func() { f.pools.give(r.lane, ex.Logins, well) }()
	r.meter.start(f.cfg.Idle, func() { cancel(errIdle) })
	defer r.meter.stop()
	defer unblock(ctx, ex.Client)()
	f.proxy.ServeHTTP(r.answer, req)
	res := r.end()
	well = res.Complete && (ex.Upgrade == "" || r.lane.own)
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
	done     <-chan struct{} // closed by the end of the exchange
	lane     *lane           // what it goes out on
	body     *requestBody    // nil without a body
	expect   *expectation    // nil if the body is sent at once
	answer   *writer
	down     downstream // what the answer goes out on
	meter    meter
	panics   panics
	head     int             // bytes of the request's head
	trailers map[string]bool // of the request that may be sent on

	upstream  *upstream         // that the request went out on last
	wrote     atomic.Bool       // something may have been sent to an origin
	heads     heads             // of the answers
	nominated map[variable]bool // by Connection in the final one
	interims  int               // answers so far that were not final
	received  bool              // the answer's body was read to its end
	broken    error             // why it was not; nil if it was, or nobody read it
	failure   error             // why there is no answer; the first one counts
	switched  *Switched
}

type runKey struct{}

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

// unblock makes the end of ctx end what waits for the client. The function that
// it returns ends that, and returns when nothing sets a deadline any more.
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

// trace watches the transport.
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

// connected asks the door about a connection that the request is about to go
// out on. One that it does not want is closed before the transport can write.
func (r *run) connected(conn *upstream, reused bool) {
	again := r.upstream != nil // the transport tries again
	if again {
		r.upstream.release(r)
	}
	r.upstream = conn
	r.lane.conn = conn
	r.heads.reset()
	conn.carry(r, reused)
	u := Upstream{Dialed: conn.dialed}
	if reused {
		u.Dialed.Resolve, u.Dialed.Dial = 0, 0
	}
	var err error
	switch {
	case reused && r.Decision.CheckAddr(conn.dialed.Addr) != nil:
		err = &allowlist.ReasonError{Reason: allowlist.ResolvedAddressDenied, Err: r.Decision.CheckAddr(conn.dialed.Addr)}
	case again && r.lane.own && r.meter.uploaded() > 0:
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

// errLoggedIn ends an exchange whose connection has ended after the request, or a
// part of it, had gone out: it was for that connection, and is not sent on
// another one.
var errLoggedIn = errors.New("the connection that the client has logged in on has ended")

// end says what became of it.
func (r *run) end() Result {
	bodyDone := r.body.stop()
	r.down.stop()
	if r.upstream != nil {
		r.upstream.release(r)
	}
	r.meter.stop()
	res := Result{Sent: r.wrote.Load(), Up: r.meter.uploaded(), Down: r.down.sent, Switched: r.switched}
	if r.switched != nil {
		return res
	}
	if !r.down.begun {
		res.Reason, res.Dialed, res.Err = r.reason()
		return res
	}
	res.Complete = r.received && r.answer.finish()
	if !res.Complete {
		res.Err = r.unfinished()
	}
	res.Down = r.down.sent
	res.Cut = !res.Complete && r.answer.endsByClose()
	body := r.body.failure()
	res.Limited = !res.Complete && body != nil && body.Reason == allowlist.UploadLimit
	res.Reusable = res.Complete && bodyDone && r.answer.keep && r.Client.SetDeadline(time.Time{}) == nil
	return res
}

// reason classifies why there is no answer.
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
		return allowlist.ResponseTimeout, nil, late(r, err)
	}
	return allowlist.ResponseFailed, nil, r.unanswered(err)
}
