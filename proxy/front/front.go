// Package front reads requests and writes their answers. There is one front for each
// wire protocol: HTTP/1.x, HTTP/2 and SOCKS5. The first bytes of a connection say which
// version of HTTP it is, and not ALPN: Go clients offer h2 to a proxy and then write
// HTTP/1.1. A listener speaks either HTTP or SOCKS5.
//
// A front reads a head with a strict parser, builds one canonical [Request] from it,
// passes that to a [Handler], and writes the [Answer] in the form of its protocol: a
// refusal, the opening of a tunnel, or an answer of the gateway itself. It knows neither
// callers nor policy: the handler finds out who is asking, decides whether the request
// is allowed, and connects to the destination. A request that the front cannot read, or
// that has two meanings, is passed to the handler with the reason to refuse it for, so
// that it gets a record like any other request.
package front

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// Handler answers requests. Those of one connection of HTTP/2 come at the same time.
type Handler interface {
	// Handle returns the answer to a request. It must refuse a request that has a
	// Reason, for that reason or another one. ctx ends when the client is known to have
	// left before it was answered.
	Handle(ctx context.Context, r *Request) Answer
}

// Request is a request that a front has read. It is valid until its answer was written.
type Request struct {
	// Method and Target are the received ones, also if the head is refused for
	// something that follows them. Each is "" if it is malformed or did not come.
	Method, Target string
	// Head is the parsed head of HTTP; nil if it is refused, and with SOCKS5.
	Head *head.Head
	// Asked is the request to decide: its destination, and for a plain request the
	// method, the path and the upgrade. The handler adds the caller and the time.
	// Fields that could not be parsed are zero.
	Asked allowlist.Request
	// Reason says why the request must be refused, whoever sent it; NoReason if
	// there is nothing wrong with it. Detail explains the reason to the caller and
	// in the record. Cause explains it in the record only, in place of Detail.
	Reason allowlist.Reason
	Detail string
	Cause  string
	// Client is the connection of the client. The handler writes to it only as a
	// tunnel or as the answer to a plain request.
	Client net.Conn
	// Reader reads what follows the head; nil if the head is refused, for a stream, and
	// with SOCKS5.
	Reader *head.Reader
	// SOCKS5 says that the request came by SOCKS5. Method is then CONNECT or the name of
	// another command, and Target has the form of that of a CONNECT.
	SOCKS5 bool
	// Stream says that the request came on a stream, which it has for itself, beside
	// others on one connection of HTTP/2. Client is that stream.
	Stream bool
	// Body is the length of the body, or head.Chunked. A CONNECT has none.
	Body int64
	// Query is set for a request that the gateway itself is asked, and that may contain
	// a DNS query (RFC 8484). It is nil for any other request.
	Query *Query

	// The following fields are set for a plain request, which is forwarded and does
	// not open a tunnel by CONNECT.

	URL allowlist.URL
	// Protocols lists the protocols of the field Upgrade that may be requested from
	// an origin, in the form of that field; "" if there are none.
	Protocols string
	// StopsHere says that the request may not be forwarded, because its Max-Forwards
	// is 0.
	StopsHere bool

	early []byte // bytes behind the request, with SOCKS5
}

// Early returns the bytes behind the request that have already come.
func (r *Request) Early() []byte {
	if r.Reader == nil {
		return r.early
	}
	return slices.Clone(r.Reader.Buffered())
}

// IsPlain reports whether the request is a plain one, which is forwarded, and not a
// CONNECT or a query. It is false without a head, and for a CONNECT that is not in
// capital letters, which is refused.
func (r *Request) IsPlain() bool { return r.Head != nil && r.Query == nil && !IsConnect(r.Method) }

// IsConnect reports whether a method is CONNECT, in any case of its letters.
func IsConnect(method string) bool { return strings.EqualFold(method, http.MethodConnect) }

// Conn is the connection of a client.
type Conn struct {
	net.Conn // a *tls.Conn over TLS, so that a tunnel holds no buffer while idle
	// Cut closes the connection at once. Abort closes it in a way that the client
	// cannot take for an orderly end.
	Cut, Abort func()
	// Broken is called once if the front ends the connection because of what the client
	// has sent outside a request. flood says that it was too much of what carries
	// nothing. nil means that nobody needs it.
	Broken func(flood bool, detail string)
	// IsQueryAuthority reports whether the authority that a request names (the field
	// Host, or :authority) is this listener, so that the request may contain a DNS query.
	// nil means that the listener takes no queries.
	IsQueryAuthority func(authority string) bool
	// Panicked is called after a panic while a stream of HTTP/2 is served, which ends that
	// stream only. Without it, such a panic ends the process: no caller can recover it.
	Panicked func(cause any, stack []byte)
}

// Kind is the form of an answer. The zero value refuses.
type Kind uint8

// The kinds.
const (
	Refused   Kind = iota // the front writes Refusal
	Opened                // the connection of the client becomes a tunnel
	Local                 // the front writes Response, which the gateway itself gives
	Forwarded             // the handler has written the answer of an origin
)

// Answer is a handler's answer to a request. The zero value is a refusal for an internal
// error.
type Answer struct {
	Kind Kind
	// Done is called once, before the front waits for the client again. err is nil
	// if the answer was written, and says why not otherwise. Done may be nil. The
	// front never calls it for a forwarded answer.
	Done func(err error)

	// Refusal is the answer of kind Refused. The front sets Bodyless and JSON.
	Refusal refusal.Refusal
	// Given, if not nil, is written in place of Refusal: the answer of kind Refused as it
	// was given to the handler.
	Given *refusal.Response
	// Response is the answer of kind Local.
	Response Response
	// WasAllowed says that the request had been allowed before it was refused, or before
	// the gateway answered it. The connection may then stay idle as long as after an
	// origin's answer.
	WasAllowed bool
	// Last says that no other request may follow an answer of kind Refused or Local on
	// the connection.
	Last bool

	// Note is the value of a field Proxy-Status in the answer that opens a tunnel by
	// CONNECT; "" adds none.
	Note string
	// Switched is the origin's answer to a request that opened a tunnel by an
	// upgrade; nil if the tunnel was opened by CONNECT.
	Switched []byte
	// Run relays the tunnel of kind Opened after the answer was written. It is
	// called after the front's own functions have returned.
	Run func()

	// End says what to do with the connection after an answer of kind Forwarded.
	End End
}

// Response is an answer that the gateway itself gives, without the form of a protocol.
type Response struct {
	Status int
	// Fields are the fields of the head, in canonical form, without Date, Connection and
	// Content-Length, which the front adds.
	Fields http.Header
	Body   []byte // left out of an answer to HEAD
}

// refusal returns the response of an answer of kind Refused to a request.
func (a *Answer) refusal(r *Request, d refusal.Disclosure) refusal.Response {
	bodyless := r.Head != nil && r.Head.Method == http.MethodHead
	if a.Given == nil {
		refused := a.Refusal
		refused.Bodyless = bodyless
		refused.JSON = r.Head != nil && strings.Contains(r.Head.Get("Accept"), "application/problem+json")
		return refused.Response(d)
	}
	given := *a.Given
	if bodyless {
		given.Body = nil
	}
	return given
}

// done calls Done, unless it was called or is nil.
func (a *Answer) done(err error) {
	if done := a.Done; done != nil {
		a.Done = nil
		done(err)
	}
}

// End says what to do with the connection of a client after a forwarded answer.
type End uint8

// The ends. The zero value closes the connection.
const (
	Close  End = iota
	Linger     // close it after the client, which may still be sending, had time to read its answer
	Abort      // close it so that the client notices that the answer is incomplete
	Keep       // another request may follow
)
