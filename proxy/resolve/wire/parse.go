package wire

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// Parse checks that msg is a whole answer to the query and returns what it
// says. The error is one of this package's, or wraps it: after ErrStray and
// ErrCase the true answer may still come. It keeps no part of msg.
func (q *Query) Parse(msg []byte) (*Message, error) {
	if err := q.check(msg); err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&flagTC != 0 {
		return nil, ErrTruncated
	}
	code := int(flags & 0xf)
	if code != NoError && code != NXDomain {
		return nil, &ServerError{Code: code}
	}
	p := parser{
		msg: msg, off: headLen + len(q.asked()), question: q.question, owner: q.question.Name.String(),
		out: Message{rcode: uint8(code), authentic: flags&flagAD != 0, ttl: MaxTTL},
	}
	if err := p.sections(); err != nil {
		return nil, err
	}
	if p.extended != 0 {
		return nil, &ServerError{Code: p.extended<<4 | code}
	}
	return p.message()
}

// parser reads one answer.
type parser struct {
	msg      []byte
	off      int
	question Question
	owner    string   // canonical: the end of the chain so far
	loopback bool     // owner is localhost or below it
	chain    []string // the names before it
	finals   int      // records that were asked for
	kept     int      // those of them that are of use
	hints    int      // in those
	soa      bool
	extended int // upper bits of the response code
	edited   bool
	out      Message
}

// sections reads the answer's records, the SOA of a negative answer, and the
// response code's upper bits, which stand in the OPT.
func (p *parser) sections() error {
	for range binary.BigEndian.Uint16(p.msg[6:]) {
		if err := p.answer(); err != nil {
			return err
		}
	}
	if p.loopback {
		if err := p.keepLoopback(); err != nil {
			return err
		}
	}
	for range binary.BigEndian.Uint16(p.msg[8:]) {
		if err := p.authority(); err != nil {
			return err
		}
	}
	for range binary.BigEndian.Uint16(p.msg[10:]) {
		h, err := p.header()
		if err != nil {
			return err
		}
		if h.Rrtype == dns.TypeOPT {
			p.extended = int(h.Ttl >> 24)
		}
		p.off += int(h.Rdlength)
	}
	if p.off != len(p.msg) {
		return fmt.Errorf("%w: %d bytes behind it", ErrMalformed, len(p.msg)-p.off)
	}
	return nil
}

// message finishes what was read.
func (p *parser) message() (*Message, error) {
	m := &p.out
	m.negative = p.kept == 0 && (p.question.Type != TypeCNAME || len(p.chain) == 0)
	switch {
	case m.rcode == NXDomain && p.finals > 0:
		return nil, fmt.Errorf("%w: records of a name that does not exist", ErrMalformed)
	case m.negative && !p.soa, len(m.data) == 0:
		m.ttl = 0 // nothing says how long it holds (RFC 2308 section 5)
	}
	m.authentic = m.authentic && !p.edited
	return m, nil
}

// header reads the head of a record, by which p.off comes to stand at its
// rdata, all of which is in the message.
func (p *parser) header() (dns.RR_Header, error) {
	var h dns.RR_Header
	name, off, err := dns.UnpackDomainName(p.msg, p.off)
	if err != nil {
		return h, fmt.Errorf("%w: the owner of a record: %w", ErrMalformed, err)
	}
	if len(p.msg) < off+10 {
		return h, fmt.Errorf("%w: cut off in the head of a record", ErrMalformed)
	}
	head := p.msg[off:]
	h = dns.RR_Header{
		Name: name, Rrtype: binary.BigEndian.Uint16(head), Class: binary.BigEndian.Uint16(head[2:]),
		Ttl: binary.BigEndian.Uint32(head[4:]), Rdlength: binary.BigEndian.Uint16(head[8:]),
	}
	p.off = off + 10
	if len(p.msg) < p.off+int(h.Rdlength) {
		return h, fmt.Errorf("%w: cut off in a record", ErrMalformed)
	}
	return h, nil
}

// record reads the rdata behind a head.
func (p *parser) record(h dns.RR_Header) (dns.RR, error) {
	if h.Rdlength == 0 {
		return nil, fmt.Errorf("%w: an empty record of type %d", ErrMalformed, h.Rrtype)
	}
	rr, off, err := dns.UnpackRRWithHeader(h, p.msg[:p.off+int(h.Rdlength)], p.off)
	if err != nil {
		return nil, fmt.Errorf("%w: a record of type %d: %w", ErrMalformed, h.Rrtype, err)
	}
	p.off = off
	return rr, nil
}

// answer reads one record of the answer section. A record of a type that
// nobody asked for, such as a signature, is passed over.
func (p *parser) answer() error {
	h, err := p.header()
	if err != nil {
		return err
	}
	if h.Class != dns.ClassINET {
		return fmt.Errorf("%w: class %d", ErrMalformed, h.Class)
	}
	if h.Rrtype != TypeCNAME && h.Rrtype != p.question.Type {
		p.off += int(h.Rdlength)
		p.edited = true
		return nil
	}
	if owner, ok := canonical(h.Name); !ok || owner != p.owner {
		return fmt.Errorf("%w: a record of %s", ErrChain, h.Name)
	}
	if p.loopback { // what it has is known
		p.off += int(h.Rdlength)
		p.edited = true
		return nil
	}
	if p.kept == MaxRecords && h.Rrtype != TypeCNAME {
		p.finals++
		p.cut(1)
		p.off += int(h.Rdlength)
		return nil
	}
	rr, err := p.record(h)
	if err != nil {
		return err
	}
	if alias, ok := rr.(*dns.CNAME); ok {
		return p.follow(alias)
	}
	p.finals++
	rdata, err := pack(rr, p.msg[p.off-int(h.Rdlength):p.off])
	if err != nil {
		return err
	}
	if h.Rrtype == TypeSVCB || h.Rrtype == TypeHTTPS {
		return p.service(rr, rdata)
	}
	return p.keep(record{typ: h.Rrtype, ttl: clamp(h.Ttl, MaxTTL), rdata: rdata})
}

// cut notes that n records or hints of the answer are left out, because there are
// too many.
func (p *parser) cut(n int) {
	p.out.cut += uint16(n) //nolint:gosec // G115: a message of 64 KiB has fewer
	p.edited = p.edited || n > 0
}

// follow goes to the target of an alias.
func (p *parser) follow(alias *dns.CNAME) error {
	target, err := host(alias.Target)
	if err != nil || p.finals > 0 || len(p.chain) == MaxHops {
		return fmt.Errorf("%w: to %s", ErrChain, alias.Target)
	}
	p.chain = append(p.chain, p.owner)
	for _, name := range p.chain {
		if name == target.String() {
			return fmt.Errorf("%w: back to %s", ErrChain, alias.Target)
		}
	}
	r := record{typ: TypeCNAME, ttl: clamp(alias.Hdr.Ttl, MaxTTL), rdata: appendName(nil, target.String())}
	r.hop = uint8(len(p.chain) - 1) //nolint:gosec // G115: at most MaxHops
	if err := p.keepAt(r); err != nil {
		return err
	}
	p.owner, p.loopback = target.String(), target.IsLocalhost()
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
	h, err := p.header()
	if err != nil {
		return err
	}
	negative := p.finals == 0 && !p.soa
	zone, ok := canonical(h.Name)
	if !negative || h.Rrtype != dns.TypeSOA || h.Class != dns.ClassINET || !ok || !covers(zone, p.owner) {
		p.off += int(h.Rdlength)
		return nil
	}
	rr, err := p.record(h)
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
	skip := len(p.owner) - len(zone)
	if zone == "" {
		skip++ // the final dot, which the text does not have
	}
	return p.keep(record{
		authority: true, typ: dns.TypeSOA, rdata: rdata, ttl: min(clamp(h.Ttl, MaxNegativeTTL), clamp(soa.Minttl, MaxNegativeTTL)),
		skip: uint8(skip), //nolint:gosec // G115: a name has 253 bytes
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

// canonical returns a name of the library without its final dot and in lower
// case; false if some label has bytes that no host name has.
func canonical(name string) (string, bool) {
	if strings.ContainsRune(name, '\\') {
		return "", false
	}
	return strings.ToLower(strings.TrimSuffix(name, ".")), true
}

func host(name string) (allowlist.Host, error) {
	h, err := allowlist.ParseHost(name)
	if err == nil && h.IsAddr() {
		err = allowlist.ErrHost
	}
	return h, err
}

// covers reports whether name is the zone's or below it. The root, "", covers
// every name.
func covers(zone, name string) bool {
	return zone == "" || zone == name || strings.HasSuffix(name, "."+zone)
}

// clamp bounds a time to live; one with the top bit set is none (RFC 2181
// section 8).
func clamp(ttl, most uint32) uint32 {
	if ttl>>31 != 0 {
		return 0
	}
	return min(ttl, most)
}

// pack returns a record's rdata without compression and with names in lower
// case: their letters may point into the question, whose case is ours. Rdata
// without names is whole, which is raw as it came: the library takes it to text
// and back, and some octets are others then.
func pack(rr dns.RR, raw []byte) ([]byte, error) {
	h := rr.Header()
	names := namesIn(rr)
	if len(names) == 0 {
		if len(raw) < leastRdata(h.Rrtype) {
			return nil, fmt.Errorf("%w: a record of type %d of %d bytes", ErrMalformed, h.Rrtype, len(raw))
		}
		return raw, nil
	}
	for _, name := range names {
		if *name == "" { // the library takes a record that is cut off before it
			return nil, fmt.Errorf("%w: a record of type %d without its name", ErrMalformed, h.Rrtype)
		}
		*name = strings.ToLower(*name)
	}
	h.Name = "."
	buf := make([]byte, 2*int(h.Rdlength)+1024)
	end, err := dns.PackRR(rr, buf, 0, nil, false)
	const head = 1 + 10 // the root, type, class, time to live, length
	if err != nil {
		return nil, fmt.Errorf("%w: a record of type %d: %w", ErrMalformed, h.Rrtype, err)
	}
	return buf[head:end:end], nil
}

// leastRdata is how many bytes the rdata of a type without names has at least:
// the library takes a record that is cut off between two of its fields.
func leastRdata(typ uint16) int {
	switch typ {
	case dns.TypeSSHFP: // algorithm, kind and a fingerprint (RFC 4255 section 3.1)
		return 3
	case dns.TypeTLSA: // usage, selector, kind and data (RFC 6698 section 2.1)
		return 4
	case dns.TypeURI: // priority, weight and a target (RFC 7553 section 4.5)
		return 5
	case dns.TypeCAA: // flags, the tag's length and a tag (RFC 8659 section 4.1)
		return 3
	}
	return 1
}

// namesIn returns the names in the rdata of the types that are asked for.
func namesIn(rr dns.RR) []*string {
	switch rr := rr.(type) {
	case *dns.NS:
		return []*string{&rr.Ns}
	case *dns.PTR:
		return []*string{&rr.Ptr}
	case *dns.MX:
		return []*string{&rr.Mx}
	case *dns.SRV:
		return []*string{&rr.Target}
	case *dns.NAPTR:
		return []*string{&rr.Replacement}
	case *dns.SOA:
		return []*string{&rr.Ns, &rr.Mbox}
	case *dns.SVCB:
		return []*string{&rr.Target}
	case *dns.HTTPS:
		return []*string{&rr.Target}
	}
	return nil
}
