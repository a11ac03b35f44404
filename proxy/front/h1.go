package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// The defaults of Config.
const (
	DefaultHeadTimeout = 10 * time.Second
	DefaultKeepAlive   = time.Minute
	DefaultStreams     = h2.DefaultMaxStreams
)

// maxRefused is the number of 407 answers after which a connection takes no other request:
// each costs the gateway more than the caller.
const maxRefused = 4

// errNotWritten is passed to Answer.Done when the front panics before it has written the
// answer.
var errNotWritten = errors.New("the answer was not written")

// Config says how requests are read and answers are written. A SOCKS5 uses HeadTimeout and
// Disclosure.
type Config struct {
	// HeadTimeout is how long reading one request head, or writing one answer, may
	// take; zero means DefaultHeadTimeout.
	HeadTimeout time.Duration
	// HeadLimit is the largest size of a head in bytes; zero means head.DefaultLimit.
	HeadLimit int
	// KeepAlive is how long a connection may stay idle between two plain requests, or
	// without a stream of HTTP/2; zero means DefaultKeepAlive.
	KeepAlive time.Duration
	// Disclosure says how much a refusal contains.
	Disclosure refusal.Disclosure
	// Streams is how many streams a connection of HTTP/2 may have open; zero means
	// DefaultStreams.
	Streams int
	// Max is how long a connection of HTTP/2 may open streams; zero means for ever.
	Max time.Duration
	// Memory bounds the bytes that wait on all connections of HTTP/2; nil means
	// h2.DefaultMemory.
	Memory *h2.Memory
}

// H1 is the front of HTTP/1.x. It passes connections that begin with the preface of HTTP/2
// to an H2. It is safe for concurrent use.
type H1 struct {
	cfg   Config
	conns connections
	h2    H2
}

// NewH1 returns a front.
func NewH1(cfg Config) *H1 {
	if cfg.HeadTimeout <= 0 {
		cfg.HeadTimeout = DefaultHeadTimeout
	}
	if cfg.KeepAlive <= 0 {
		cfg.KeepAlive = DefaultKeepAlive
	}
	if cfg.Memory == nil {
		cfg.Memory = h2.NewMemory(0)
	}
	return &H1{cfg: cfg, h2: H2{cfg: cfg}}
}

// Serve answers the requests of one connection until it ends or a tunnel opens. It
// returns the function that relays the tunnel, or nil if there is none. It does not
// recover a panic of the handler.
func (f *H1) Serve(ctx context.Context, conn Conn, handler Handler) (run func()) {
	c := &h1{front: f, conn: conn, reader: head.NewReader(conn, f.cfg.HeadLimit), waiter: waiter{conn: conn.Conn}}
	defer c.reader.Release()
	f.conns.add(&c.waiter)
	defer f.conns.remove(&c.waiter)
	for {
		r := c.next()
		if c.isH2 {
			early := slices.Clone(c.reader.Buffered())
			c.reader.Release()
			f.conns.remove(&c.waiter)
			f.h2.serve(ctx, conn, early, handler)
			return nil
		}
		if r == nil {
			return nil
		}
		another, run := c.answer(r, handler.Handle(ctx, r))
		if !another {
			return run
		}
	}
}

// h1 is one connection.
type h1 struct {
	front         *H1
	conn          Conn
	reader        *head.Reader
	headSeen      bool // ReadHead has returned at least once
	answeredPlain bool // a plain request was answered, so that KeepAlive bounds the next wait
	refusals      int  // number of requests that were refused with 407
	isH2          bool // the connection has begun with the preface of HTTP/2
	waiter        waiter
}

// next reads one request. It returns nil if no request came.
func (c *h1) next() *Request {
	if !c.await() {
		return nil
	}
	h, err := c.reader.ReadHead()
	if errors.Is(err, head.ErrVersion) && !c.headSeen && c.reader.Match(h2.Preface) {
		c.isH2 = true
		return nil
	}
	c.headSeen = true
	if err == nil {
		return c.parse(h)
	}
	reason := headReason(err)
	if isQuiet(reason) && len(c.reader.Buffered()) == 0 {
		return nil
	}
	r := &Request{Client: c.conn.Conn, Reason: reason}
	r.Method, r.Target = c.reader.RequestLine()
	switch {
	case c.isHello():
		r.Detail = helloInClear
	case errors.Is(err, head.ErrHeader), errors.Is(err, head.ErrTooLarge):
		r.Detail = err.Error() // the error names the line
	default:
		r.Cause = c.headCause(reason, err)
	}
	return r
}

// headCause returns the text for the record: what is wrong with a head, or how many of its
// bytes came.
func (c *h1) headCause(reason allowlist.Reason, err error) string {
	come := len(c.reader.Buffered())
	switch reason { //nolint:exhaustive // the parser's error explains all others
	case allowlist.HeadTimeout:
		return fmt.Sprintf("%d bytes of a head came within %v", come, c.front.cfg.HeadTimeout)
	case allowlist.ClientGone:
		return fmt.Sprintf("reading a head, of which %d bytes came: %v", come, err)
	}
	return err.Error()
}

// isQuiet reports whether a head was not read because the connection ended or went
// silent.
func isQuiet(reason allowlist.Reason) bool {
	return reason == allowlist.ClientGone || reason == allowlist.HeadTimeout
}

// helloInClear is the detail of the refusal for a caller whose proxy URL begins with
// https:// though the listener has no TLS.
const helloInClear = "a TLS ClientHello came on a listener without TLS"

// isHello reports whether a caller speaks TLS on a listener without TLS: its first bytes
// are those of a TLS handshake record (RFC 8446 section 5.1), which no request begins
// with. The caller gets the 400 of any other malformed head, because TLS clients report
// an answer in clear text as what it is (OpenSSL: wrong version number, Go: first record
// does not look like a TLS handshake). An alert would look like the failure of a
// handshake.
func (c *h1) isHello() bool {
	if _, secure := c.conn.Conn.(*tls.Conn); secure {
		return false
	}
	const handshake, major = 0x16, 0x03
	b := c.reader.Buffered()
	return len(b) > 0 && b[0] == handshake && (len(b) == 1 || b[1] == major)
}

// headReason returns the reason for an error of the parser.
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

// answer writes the answer to a request. It reports whether another request may follow on
// the connection, and returns the function that relays the tunnel if one was opened.
func (c *h1) answer(r *Request, a Answer) (another bool, run func()) {
	defer a.done(errNotWritten)
	switch a.Kind {
	case Opened:
		return false, c.open(&a)
	case Local:
		return c.respond(r, &a), nil
	case Forwarded:
		a.Done = nil // the handler has written the answer itself
		return c.end(a.End), nil
	case Refused:
	}
	return c.refuse(r, &a), nil
}

// refuse writes a refusal.
func (c *h1) refuse(r *Request, a *Answer) (another bool) {
	resp := a.refusal(r, c.front.cfg.Disclosure)
	keep := !a.Last && c.mayKeepAlive(r, resp.Status)
	text := resp.Append(nil, keep)
	err := c.write(text)
	a.done(err)
	if err != nil || len(text) == 0 {
		return false
	}
	if !keep {
		c.linger()
		return false
	}
	c.answeredPlain = c.answeredPlain || a.WasAllowed
	return true
}

// mayKeepAlive reports whether another request may follow a refusal. It may follow a plain
// request without a body; it may follow a CONNECT only if the caller showed no identity
// and has sent nothing behind it that could be read as a request. None may follow while
// the gateway drains.
func (c *h1) mayKeepAlive(r *Request, status int) bool {
	if c.front.IsDraining() || r.Head == nil || r.Head.IsHTTP10() || r.Head.Lists("Connection", "close") {
		return false
	}
	switch status {
	case http.StatusProxyAuthRequired:
		c.refusals++
		return c.refusals < maxRefused && r.Body == 0 && (r.IsPlain() || len(c.reader.Buffered()) == 0)
	case http.StatusForbidden, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
		return r.IsPlain() && r.Body == 0
	}
	return false
}

// open tells the client that its tunnel is open, and returns the function that relays it.
// The function is not called here, because the stack that serving has needed would be
// most of the memory of an idle tunnel.
func (c *h1) open(a *Answer) (run func()) {
	answer := a.Switched
	switch {
	case answer != nil:
	case a.Note != "":
		answer = []byte("HTTP/1.1 200 OK\r\nProxy-Status: " + a.Note + "\r\n\r\n")
	default:
		answer = []byte("HTTP/1.1 200 OK\r\n\r\n")
	}
	err := c.write(answer)
	a.done(err)
	if err != nil {
		return nil
	}
	return a.Run
}

// end keeps the connection or closes it, as its parameter says. It reports whether another
// request may follow.
func (c *h1) end(end End) (another bool) {
	switch end {
	case Keep:
		c.answeredPlain = true
		return true
	case Abort:
		c.conn.Abort()
	case Linger:
		c.linger()
	case Close:
	}
	return false
}

// write sends an answer within the head timeout.
func (c *h1) write(answer []byte) error { return c.conn.write(answer, c.front.cfg.HeadTimeout) }

// write sends an answer within a time.
func (c *Conn) write(answer []byte, timeout time.Duration) error {
	if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := c.Write(answer)
	if err != nil {
		// The write may have stopped within a TLS record. The caller could then read
		// nothing that follows, not even a close_notify.
		c.Cut()
	}
	return err
}

// linger ends a connection after an answer, and gives a caller that is still sending time
// to read the answer.
func (c *h1) linger() {
	c.reader.Release()
	tunnel.Linger(c.conn.Conn)
}
