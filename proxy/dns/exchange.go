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

// exchange is one query on its way through the steps, of which each has a file:
// read, decide, resolve, respond, record. It is used again for another query when
// it is done.
type exchange struct {
	server *Server
	from   origin
	door   door
	peer   netip.AddrPort // sender of a datagram, as the socket says it
	caller listen.Caller
	start  time.Time

	query    query // what was read
	kind     kind
	ruling   ruling        // what was decided
	looked   time.Duration // how long the look-up took; zero without one
	response response      // what is sent
	replied  bool          // the door has the response

	open     *audit.Open // opened, once the record is begun; nil before
	opened   audit.Open
	answered [audit.MaxAddresses]netip.Addr // what the record names of the response
}

// origin is where a query came in.
type origin struct {
	listener string
	wire     audit.Wire
	prefix   int // number of bytes in front of the response, for its length
}

// isDatagram reports whether an answer has to fit into one, and need not come.
func (o *origin) isDatagram() bool { return o.wire == wireUDP }

// The words for records.
const (
	wireUDP = audit.WireUDP
	wireTCP = audit.WireTCP
	wireDoT = audit.WireDoT
	wireDoH = audit.WireDoH

	sourceLocal = "local"
)

// door sends responses back to where their queries came in.
type door interface {
	// reply sends the response of an exchange, if it has one, and then calls
	// its done. It must not wait for the client for long.
	reply(ctx context.Context, x *exchange)
}

// take begins an exchange.
func (s *Server) take(from origin, to door, caller *listen.Caller) *exchange {
	x, _ := s.exchanges.Get().(*exchange) // New makes no other
	x.from, x.door, x.caller, x.start = from, to, *caller, time.Now()
	x.ruling = ruling{inspect: s.cfg.Inspect}
	x.response.reset()
	x.looked, x.replied, x.open = 0, false, nil
	return x
}

// keptResponse bounds what an exchange keeps of its buffer for the next one.
const keptResponse = 4096

// give ends an exchange.
func (s *Server) give(x *exchange) {
	if cap(x.response.buf) > keptResponse {
		x.response.buf = nil
	}
	x.door, x.open, x.ruling = nil, nil, ruling{}
	s.exchanges.Put(x)
}

// handle answers a query: at once, or from a goroutine of the group if a server
// has to be asked, or the record to be waited for. The packet is not kept.
func (s *Server) handle(ctx context.Context, lookups *sync.WaitGroup, x *exchange, msg []byte) {
	defer x.rescue(ctx)
	answered := x.receive(msg)
	if answered && (!s.cfg.Recorder.Required() || x.kind == noQuery) {
		x.complete(ctx)
		return
	}
	holder := x.caller.Holder()
	switch all, own := s.usage.look(holder); {
	case !all:
		x.ruling.reason, x.ruling.detail, x.ruling.crowded = allowlist.Busy, limit.KeyLookups.String(), true
		x.complete(ctx)
	case !own:
		x.ruling.reason, x.ruling.detail = allowlist.RateLimited, limit.KeyLookupsPerIdentity.String()
		x.complete(ctx)
	default:
		lookups.Go(func() {
			defer s.usage.landed(holder)
			defer x.rescue(ctx)
			if !answered {
				x.look(ctx)
			}
			x.complete(ctx)
		})
	}
}

// receive reads a packet and decides and answers it as far as nobody need be
// waited for. It reports false if look has to ask a server. What is no query is
// ignored.
func (x *exchange) receive(msg []byte) (answered bool) {
	x.kind = x.query.parse(msg, x.server.names)
	if x.kind == noQuery {
		x.server.counts.ignored.Add(1)
		x.response.silent = true
		return true
	}
	x.ruling.reason = x.decide()
	return x.ruling.refuses() || x.recall()
}

// complete gives the response to the door. One that must be recorded first, or
// that refuses, is settled before.
func (x *exchange) complete(ctx context.Context) {
	x.settle(ctx)
	if x.response.silent && x.kind != noQuery {
		x.server.counts.shed.Add(1)
	}
	x.replied = true
	x.door.reply(ctx, x)
}

// done ends the exchange, when the response was sent or could not be.
func (x *exchange) done(ctx context.Context, err error) {
	defer x.server.contain(ctx)
	if x.kind != noQuery {
		x.note(ctx, err)
	}
	x.server.give(x)
}

// rescue ends a query that panicked, and no other.
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

// giveUp tells the door that nothing comes of a query whose answer panicked,
// too.
func (x *exchange) giveUp(ctx context.Context) {
	cause := recover()
	if cause == nil {
		return
	}
	x.server.panicked(ctx, cause)
	if !x.replied {
		x.replied, x.response.silent = true, true
		x.door.reply(ctx, x)
	}
}
