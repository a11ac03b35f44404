// Package front reads the requests of a wire and writes their answers: one front
// a wire, of which there is HTTP/1.x now.
//
// A front reads a head by the strict parser, makes one canonical [Request] of it,
// hands that to a [Handler], and writes the [Answer] in the form of its wire: a
// refusal, the opening of a tunnel, or an answer of its own. It knows neither
// callers nor policy: who is asking, whether that is allowed, and where it leads
// is the handler's to say. A request that the front cannot read, or that has two
// meanings, is handed over with the reason to refuse it for, so that it has its
// record like any other.
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

// Handler answers requests.
type Handler interface {
	// Handle returns the answer to a request. It must refuse one that has a
	// Reason for that reason or another one.
	Handle(ctx context.Context, r *Request) Answer
}

// Request is what a front has read. It is valid until the answer was written.
type Request struct {
	// Method and Target are as received, also of a head that is refused for what
	// stands behind them; "" for what is malformed or did not come.
	Method, Target string
	// Head is nil if it is refused.
	Head *head.Head
	// Asked is what is to be decided: its destination, and of a plain request the
	// method, the path and the upgrade. Who asks and when is for the handler to
	// fill in. Zero as far as it could not be parsed.
	Asked allowlist.Request
	// Reason says why the request must be refused, whoever sent it; NoReason if
	// there is nothing wrong with it. Detail says more, for the caller and the
	// record, and Cause in place of it for the record alone.
	Reason allowlist.Reason
	Detail string
	Cause  string
	// Client is the client's end of the connection. Only a tunnel or the answer to
	// a plain request is written to it by the handler.
	Client net.Conn
	// Reader is where what follows the head comes from; nil if the head is refused.
	Reader *head.Reader

	// What follows is set of a plain request: one that is to be forwarded, and not
	// to become a tunnel.

	URL allowlist.URL
	// Body is the length of the body, or head.Chunked.
	Body int64
	// Protocols are those of Upgrade that may be asked of an origin, as that field
	// lists them; "" if there are none.
	Protocols string
	// StopsHere says that it may not be forwarded: its Max-Forwards is 0.
	StopsHere bool
}

// Early returns what the client has sent behind the request, as far as it has come.
func (r *Request) Early() []byte {
	if r.Reader == nil {
		return nil
	}
	return slices.Clone(r.Reader.Buffered())
}

// IsPlain reports whether the request is to be forwarded and not to become a
// tunnel. A CONNECT in another case is neither, and refused as such.
func (r *Request) IsPlain() bool { return r.Head != nil && !IsConnect(r.Method) }

// IsConnect reports whether a method is CONNECT, in any case of its letters.
func IsConnect(method string) bool { return strings.EqualFold(method, http.MethodConnect) }

// Conn is the connection of a client.
type Conn struct {
	net.Conn // over TLS a *tls.Conn, so that a tunnel holds no buffer while idle
	// Cut closes it at once, and Abort so that nobody takes that for a proper end.
	Cut, Abort func()
}

// Kind is the form of an answer. The zero value refuses.
type Kind uint8

// The kinds.
const (
	Refused   Kind = iota // Refusal says why
	Opened                // the client's end becomes that of a tunnel
	Own                   // a plain request that stops here is answered by the front
	Forwarded             // the handler has written the answer of an origin
)

// Answer is what a handler made of a request. The zero value is a refusal for an
// internal error.
type Answer struct {
	Kind Kind
	// Done is called once, before the front waits for the client: with nil if the
	// answer was written, or with why it was not. It may be nil. The front never
	// calls it for a forwarded answer.
	Done func(err error)

	// Refusal is of Refused. The front sets how its wire writes it.
	Refusal refusal.Refusal
	// MayRest says that the request had been allowed before it was refused: the
	// connection may rest behind it as behind an answer.
	MayRest bool
	// Last says that no other request may follow on the connection.
	Last bool

	// Switched is the origin's answer to a request that became a tunnel by an
	// upgrade; nil if it did by CONNECT.
	Switched []byte
	// Run relays, once the answer of Opened was written. It is called on a stack
	// that the front has left.
	Run func()

	// End says what is left to do with the connection once something was
	// forwarded.
	End End
}

// done tells the handler what became of its answer.
func (a *Answer) done(err error) {
	if done := a.Done; done != nil {
		a.Done = nil
		done(err)
	}
}

// End is how an exchange leaves the connection of its client.
type End uint8

// The ends. The zero value closes it.
const (
	Close  End = iota
	Linger     // the client may still be sending: it gets its answer first
	Abort      // the answer was cut short, which must not look proper
	Keep       // another request may follow
)
