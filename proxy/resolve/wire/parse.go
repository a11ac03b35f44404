package wire

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// Parse checks that msg is a complete answer to the query and returns its content. An
// error is or wraps one of this package's: after ErrStray and ErrCase the real answer
// may still come. Parse keeps no part of msg.
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

// parser reads one answer. Its names are in wire format, uncompressed and in lower
// case.
type parser struct {
	reader

	question Question
	records  []answer          // records of the answer section that may belong to the answer
	aliases  map[string]answer // first alias of each owner
	renamed  []string          // owners of DNAME records that were not asked for
	owner    string            // end of the chain so far
	loopback bool              // says that owner is localhost or below it
	chain    []string          // names in the chain before owner
	finals   int               // number of records of owner with the type of the question
	kept     int               // number of these records that are kept
	hints    int               // number of hints in the kept records
	soa      bool              // says that the authority section has the SOA of a negative answer
	foreign  bool              // says that the answer section has a record of another class than IN
	referral bool              // says that the authority section has name servers
	extended int               // upper bits of the response code
	ede      Extended          // the extended error that says the most
	edited   bool              // says that something was left out or replaced, so that the answer no longer counts as validated
	out      Message
}

// answer is a record of the answer section.
type answer struct {
	header
	owner string
	at    int // offset of its rdata
}

// sections reads the records of the answer, the SOA of a negative answer, and the upper
// bits of the response code, which are in the OPT.
func (p *parser) sections() error {
	for range binary.BigEndian.Uint16(p.msg[6:]) {
		if err := p.collect(); err != nil {
			return err
		}
	}
	end := p.off
	if err := p.followAliases(); err != nil {
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

// message returns the message that was read.
func (p *parser) message(authoritative bool) (*Message, error) {
	m := &p.out
	if err := p.checkNegative(authoritative); err != nil {
		return nil, err
	}
	m.negative = p.kept == 0 && (p.question.Type != TypeCNAME || len(p.chain) == 0)
	m.open = m.negative && len(p.chain) > 0 && p.finals == 0 && !p.soa && !p.loopback && m.rcode == NoError
	if len(m.data) == 0 || m.negative && !p.soa && !m.open {
		m.ttl = 0 // its life is unknown (RFC 2308 section 5)
	}
	m.authentic = m.authentic && !p.edited
	return m, nil
}

// checkNegative returns why a message without a record of the name and the type is not a
// valid negative answer, or nil if it is one.
func (p *parser) checkNegative(authoritative bool) error {
	switch {
	case isRenamed(p):
		return fmt.Errorf("%w: a DNAME without the alias that it makes", ErrChain)
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

// isRenamed reports whether a DNAME moves the end of the chain to another zone, and the
// answer lacks the alias that a server makes of it (RFC 6672 section 3.1). What the
// answer says is then about the name in the other zone.
func isRenamed(p *parser) bool {
	if p.finals > 0 || p.loopback || p.question.Type == TypeCNAME && len(p.chain) > 0 {
		return false
	}
	return slices.ContainsFunc(p.renamed, func(owner string) bool { return owner != p.owner && covers(owner, p.owner) })
}

// collect reads one record of the answer section. It skips records of another class, or
// of a type that was not asked for, such as a signature.
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
	case h.typ == dns.TypeDNAME && p.question.Type != dns.TypeDNAME:
		p.edited = true
		p.renamed = append(p.renamed, owner)
	case h.typ != TypeCNAME && h.typ != p.question.Type:
		p.edited = true
	case h.typ == TypeCNAME:
		if _, twice := p.aliases[owner]; twice {
			p.edited = true // a name can have one alias only (RFC 2181 section 10.1)
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

// followAliases follows the aliases from the name to the records of the question's type,
// and keeps them. It skips records that do not belong to the chain, and visits each
// record once.
func (p *parser) followAliases() error {
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
	if p.loopback { // its addresses are known
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

// final keeps a record of the question's type.
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

// cut notes that n records or hints of the answer are left out because there are too
// many.
func (p *parser) cut(n int) {
	p.out.cut += uint16(n) //nolint:gosec // G115: a message of 64 KiB has fewer
	p.edited = p.edited || n > 0
}

// follow keeps an alias and moves the end of the chain to its target.
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

// keepLoopback ends a chain that leads to localhost with the addresses of localhost,
// whatever the server says, even that the name does not exist.
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

// service keeps an HTTPS or SVCB record, unless the record is malformed or unusable
// without ECH, or its target is not a host, or is localhost, where callers have no
// services and whose addresses no hint may name.
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
		target, err := parseHost(svcb.Target)
		if err != nil || target.IsLocalhost() {
			p.edited = true
			return nil //nolint:nilerr // a record without a valid target is left out
		}
		p.out.names = append(p.out.names, target)
	}
	p.hints += hints
	return p.keep(record{typ: svcb.Hdr.Rrtype, ttl: clamp(svcb.Hdr.Ttl, MaxTTL), rdata: rdata[:kept]})
}

// authority reads one record of the authority section. Only the SOA of a negative
// answer is kept.
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

// keep stores a record whose owner is the end of the chain.
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

// clamp bounds a time to live. A value with the top bit set means zero (RFC 2181
// section 8).
func clamp(ttl, most uint32) uint32 {
	if ttl>>31 != 0 {
		return 0
	}
	return min(ttl, most)
}
