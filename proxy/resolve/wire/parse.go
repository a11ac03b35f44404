package wire

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// Parse checks that msg is a whole answer to the query and returns what it
// says. The error is one of this package's, or wraps it: after ErrStray and
// ErrCase the true answer may still come. It keeps no part of msg.
func (q *Query) Parse(msg []byte) (*Message, error) {
	body, err := q.check(msg)
	if err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	code := int(flags & 0xf)
	if flags&flagTC != 0 && (body > headLen || code == NoError) {
		return nil, ErrTruncated
	}
	p := parser{
		reader: reader{msg: msg, off: body}, question: q.question, owner: string(appendName(nil, q.question.Name.String())),
		out: Message{rcode: uint8(code), authentic: flags&flagAD != 0, lame: flags&(flagRA|flagAA) == 0, ttl: MaxTTL},
	}
	if refuses(flags) || body == headLen {
		return nil, p.refusal(code)
	}
	if err := p.sections(); err != nil {
		return nil, err
	}
	if p.extended != 0 {
		return nil, &ServerError{Code: p.extended<<4 | code, Extended: p.ede}
	}
	return p.message(flags&flagAA != 0)
}

// parser reads one answer. Names stand in it as on the wire, without compression and
// in lower case.
type parser struct {
	reader

	question Question
	records  []answer          // what may count of the answer section
	aliases  map[string]answer // the first of each owner
	owner    string            // the end of the chain so far
	loopback bool              // owner is localhost or below it
	chain    []string          // the names before it
	finals   int               // records that were asked for
	kept     int               // those of them that are of use
	hints    int               // in those
	soa      bool
	foreign  bool     // a record of the answer section has another class than IN
	referral bool     // name servers stand in the authority section
	extended int      // upper bits of the response code
	ede      Extended // the one that says the most
	edited   bool
	out      Message
}

// answer is a record of the answer section.
type answer struct {
	header
	owner string
	at    int // where its rdata begins
}

// sections reads the answer's records, the SOA of a negative answer, and the
// response code's upper bits, which stand in the OPT.
func (p *parser) sections() error {
	for range binary.BigEndian.Uint16(p.msg[6:]) {
		if err := p.collect(); err != nil {
			return err
		}
	}
	end := p.off
	if err := p.walk(); err != nil {
		return err
	}
	p.off = end
	for range binary.BigEndian.Uint16(p.msg[8:]) {
		if err := p.authority(); err != nil {
			return err
		}
	}
	for range binary.BigEndian.Uint16(p.msg[10:]) {
		_, h, err := p.next()
		if err != nil {
			return err
		}
		if h.typ == dns.TypeOPT {
			p.options(h)
		}
		p.off += h.size
	}
	if p.off != len(p.msg) {
		return fmt.Errorf("%w: %d bytes behind it", ErrMalformed, len(p.msg)-p.off)
	}
	return nil
}

// message finishes what was read.
func (p *parser) message(authoritative bool) (*Message, error) {
	m := &p.out
	if err := p.nothing(authoritative); err != nil {
		return nil, err
	}
	m.negative = p.kept == 0 && (p.question.Type != TypeCNAME || len(p.chain) == 0)
	m.open = m.negative && len(p.chain) > 0 && p.finals == 0 && !p.soa && !p.loopback && m.rcode == NoError
	if len(m.data) == 0 || m.negative && !p.soa && !m.open {
		m.ttl = 0 // nothing says how long it holds (RFC 2308 section 5)
	}
	m.authentic = m.authentic && !p.edited
	return m, nil
}

// nothing returns why a message is no answer that there is nothing, though it has no
// record of the name and the type.
func (p *parser) nothing(authoritative bool) error {
	switch {
	case p.out.rcode == NXDomain && p.finals > 0:
		return fmt.Errorf("%w: records of a name that does not exist", ErrMalformed)
	case p.out.rcode == NXDomain, p.finals > 0, len(p.chain) > 0, p.soa:
		return nil
	case p.referral && !authoritative: // RFC 2308 section 2.2
		return ErrReferral
	case p.foreign:
		return fmt.Errorf("%w: records of another class than IN", ErrMalformed)
	case len(p.records)+len(p.aliases) > 0:
		return fmt.Errorf("%w: all records are those of other names", ErrChain)
	}
	return nil
}

// collect reads one record of the answer section. One of another class, or of a type
// that nobody asked for, such as a signature, is passed over.
func (p *parser) collect() error {
	owner, h, err := p.next()
	if err != nil {
		return err
	}
	a := answer{header: h, owner: owner, at: p.off}
	p.off += h.size
	switch {
	case h.class != dns.ClassINET:
		p.edited, p.foreign = true, true
	case h.typ != TypeCNAME && h.typ != p.question.Type:
		p.edited = true
	case h.typ == TypeCNAME:
		if _, twice := p.aliases[owner]; twice {
			p.edited = true // a name has one alias (RFC 2181 section 10.1)
			break
		}
		if p.aliases == nil {
			p.aliases = map[string]answer{}
		}
		p.aliases[owner] = a
	default:
		p.records = append(p.records, a)
	}
	return nil
}

// walk goes from the name over its aliases to the records that were asked for, and
// keeps them. It passes over what is not on the way, and looks once at each record.
func (p *parser) walk() error {
	for !p.loopback && (p.question.Type != TypeCNAME || len(p.chain) == 0) {
		alias, ok := p.aliases[p.owner]
		if !ok {
			break
		}
		if err := p.follow(alias); err != nil {
			return err
		}
	}
	p.edited = p.edited || len(p.aliases) > len(p.chain)
	if p.loopback { // what it has is known
		p.edited = p.edited || len(p.records) > 0
		return p.keepLoopback()
	}
	for _, a := range p.records {
		if a.owner != p.owner {
			p.edited = true
			continue
		}
		if err := p.final(a); err != nil {
			return err
		}
	}
	return nil
}

// final keeps a record that was asked for.
func (p *parser) final(a answer) error {
	p.finals++
	if p.kept == MaxRecords {
		p.cut(1)
		return nil
	}
	rr, err := p.rr(a.header, a.at)
	if err != nil {
		return err
	}
	rdata, err := pack(rr, p.msg[a.at:a.at+a.size])
	if err != nil {
		return err
	}
	if a.typ == TypeSVCB || a.typ == TypeHTTPS {
		return p.service(rr, rdata)
	}
	return p.keep(record{typ: a.typ, ttl: clamp(a.ttl, MaxTTL), rdata: rdata})
}

// cut notes that n records or hints of the answer are left out, because there are
// too many.
func (p *parser) cut(n int) {
	p.out.cut += uint16(n) //nolint:gosec // G115: a message of 64 KiB has fewer
	p.edited = p.edited || n > 0
}

// follow goes to the target of an alias.
func (p *parser) follow(alias answer) error {
	name, end, err := readName(nil, p.msg[:alias.at+alias.size], alias.at)
	if err != nil || end != alias.at+alias.size {
		return fmt.Errorf("%w: an alias without its name", ErrMalformed)
	}
	target, err := allowlist.HostOfName(name)
	switch {
	case err != nil:
		return fmt.Errorf("%w: to the root", ErrChain)
	case len(p.chain) == MaxHops:
		return fmt.Errorf("%w: more than %d", ErrChain, MaxHops)
	}
	p.chain = append(p.chain, p.owner)
	if slices.Contains(p.chain, string(name)) {
		return fmt.Errorf("%w: back to %s", ErrChain, target)
	}
	r := record{typ: TypeCNAME, ttl: clamp(alias.ttl, MaxTTL), rdata: name}
	r.hop = uint8(len(p.chain) - 1) //nolint:gosec // G115: at most MaxHops
	if err := p.keepAt(r); err != nil {
		return err
	}
	p.owner, p.loopback = string(name), target.IsLocalhost()
	p.out.names = append(p.out.names, target)
	return nil
}

// keepLoopback ends a chain that leads to localhost with the addresses that it
// has, whatever the server says, also that there is no such name.
func (p *parser) keepLoopback() error {
	p.out.rcode = NoError
	for _, addr := range Loopback() {
		if p.question.Type == TypeA && addr.Is4() || p.question.Type == TypeAAAA && addr.Is6() {
			p.finals++
			p.edited = true
			return p.keep(record{typ: p.question.Type, ttl: p.out.ttl, rdata: addr.AsSlice()})
		}
	}
	return nil
}

// service keeps an HTTPS or SVCB record, unless nothing is left of it without
// ECH, or it leads to what is no host or to localhost, which has no service of
// the gateway's callers and is at no address that a hint could name.
func (p *parser) service(rr dns.RR, rdata []byte) error {
	svcb, ok := rr.(*dns.SVCB)
	if https, is := rr.(*dns.HTTPS); is {
		svcb, ok = &https.SVCB, true
	}
	if !ok {
		return ErrMalformed
	}
	kept, hints, cut := stripService(rdata, MaxHints-p.hints)
	p.edited = p.edited || kept != len(rdata)
	p.cut(cut)
	if kept == 0 {
		return nil
	}
	if svcb.Target != "." {
		target, err := host(svcb.Target)
		if err != nil || target.IsLocalhost() {
			p.edited = true
			return nil //nolint:nilerr // such a record is left out
		}
		p.out.names = append(p.out.names, target)
	}
	p.hints += hints
	return p.keep(record{typ: svcb.Hdr.Rrtype, ttl: clamp(svcb.Hdr.Ttl, MaxTTL), rdata: rdata[:kept]})
}

// authority reads one record of the authority section, of which only the SOA
// of a negative answer is kept.
func (p *parser) authority() error {
	zone, h, err := p.next()
	if err != nil {
		return err
	}
	at := p.off
	p.off += h.size
	p.referral = p.referral || h.typ == dns.TypeNS
	if p.finals > 0 || p.soa || h.typ != dns.TypeSOA || h.class != dns.ClassINET || !covers(zone, p.owner) {
		return nil
	}
	rr, err := p.rr(h, at)
	if err != nil {
		return err
	}
	soa, ok := rr.(*dns.SOA)
	if !ok {
		return ErrMalformed
	}
	rdata, err := pack(soa, nil)
	if err != nil {
		return err
	}
	p.soa = true
	return p.keep(record{
		authority: true, typ: dns.TypeSOA, rdata: rdata, ttl: min(clamp(h.ttl, MaxNegativeTTL), clamp(soa.Minttl, MaxNegativeTTL)),
		skip: uint8(len(p.owner) - len(zone)), //nolint:gosec // G115: a name has 255 bytes
	})
}

// keep stores a record at the end of the chain.
func (p *parser) keep(r record) error {
	r.hop = uint8(len(p.chain)) //nolint:gosec // G115: at most MaxHops
	if !r.authority {
		p.kept++
	}
	return p.keepAt(r)
}

func (p *parser) keepAt(r record) error {
	p.out.data = r.append(p.out.data)
	p.out.ttl = min(p.out.ttl, r.ttl)
	if len(p.out.data) > maxStored {
		return fmt.Errorf("%w: too large without compression", ErrMalformed)
	}
	return nil
}

// clamp bounds a time to live; one with the top bit set is none (RFC 2181
// section 8).
func clamp(ttl, most uint32) uint32 {
	if ttl>>31 != 0 {
		return 0
	}
	return min(ttl, most)
}
