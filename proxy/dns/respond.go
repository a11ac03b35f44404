package dns

import (
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// response is the response to a query, with what its record says about it.
type response struct {
	silent bool   // says that nothing is sent
	buf    []byte // the message, after the prefix of the transport

	code              int
	answers, filtered int           // numbers of records that were sent and that were left out
	origin            string        // where the answer came from, as a word for records
	ttl               time.Duration // how long the answer may be kept
}

// reset empties a response and keeps its buffer.
func (r *response) reset() {
	*r = response{buf: r.buf[:0], origin: originLocal, ttl: localTTL * time.Second}
}

// emptyBuffer returns the empty buffer with space for the prefix.
func (r *response) emptyBuffer(from *transport) []byte {
	return append(r.buf[:0], make([]byte, from.prefix)...)
}

// finish stores a complete message. A message that is too long for a datagram is
// replaced by a truncated one (TC) without records.
func (r *response) finish(from *transport, q *query, buf []byte) {
	if from.isDatagram() && len(buf)-from.prefix > q.payload {
		r.answers = 0
		m := begin(q, buf[:from.prefix], r.code)
		m.buf[from.prefix+2] |= flagTC >> 8
		buf = opt(q, m.buf, from.prefix, r.code, extended{})
	}
	if from.prefix == 2 {
		size := len(buf) - from.prefix
		buf[0], buf[1] = byte(size>>8), byte(size) //nolint:gosec // G115: both halves of 16 bits
	}
	r.buf = buf
}

// answer writes the part of the resolver's answer that the caller may see. If the caller
// may see nothing of it, answer sets the reason to refuse the query.
func (x *exchange) answer(a resolve.Answer, now time.Time) {
	q, r := &x.query, &x.response
	buf := r.emptyBuffer(&x.transport)
	start := len(buf)
	buf, counts := a.Append(buf, resolve.Reply{
		ID: q.id, RD: q.flags&flagRD != 0, CD: q.flags&flagCD != 0, AD: q.do || q.flags&flagAD != 0,
		Question: q.question[:q.questionLen],
	}, now, &x.ruling)
	r.answers, r.filtered = counts.Answers, counts.Dropped+counts.Cut
	if counts.Dropped > 0 && counts.Answers == 0 {
		x.ruling.reason = allowlist.ResolvedAddressDenied
		if x.ruling.aliasReason != allowlist.NoReason {
			x.ruling.reason, x.ruling.detail = x.ruling.aliasReason, "it leads to "+x.ruling.aliasTarget.String()
		}
		return
	}
	x.server.cfg.Resolver.Bind(x.caller.Holder(), a, now, &x.ruling)
	e := extended{}
	if a.Origin() == resolve.OriginStale {
		e = extended{present: true, code: edeStale}
		if a.RCode() == codeNXDomain {
			e.code = edeStaleNX
		}
	}
	r.code, r.origin, r.ttl = a.RCode(), a.Origin().String(), a.TTL(now)
	r.finish(&x.transport, q, opt(q, buf, start, r.code, e))
}

// refuse writes the answer that refuses a query. id is the id of its record.
func (x *exchange) refuse(id string) {
	q, r, why := &x.query, &x.response, &x.ruling
	form, code := why.form(&x.transport, x.kind, q)
	if form == silence {
		r.silent = true
		return
	}
	r.code, r.answers = form.code(), 0
	m := begin(q, r.emptyBuffer(&x.transport), r.code)
	if form == nameError || form == noData {
		r.writeNoData(&m, form, why)
	}
	e := extended{present: why.reason != allowlist.NoReason, code: code, reason: why.reason, id: id}
	r.finish(&x.transport, q, opt(q, m.buf, x.transport.prefix, r.code, e))
}

// writeNoData writes the records of an answer without data, or the fixed answer to ANY and
// for localhost.
func (r *response) writeNoData(m *message, form shape, why *ruling) {
	host, typ := m.q.host, m.q.typ
	switch {
	case form == noData && typ == typeANY && why.reason == allowlist.TypeNotAllowed:
		m.hinfo()
		r.answers++
		return
	case !why.decision.Special:
	case host.IsLocalhost():
		r.setCode(m, codeNoError)
		if typ == allowlist.TypeA || typ == allowlist.TypeAAAA {
			addr := netip.IPv6Loopback()
			if typ == allowlist.TypeA {
				addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
			m.address(typ, addr)
			r.answers++
			return
		}
	case isResolver(host):
		r.setCode(m, codeNoError)
	}
	m.soa()
}

// setCode replaces the response code of a message.
func (r *response) setCode(m *message, code int) {
	m.buf[m.start+3] = m.buf[m.start+3]&^0xf | byte(code) //nolint:gosec // G115: four bits
	r.code = code
}
