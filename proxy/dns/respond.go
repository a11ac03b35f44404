package dns

import (
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// response is what is sent for a query, and what its record says of it.
type response struct {
	silent bool   // nothing is sent
	buf    []byte // message, behind as many bytes as its origin's prefix has

	code              int
	answers, filtered int           // numbers of records that are in it, and that were left out
	source            string        // word for where the answer is from
	ttl               time.Duration // how long it holds
}

// reset begins a response; its buffer is used again.
func (r *response) reset() {
	*r = response{buf: r.buf[:0], source: sourceLocal, ttl: localTTL * time.Second}
}

// room returns the empty buffer with room for the prefix.
func (r *response) room(from *origin) []byte {
	return append(r.buf[:0], make([]byte, from.prefix)...)
}

// finish takes a whole message. One that is too long for a datagram is cut down
// to what says so.
func (r *response) finish(from *origin, q *query, buf []byte) {
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

// answer writes the resolver's answer, as far as the caller may see it. If it may
// see none of it, that is why the query is refused.
func (x *exchange) answer(a resolve.Answer, now time.Time) {
	q, r := &x.query, &x.response
	buf := r.room(&x.from)
	start := len(buf)
	buf, counts := a.Append(buf, resolve.Reply{
		ID: q.id, RD: q.flags&flagRD != 0, CD: q.flags&flagCD != 0, AD: q.do || q.flags&flagAD != 0,
		Question: q.question[:q.asked],
	}, now, &x.ruling)
	r.answers, r.filtered = counts.Answers, counts.Dropped+counts.Cut
	if counts.Dropped > 0 && counts.Answers == 0 {
		x.ruling.reason = allowlist.ResolvedAddressDenied
		if x.ruling.hop != allowlist.NoReason {
			x.ruling.reason, x.ruling.detail = x.ruling.hop, "it leads to "+x.ruling.led.String()
		}
		return
	}
	x.server.cfg.Resolver.Bind(x.caller.Holder(), a, now, &x.ruling)
	e := extended{}
	if a.Origin() == resolve.OriginStale {
		e = extended{is: true, code: edeStale}
		if a.RCode() == codeNXDomain {
			e.code = edeStaleNX
		}
	}
	r.code, r.source, r.ttl = a.RCode(), a.Origin().String(), a.TTL(now)
	r.finish(&x.from, q, opt(q, buf, start, r.code, e))
}

// refuse writes the answer that says why there is none of the resolver's. The id
// is that of the record.
func (x *exchange) refuse(id string) {
	q, r, why := &x.query, &x.response, &x.ruling
	form, code := why.form(&x.from, x.kind, q)
	if form == silence {
		r.silent = true
		return
	}
	r.code, r.answers = form.code(), 0
	m := begin(q, r.room(&x.from), r.code)
	if form == nameError || form == noData {
		r.nothing(&m, form, why)
	}
	e := extended{is: why.reason != allowlist.NoReason, code: code, reason: why.reason, id: id}
	r.finish(&x.from, q, opt(q, m.buf, x.from.prefix, r.code, e))
}

// nothing writes the records of an answer that says that there is nothing, or
// what there always is.
func (r *response) nothing(m *message, form shape, why *ruling) {
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
