package dns

import (
	"context"
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// exchange is one query on its way through a door. It is used again for
// another one when it is done.
type exchange struct {
	server *Server
	origin
	door   door
	peer   netip.AddrPort // where a datagram came from, as the socket says it
	caller listen.Caller
	start  time.Time
	query  query
	kind   kind

	state    *live.State
	decision allowlist.NameDecision
	decided  time.Duration
	looked   time.Duration
	reason   allowlist.Reason // NoReason: the answer is one of the resolver's
	detail   string
	hop      allowlist.Reason // why an alias was refused
	class    allowlist.Class  // of an address that was refused

	open    *audit.Open // opened; nil until the query is refused, or has been answered
	opened  audit.Open
	replied bool   // the door has it
	out     []byte // the response, behind prefix bytes
	sent    struct {
		silent            bool // there is no response
		code              int
		answers, filtered int
		source            string
		ttl               time.Duration
	}
}

// origin is where a query came in.
type origin struct {
	listener string
	wire     audit.Wire
	prefix   int // bytes in front of the response, for its length
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

// take begins an exchange.
func (s *Server) take(from origin, to door, caller *listen.Caller) *exchange {
	x, _ := s.exchanges.Get().(*exchange) // New makes no other
	x.origin, x.door, x.caller = from, to, *caller
	x.start = time.Now()
	x.state, x.decision, x.open = nil, allowlist.NameDecision{}, nil
	x.replied = false
	x.decided, x.looked = 0, 0
	x.reason, x.hop, x.class, x.detail = allowlist.NoReason, allowlist.NoReason, allowlist.Invalid, ""
	x.sent.silent, x.sent.code, x.sent.answers, x.sent.filtered, x.sent.ttl = false, 0, 0, 0, localTTL*time.Second
	x.sent.source = sourceLocal
	return x
}

// maxQuery bounds a query: longer ones are malformed, of which one byte more
// than that is read, so that they are known.
const (
	maxQuery  = 4096
	keptQuery = maxQuery + 1
)

// keptResponse bounds what an exchange keeps of its buffer for the next one.
const keptResponse = 4096

// give ends an exchange.
func (s *Server) give(x *exchange) {
	if cap(x.out) > keptResponse {
		x.out = nil
	}
	x.open, x.state, x.decision, x.door = nil, nil, allowlist.NameDecision{}, nil
	s.exchanges.Put(x)
}

// receive reads a packet and answers it if nobody need be waited for. It
// reports false if look has to do that, and ignores what is no query.
func (x *exchange) receive(msg []byte) (answered bool) {
	x.kind = x.query.parse(msg, x.server.names)
	if x.kind == noQuery {
		x.server.counts.ignored.Add(1)
		x.sent.silent = true
		return true
	}
	if x.reason = x.admit(); x.reason != allowlist.NoReason || !x.decision.Allowed() {
		return true
	}
	answer, ok := x.server.cfg.Resolver.Cached(x.question(), x.start)
	if ok {
		x.answer(answer, x.start)
	}
	return ok
}

// admit says everything that can be said without a lookup.
func (x *exchange) admit() allowlist.Reason {
	caller, state := &x.caller, x.server.cfg.Current.Load()
	if !x.server.cfg.Budgets.Query(state.Limiting(), caller.ID) {
		return allowlist.RateLimited
	}
	switch x.kind {
	case malformed, noQuery:
		return allowlist.MalformedHeader
	case notImplemented:
		return allowlist.MethodNotAllowed
	case unknownVersion:
		return allowlist.UnsupportedVersion
	case noHost, transfer, wellFormedQuery:
	}
	switch {
	case caller.Reason != allowlist.NoReason:
		x.detail = caller.Detail
		return caller.Reason
	case !caller.NotAfter.IsZero() && x.start.After(caller.NotAfter):
		return allowlist.IdentityExpired
	case x.kind == transfer:
		return allowlist.TypeNotAllowed
	}
	x.decide(state, x.start)
	return x.decision.Reason
}

// decide asks a state, once.
func (x *exchange) decide(state *live.State, now time.Time) {
	x.state = state
	x.decision = x.state.DecideName(allowlist.NameRequest{
		ID: x.caller.ID, Source: x.caller.Source, Host: x.query.host, Type: x.query.typ, Time: now,
	})
	x.decided = time.Since(now)
}

func (x *exchange) question() resolve.Question {
	return resolve.Question{Name: x.query.host, Type: uint16(x.query.typ)}
}

// look looks the name up and answers. Its caller holds a place in the budget.
func (x *exchange) look(ctx context.Context) {
	begin := time.Now()
	asker := resolve.Asker{ID: x.caller.ID, Wildcard: x.decision.Wildcard()}
	answer, err := x.server.cfg.Resolver.Lookup(ctx, asker, x.question())
	now := time.Now()
	x.looked = now.Sub(begin)
	if state := x.server.cfg.Current.Load(); state != x.state { // what was allowed then may be forbidden now
		if x.decide(state, now); !x.decision.Allowed() {
			x.forbidden(answer, err)
			return
		}
	}
	if err == nil {
		x.answer(answer, now)
		return
	}
	x.reason = allowlist.ReasonOf(err)
}

// forbidden refuses a query that was allowed when it was looked up. One that may
// have been sent to a server is cut off, and not denied: the name has left.
func (x *exchange) forbidden(answer resolve.Answer, err error) {
	x.reason = x.decision.Reason
	if allowlist.ReasonOf(err) == allowlist.NameBudget {
		return
	}
	if origin := answer.Origin(); err == nil && (origin == resolve.OriginCache || origin == resolve.OriginLocal) {
		return
	}
	x.reason, x.detail = allowlist.CutOff, live.EndedBy(x.reason).String()
}

// answer writes the resolver's answer, as far as the caller may see it.
func (x *exchange) answer(a resolve.Answer, now time.Time) {
	q := &x.query
	buf := x.buffer()
	start := len(buf)
	buf, counts := a.Append(buf, resolve.Reply{
		ID: q.id, RD: q.flags&flagRD != 0, CD: q.flags&flagCD != 0, AD: q.do || q.flags&flagAD != 0,
		Question: q.question[:q.asked],
	}, now, x)
	x.sent.answers, x.sent.filtered = counts.Answers, counts.Dropped
	if counts.Dropped > 0 && counts.Answers == 0 {
		x.reason = allowlist.ResolvedAddressDenied
		if x.hop != allowlist.NoReason {
			x.reason = x.hop
		}
		return
	}
	x.server.cfg.Resolver.Bind(x.caller.ID, a, now, x)
	e := extended{}
	if a.Origin() == resolve.OriginStale {
		e = extended{is: true, code: edeStale}
		if a.RCode() == codeNXDomain {
			e.code = edeStaleNX
		}
	}
	x.sent.code, x.sent.source, x.sent.ttl = a.RCode(), a.Origin().String(), a.TTL(now)
	x.finish(opt(q, buf, start, x.sent.code, e))
}

// Addr reports whether the caller may see an address. It is a [resolve.Filter].
func (x *exchange) Addr(addr netip.Addr) bool {
	class := x.decision.CheckAddr(addr)
	if class != allowlist.Public {
		x.class = class
	}
	return class == allowlist.Public
}

// Hop reports whether the caller may be led to a name.
func (x *exchange) Hop(name allowlist.Host) bool {
	why := x.decision.CheckHop(name, x.server.cfg.Inspect)
	if why != allowlist.NoReason {
		x.hop = why
	}
	return why == allowlist.NoReason
}

// buffer returns the response's buffer with room for the prefix.
func (x *exchange) buffer() []byte {
	return append(x.out[:0], make([]byte, x.prefix)...)
}

// finish takes a whole response. One that is too long for a datagram is cut
// down to what says so.
func (x *exchange) finish(buf []byte) {
	if x.isDatagram() && len(buf)-x.prefix > x.query.payload {
		m := begin(&x.query, buf[:x.prefix], x.sent.code)
		m.buf[x.prefix+2] |= flagTC >> 8
		buf = opt(&x.query, m.buf, x.prefix, x.sent.code, extended{})
	}
	if x.prefix == 2 {
		size := len(buf) - x.prefix
		buf[0], buf[1] = byte(size>>8), byte(size) //nolint:gosec // G115: both halves of 16 bits
	}
	x.out = buf
}

// refuse writes the answer that says why there is none of the resolver's.
func (x *exchange) refuse(id string) {
	reason := x.reason
	if reason == allowlist.NoReason { // only observed
		reason = x.decision.WouldReason
	}
	form, code := answerTo(reason)
	switch {
	case x.overLimit():
		form = silence
	case x.kind == transfer:
		form, code = refused, edeProhibited
	case x.hop != allowlist.NoReason: // the name itself is allowed, and exists
		form, code = noData, edeBlocked
	}
	if form == silence {
		x.sent.silent = true
		return
	}
	if form == nameError && (x.decision.Above || x.query.isRoot()) {
		form = noData
	}
	x.sent.code, x.sent.answers = form.code(), 0
	m := begin(&x.query, x.buffer(), x.sent.code)
	if form == nameError || form == noData {
		x.local(&m, form)
	}
	e := extended{is: x.reason != allowlist.NoReason, code: code, reason: x.reason, id: id}
	x.finish(opt(&x.query, m.buf, x.prefix, x.sent.code, e))
}

// overLimit reports whether the datagram is dropped for the reason.
func (x *exchange) overLimit() bool {
	switch x.reason { //nolint:exhaustive // the others are answered
	case allowlist.RateLimited, allowlist.NameBudget, allowlist.Busy:
		return x.isDatagram()
	}
	return false
}

// local writes the records of an answer that says that there is nothing, or
// what there always is.
func (x *exchange) local(m *message, form shape) {
	host, typ := x.query.host, x.query.typ
	switch {
	case form == noData && typ == typeANY && x.reason == allowlist.TypeNotAllowed:
		m.hinfo()
		x.sent.answers++
		return
	case !x.decision.Special:
	case host.IsLocalhost():
		x.setCode(m, codeNoError)
		if typ == allowlist.TypeA || typ == allowlist.TypeAAAA {
			addr := netip.IPv6Loopback()
			if typ == allowlist.TypeA {
				addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			m.address(typ, addr)
			x.sent.answers++
			return
		}
	case isResolver(host):
		x.setCode(m, codeNoError)
	}
	m.soa()
}

// setCode replaces the response code of a message.
func (x *exchange) setCode(m *message, code int) {
	m.buf[m.start+3] = m.buf[m.start+3]&^0xf | byte(code) //nolint:gosec // G115: four bits
	x.sent.code = code
}
