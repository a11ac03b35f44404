package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
)

// exchange is one request on its way through the door. It is used again for
// the next request of the same connection.
type exchange struct {
	proxy  *Proxy
	conn   *listen.Conn
	reader *head.Reader

	open      *audit.Open // nil until something was read
	head      *head.Head
	url       allowlist.URL // of a plain request
	body      int64         // of a plain request; see head.Body
	stopsHere bool          // a plain request that may not be forwarded: its Max-Forwards is 0
	upgrade   string        // protocols that a plain request asks for and that may be sent on; see forward.Protocols
	request   allowlist.Request
	state     *live.State
	decision  allowlist.Decision
	bound     bound // how an address literal came to be allowed, if by its names
	detail    string
	lease     *limit.Lease     // of the tunnel; nil before there is one
	settled   func()           // ends what pend began; nil if nothing is pending
	logins    forward.Logins   // connections to origins that belong to this connection of the caller's
	rested    bool             // a plain request was answered on this connection
	sent      bool             // a byte of the plain request may have gone out
	cut       allowlist.Reason // why the gateway ended what was sent; NoReason if it did not
	refused   int              // callers without identity on it
	after     func()           // what follows the record of a refusal, before the caller is waited for; nil is nothing
}

// maxRefused is how often a caller may try on one connection: it costs the
// gateway more than the caller.
const maxRefused = 4

// next reads one request and answers it. It reports whether another one may
// follow on the connection.
func (x *exchange) next(ctx context.Context) bool {
	x.forget()
	if !x.await() {
		return false
	}
	h, err := x.reader.ReadHead()
	if err != nil && isQuiet(headReason(err)) && len(x.reader.Buffered()) == 0 {
		return false // nothing was asked
	}
	x.head = h
	method, target := x.requestLine()
	x.begin(ctx, method)
	if err != nil {
		x.note(method, target)
		switch {
		case x.isHello():
			x.detail = helloInClear
		case errors.Is(err, head.ErrHeader), errors.Is(err, head.ErrTooLarge):
			x.detail = err.Error() // which line it was
		}
		return x.refuse(ctx, headReason(err))
	}
	if reason := x.admit(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	if reason := x.take(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	defer x.release()
	defer x.settle()
	switch {
	case x.stopsHere:
		return x.answerHere(ctx)
	case x.isPlain():
		return x.forward(ctx)
	}
	res, reason := x.connect(ctx)
	if reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	return x.relay(ctx, opening{conn: res.Conn, addr: res.Addr, status: 200, answer: []byte("HTTP/1.1 200 OK\r\n\r\n")})
}

// helloInClear says what came instead of a request from a caller whose proxy URL
// begins with https:// and should not.
const helloInClear = "a TLS ClientHello came on a listener without TLS"

// isHello reports whether a caller speaks TLS on a listener that does not: what
// it sent begins as a TLS record of a handshake does (RFC 8446 section 5.1), and
// as no request. It is answered with the 400 of any other malformed head: TLS
// clients call an answer in the clear by its name (OpenSSL: wrong version number,
// Go: first record does not look like a TLS handshake), where an alert would
// speak of a handshake that had begun.
func (x *exchange) isHello() bool {
	if _, secure := x.conn.Conn.(*tls.Conn); secure {
		return false
	}
	const handshake, major = 0x16, 0x03
	b := x.reader.Buffered()
	return len(b) > 0 && b[0] == handshake && (len(b) == 1 || b[1] == major)
}

// forget lets go of the last request.
func (x *exchange) forget() {
	x.open, x.head, x.state, x.decision, x.detail = nil, nil, nil, allowlist.Decision{}, ""
	x.url, x.body, x.stopsHere, x.upgrade, x.request = allowlist.URL{}, 0, false, "", allowlist.Request{}
	x.bound, x.sent, x.cut, x.after = bound{}, false, allowlist.NoReason, nil
}

// await sets the time for the next head. Behind an answered plain request the
// connection may first rest for a while.
func (x *exchange) await() bool {
	if x.rested {
		if x.conn.SetReadDeadline(time.Now().Add(x.proxy.cfg.KeepAlive)) != nil {
			return false
		}
		if x.reader.Await() != nil {
			return false // nothing was asked
		}
	}
	return x.conn.SetReadDeadline(time.Now().Add(x.proxy.cfg.HeadTimeout)) == nil
}

// isQuiet reports whether the connection ended or went silent.
func isQuiet(reason allowlist.Reason) bool {
	return reason == allowlist.ClientGone || reason == allowlist.HeadTimeout
}

// begin opens the record: from here on there is exactly one.
func (x *exchange) begin(ctx context.Context, method string) {
	start := audit.Start{Listener: x.conn.Listener, Protocol: audit.ProtocolConnect, Wire: "h1", Accept: x.conn.AcceptTrace}
	if method != "" && !isConnect(method) {
		start.Protocol = audit.ProtocolHTTP
	}
	if x.head != nil {
		start.TraceParent = x.head.Get("Traceparent")
	}
	x.open = x.proxy.cfg.Recorder.Begin(ctx, start)
	x.open.Client = x.conn.Caller.Addr
	x.renew()
	x.open.SetMethod(method)
}

// requestLine returns the method and the target, also of a head that is refused
// for what comes behind them; "" for what is malformed or did not come.
func (x *exchange) requestLine() (method, target string) {
	if x.head != nil {
		return x.head.Method, x.head.Target
	}
	return x.reader.RequestLine()
}

// note records what can be read of the destination of a head that is refused,
// whether or not its target was parsed.
func (x *exchange) note(method, target string) {
	x.open.Dest = allowlist.Glimpse(target, isConnect(method))
}

// renew takes the state in force and makes sure that the caller is who it is by
// the trust of now, in this order: when an authority goes, another state follows,
// and whoever took the one before looks again.
func (x *exchange) renew() {
	x.state = x.proxy.cfg.Current.Load()
	x.conn.Renew()
	x.open.Identity, x.open.Source = x.conn.Caller.ID, x.conn.Caller.Source
}

// admit parses and decides: everything that can be said without a lookup.
func (x *exchange) admit() allowlist.Reason {
	if reason := x.parse(); reason != allowlist.NoReason {
		return reason
	}
	switch {
	case x.proxy.draining.Load():
		return allowlist.Draining
	case x.conn.Caller.Busy:
		return allowlist.Busy
	case x.conn.Caller.Limited:
		x.detail = "too many connections are open from this address"
		return allowlist.RateLimited
	}
	now := time.Now()
	if reason := x.identify(now); reason != allowlist.NoReason {
		return reason
	}
	x.decide(now)
	return x.spend()
}

// parse makes the one canonical destination of the request.
func (x *exchange) parse() allowlist.Reason {
	if x.isPlain() {
		return x.parsePlain()
	}
	h := x.head
	if h.Method != http.MethodConnect {
		x.note(h.Method, h.Target)
		return allowlist.ConnectOnly
	}
	dest, err := allowlist.ParseDestination(h.Target)
	if err != nil {
		return x.malformed(err)
	}
	x.ask(allowlist.Request{Dest: dest})
	if h.HasHost && !sameAuthority(h, dest) {
		return allowlist.AuthorityMismatch
	}
	for range h.Values("Transfer-Encoding") { // what follows the head is tunnel data and has no framing
		return allowlist.MalformedHeader
	}
	return allowlist.NoReason
}

// malformed returns the reason for a target that no parser takes, and notes the
// cause.
func (x *exchange) malformed(err error) allowlist.Reason {
	x.note(x.head.Method, x.head.Target)
	x.detail = err.Error()
	if errors.Is(err, allowlist.ErrPort) {
		return allowlist.MalformedPort
	}
	return allowlist.MalformedTarget
}

// ask notes what will be asked of the policy.
func (x *exchange) ask(req allowlist.Request) {
	x.request, x.decision.Request, x.open.Dest = req, req, req.Dest
}

// sameAuthority reports whether the Host field names the target: with the
// same port or without one, and an address in the very same spelling.
func sameAuthority(h *head.Head, dest allowlist.Destination) bool {
	text := h.Host
	if dest.Host.IsAddr() {
		withoutPort := h.Target[:strings.LastIndexByte(h.Target, ':')]
		return text == h.Target || text == withoutPort
	}
	if strings.Contains(text, ":") {
		got, err := allowlist.ParseDestination(text)
		return err == nil && got == dest
	}
	got, err := allowlist.ParseHost(text)
	return err == nil && got == dest.Host
}

// identify refuses a caller without an identity, or with one that has expired
// since the handshake.
func (x *exchange) identify(now time.Time) allowlist.Reason {
	caller := &x.conn.Caller
	if caller.Reason != allowlist.NoReason {
		x.detail = caller.Detail
		return caller.Reason
	}
	if !caller.NotAfter.IsZero() && now.After(caller.NotAfter) {
		x.detail = "certificate expired " + caller.NotAfter.UTC().Format(time.RFC3339)
		return allowlist.IdentityExpired
	}
	return allowlist.NoReason
}

// decide asks the state that renew took, once. An upgrade that was dropped stays
// so, whatever states follow: the request has only the budget of a plain one.
func (x *exchange) decide(now time.Time) {
	x.request.ID, x.request.Source, x.request.Time = x.conn.Caller.ID, x.conn.Caller.Source, now
	x.decision = x.state.Decide(x.request)
	if x.decision.Upgrade == allowlist.NoUpgrade {
		x.request.Upgrade = allowlist.NoUpgrade
	}
	x.bind(now)
	if x.decision.Reason == allowlist.MalformedTarget {
		if err := allowlist.CheckPath(x.request.Path); err != nil {
			x.detail = err.Error()
		}
	}
	x.open.SetDecision(x.decision)
	if x.state != nil {
		x.open.Generation = x.state.Generation
	}
	x.open.Decide = time.Since(now)
}

// connect dials what was decided. When a state ends the dial and the state
// after it allows the request again, it dials again: the record then tells of
// one state, the last. The request stays in the registry until settle.
func (x *exchange) connect(ctx context.Context) (dial.Result, allowlist.Reason) {
	for {
		pending, dialling := x.pend(ctx)
		res, reason := x.dial(dialling, pending)
		why := pending.why()
		if reason == allowlist.NoReason || why == allowlist.NoReason {
			return res, reason
		}
		if why == allowlist.Draining {
			return res, why
		}
		if reason = x.again(); reason != allowlist.NoReason {
			return res, reason
		}
		x.settle()
	}
}

// settle takes the request that was dialled out of the registry.
func (x *exchange) settle() {
	if x.settled != nil {
		x.settled()
		x.settled = nil
	}
}

// dial connects to what was decided.
func (x *exchange) dial(ctx context.Context, pending *underway) (dial.Result, allowlist.Reason) {
	start := time.Now()
	var res dial.Result
	var err error
	if x.bound.addr.IsValid() {
		res, err = x.proxy.cfg.Dialer.DialAddr(ctx, &x.decision, x.bound.addr)
	} else {
		res, err = x.proxy.cfg.Dialer.Dial(ctx, &x.decision)
	}
	return res, x.dialed(ctx, start, res, err, pending)
}

// dialed records what came of a dial.
func (x *exchange) dialed(ctx context.Context, start time.Time, res dial.Result, err error, pending *underway) allowlist.Reason {
	x.open.Address, x.open.Dropped = res.Addr, res.Dropped
	if res.Dropped > 0 {
		x.open.Class = res.Class
	}
	reason := allowlist.ReasonOf(err)
	failed := reason
	if pending.why() != allowlist.NoReason {
		failed = allowlist.NoReason // it was cancelled, the destination is not to blame
	}
	x.open.Dialed(ctx, start, res.Resolve, res.Dial, failed)
	if reason == allowlist.ResolvedAddressDenied {
		x.open.Class = res.Class
	}
	return reason
}

// headReason maps the parser's errors to the closed set.
func headReason(err error) allowlist.Reason {
	switch {
	case errors.Is(err, head.ErrRequestLine):
		return allowlist.MalformedRequestLine
	case errors.Is(err, head.ErrVersion):
		return allowlist.UnsupportedVersion
	case errors.Is(err, head.ErrHeader):
		return allowlist.MalformedHeader
	case errors.Is(err, head.ErrTooLarge):
		return allowlist.HeadTooLarge
	case errors.Is(err, head.ErrMissingHost):
		return allowlist.MissingHost
	case errors.Is(err, head.ErrDuplicateHost):
		return allowlist.DuplicateHost
	case errors.Is(err, os.ErrDeadlineExceeded):
		return allowlist.HeadTimeout
	}
	return allowlist.ClientGone
}
