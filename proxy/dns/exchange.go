package dns

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// exchange is one query in its steps, each of which has a file: read, decide, resolve,
// respond and record. It is reused for another query when it is done.
type exchange struct {
	server    *Server
	transport transport
	replier   replier
	peer      netip.AddrPort // sender of a datagram, as the socket reports it
	caller    listen.Caller
	start     time.Time
	// attributed is the field audit.AttributedField of a query over HTTPS; "" without one.
	attributed string

	query      query // result of reading
	kind       kind
	ruling     ruling        // result of deciding
	lookupTime time.Duration // how long the look-up took; zero without one
	response   response      // response to send
	replied    bool          // says that the response was passed to replier

	pending        *audit.Pending // points to pendingStorage once the record is begun; nil before
	pendingStorage audit.Pending
	answered       [audit.MaxAddresses]netip.Addr // storage for the addresses in the response that the record names
}

// transport is the listener and the wire that a query came over.
type transport struct {
	listener string
	wire     audit.Wire
	prefix   int  // number of bytes before the response, which hold its length
	shared   bool // says that the connection also carries other requests than queries, and has a slot for these
}

// isDatagram reports whether the query came over UDP: the answer must fit into a
// datagram, and may be left out.
func (o *transport) isDatagram() bool { return o.wire == wireUDP }

// The wires, and the origin of an answer that the server gives itself, as records write
// them.
const (
	wireUDP = audit.WireUDP
	wireTCP = audit.WireTCP
	wireDoT = audit.WireDoT
	wireDoH = audit.WireDoH

	originLocal = "local"
)

// replier sends responses to the clients of one socket or connection.
type replier interface {
	// reply sends the response of an exchange, if it has one, and then calls done of the
	// exchange. It must not wait long for the client.
	reply(ctx context.Context, x *exchange)
}

// getExchange returns an exchange for a new query.
func (s *Server) getExchange(from transport, to replier, caller *listen.Caller) *exchange {
	x, _ := s.exchanges.Get().(*exchange) // New returns this type only
	x.transport, x.replier, x.caller, x.start = from, to, *caller, time.Now()
	x.ruling = ruling{inspect: s.cfg.Inspect}
	x.response.reset()
	x.attributed, x.lookupTime, x.replied, x.pending = "", 0, false, nil
	return x
}

// keptResponse is the largest buffer that an exchange keeps for the next query.
const keptResponse = 4096

// putExchange puts an exchange back for reuse.
func (s *Server) putExchange(x *exchange) {
	if cap(x.response.buf) > keptResponse {
		x.response.buf = nil
	}
	x.replier, x.pending, x.ruling, x.attributed = nil, nil, ruling{}, ""
	s.exchanges.Put(x)
}

// handle answers a query. It does so at once, or in a goroutine of lookups if it has to
// wait for a server or for the record. It does not keep the packet.
func (s *Server) handle(ctx context.Context, lookups *sync.WaitGroup, x *exchange, msg []byte) {
	defer x.rescue(ctx)
	answered := x.receive(msg)
	if answered && (!s.cfg.Recorder.Required() || x.kind == noQuery) {
		x.complete(ctx)
		return
	}
	holder := x.caller.Holder()
	switch totalOK, holderOK := s.usage.begin(holder); {
	case !totalOK:
		x.ruling.reason, x.ruling.detail, x.ruling.lookupsFull = allowlist.Busy, limit.KeyLookups.String(), true
		x.complete(ctx)
	case !holderOK:
		x.ruling.reason, x.ruling.detail = allowlist.RateLimited, limit.KeyLookupsPerIdentity.String()
		x.complete(ctx)
	default:
		lookups.Go(func() {
			defer s.usage.end(holder)
			defer x.rescue(ctx)
			if !answered {
				x.lookUp(ctx)
			}
			x.complete(ctx)
		})
	}
}

// receive reads, decides and answers a query as far as that is possible without
// waiting. It returns false if lookUp must ask a server. A query that is refused counts
// as answered; complete writes its response. A packet that is no query is ignored.
func (x *exchange) receive(msg []byte) (answered bool) {
	x.kind = x.query.parse(msg, x.server.names)
	if x.kind == noQuery {
		x.server.counts.ignored.Add(1)
		x.response.silent = true
		return true
	}
	x.ruling.reason = x.decide()
	return x.ruling.refuses() || x.answerFromCache()
}

// complete passes the response to the replier. Before that, prepare writes the response of a
// refused query, and commits a record that must be written before the response is sent.
func (x *exchange) complete(ctx context.Context) {
	x.prepare(ctx)
	if x.response.silent && x.kind != noQuery {
		x.server.counts.shed.Add(1)
	}
	x.replied = true
	x.replier.reply(ctx, x)
}

// done ends the exchange after the response was sent; err says why it could not be
// sent.
func (x *exchange) done(ctx context.Context, err error) {
	defer x.server.contain(ctx)
	if x.kind != noQuery {
		x.finishRecord(ctx, err)
	}
	x.server.putExchange(x)
}

// rescue recovers from a panic in a query, and answers the query with a fault of the
// gateway.
func (x *exchange) rescue(ctx context.Context) {
	cause := recover()
	if cause == nil {
		return
	}
	x.server.panicked(ctx, cause)
	if x.replied {
		return
	}
	defer x.giveUp(ctx)
	x.ruling.fail(allowlist.InternalError, "the gateway panicked: its log has the stack")
	x.complete(ctx)
}

// giveUp recovers from a panic of rescue itself, and ends the query without an answer.
func (x *exchange) giveUp(ctx context.Context) {
	cause := recover()
	if cause == nil {
		return
	}
	x.server.panicked(ctx, cause)
	if !x.replied {
		x.replied, x.response.silent = true, true
		x.replier.reply(ctx, x)
	}
}
