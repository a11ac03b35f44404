package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// What a zero field of Config means.
const (
	DefaultHeadTimeout = 10 * time.Second
	DefaultKeepAlive   = time.Minute
)

// maxRefused is how often a caller without an identity may try on one connection:
// it costs the gateway more than the caller.
const maxRefused = 4

// errNotWritten is what becomes of an answer when its front panics.
var errNotWritten = errors.New("the answer was not written")

// Config says how HTTP/1.x is read and written.
type Config struct {
	// HeadTimeout bounds the time for one request head, and for writing an answer;
	// zero means DefaultHeadTimeout.
	HeadTimeout time.Duration
	// HeadLimit bounds a head in bytes; zero means head.DefaultLimit.
	HeadLimit int
	// KeepAlive is how long a connection may rest between two plain requests;
	// zero means DefaultKeepAlive.
	KeepAlive time.Duration
	// Disclosure is how much a refused caller is told.
	Disclosure refusal.Disclosure
}

// H1 is the front of HTTP/1.x. It is safe for concurrent use.
type H1 struct {
	cfg   Config
	conns connections
}

// NewH1 returns a front.
func NewH1(cfg Config) *H1 {
	if cfg.HeadTimeout <= 0 {
		cfg.HeadTimeout = DefaultHeadTimeout
	}
	if cfg.KeepAlive <= 0 {
		cfg.KeepAlive = DefaultKeepAlive
	}
	return &H1{cfg: cfg}
}

// Serve answers the requests of one connection until it ends or a tunnel opens.
// It returns what runs that tunnel, nil if there is none. A panic of the handler's
// goes through Serve.
func (f *H1) Serve(ctx context.Context, conn Conn, handler Handler) (run func()) {
	c := &h1{front: f, conn: conn, reader: head.NewReader(conn, f.cfg.HeadLimit)}
	defer c.reader.Release()
	f.conns.add(c)
	defer f.conns.remove(c)
	for {
		r := c.next()
		if r == nil {
			return nil
		}
		again, run := c.answer(r, handler.Handle(ctx, r))
		if !again {
			return run
		}
	}
}

// h1 is one connection.
type h1 struct {
	front   *H1
	conn    Conn
	reader  *head.Reader
	asked   bool // a request was read from it
	rested  bool // a plain request was answered on it
	refused int  // callers without identity on it

	mu      sync.Mutex // over the read deadline of a connection that waits
	waiting bool       // nothing of the next request has come
}

// next reads one request. It returns nil if none was asked.
func (c *h1) next() *Request {
	if !c.await() {
		return nil
	}
	h, err := c.reader.ReadHead()
	c.asked = true
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
		r.Detail = err.Error() // which line it was
	default:
		r.Cause = c.headCause(reason, err)
	}
	return r
}

// headCause says for the record what is wrong with a head, or how far it came.
func (c *h1) headCause(reason allowlist.Reason, err error) string {
	come := len(c.reader.Buffered())
	switch reason { //nolint:exhaustive // the parser says it of all others
	case allowlist.HeadTimeout:
		return fmt.Sprintf("%d bytes of a head came within %v", come, c.front.cfg.HeadTimeout)
	case allowlist.ClientGone:
		return fmt.Sprintf("reading a head, of which %d bytes came: %v", come, err)
	}
	return err.Error()
}

// isQuiet reports whether the connection ended or went silent.
func isQuiet(reason allowlist.Reason) bool {
	return reason == allowlist.ClientGone || reason == allowlist.HeadTimeout
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
func (c *h1) isHello() bool {
	if _, secure := c.conn.Conn.(*tls.Conn); secure {
		return false
	}
	const handshake, major = 0x16, 0x03
	b := c.reader.Buffered()
	return len(b) > 0 && b[0] == handshake && (len(b) == 1 || b[1] == major)
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

// answer writes the answer to a request. It reports whether another request may
// follow on the connection, and returns what runs the tunnel if it became one.
func (c *h1) answer(r *Request, a Answer) (again bool, run func()) {
	defer a.done(errNotWritten)
	switch a.Kind {
	case Opened:
		return false, c.open(&a)
	case Own:
		return c.own(r, &a), nil
	case Forwarded:
		a.Done = nil // the handler has written the answer itself
		return c.end(a.End), nil
	case Refused:
	}
	return c.refuse(r, &a), nil
}

// refuse writes a refusal.
func (c *h1) refuse(r *Request, a *Answer) (again bool) {
	answer := a.Refusal
	answer.KeepAlive = !a.Last && c.keeps(r, answer.Reason)
	answer.Bodyless = r.Head != nil && r.Head.Method == http.MethodHead
	answer.JSON = r.Head != nil && strings.Contains(r.Head.Get("Accept"), "application/problem+json")
	text := answer.Append(nil, c.front.cfg.Disclosure)
	err := c.write(text)
	a.done(err)
	if err != nil || len(text) == 0 {
		return false
	}
	if !answer.KeepAlive {
		c.linger()
		return false
	}
	c.rested = c.rested || a.MayRest
	return true
}

// keeps reports whether another request may follow a refusal. Behind a plain
// request that had no body it may; behind a CONNECT only if the caller forgot
// its certificate and has sent nothing that might be read as a request. While the
// gateway drains none may.
func (c *h1) keeps(r *Request, reason allowlist.Reason) bool {
	if c.front.IsDraining() || r.Head == nil || r.Head.Minor == 0 || r.Head.Lists("Connection", "close") {
		return false
	}
	switch reason.Info().Status {
	case http.StatusProxyAuthRequired:
		c.refused++
		return c.refused < maxRefused && r.Body == 0 && (r.IsPlain() || len(c.reader.Buffered()) == 0)
	case http.StatusForbidden, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout:
		return r.IsPlain() && r.Body == 0
	}
	return false
}

// open tells the client that its tunnel is open. The tunnel then runs as what is
// left to do on the connection: the stack that all this needed is most of what it
// would cost while idle.
func (c *h1) open(a *Answer) (run func()) {
	answer := a.Switched
	if answer == nil {
		answer = []byte("HTTP/1.1 200 OK\r\n\r\n")
	}
	err := c.write(answer)
	a.done(err)
	if err != nil {
		return nil
	}
	return a.Run
}

// end does what is left to do with a connection.
func (c *h1) end(end End) (again bool) {
	switch end {
	case Keep:
		c.rested = true
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
func (c *h1) write(answer []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.front.cfg.HeadTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(answer)
	if err != nil {
		// It may have stopped within a TLS record: the caller could read nothing
		// that comes behind, not even a close_notify.
		c.conn.Cut()
	}
	return err
}

// linger ends a connection behind an answer that the caller may not have read
// yet: it may still be sending.
func (c *h1) linger() {
	c.reader.Release()
	tunnel.Linger(c.conn.Conn)
}
