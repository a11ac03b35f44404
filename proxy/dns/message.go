package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
)

// localTTL is the time to live of the gateway's own answers, in seconds. It is short
// because the policy may change.
const localTTL = 5

// Types of records, other than addresses, in the gateway's own answers.
const (
	typeSOA   = 6
	typeHINFO = 13
)

// Response codes that are sent.
const (
	codeNoError  = 0
	codeFormErr  = 1
	codeServFail = 2
	codeNXDomain = 3
	codeNotImp   = 4
	codeRefused  = 5
	codeBadVers  = 16
)

// message is a response that is being written: header and question, then records, then
// the OPT.
type message struct {
	q     *query
	buf   []byte
	start int // offset of the message in buf
}

// begin writes the header, and the question if it is known.
func begin(q *query, buf []byte, code int) message {
	m := message{q: q, buf: buf, start: len(buf)}
	m.buf = binary.BigEndian.AppendUint16(m.buf, q.id)
	m.buf = binary.BigEndian.AppendUint16(m.buf, q.responseFlags()|uint16(code&0xf))
	m.buf = append(m.buf, 0, 0, 0, 0, 0, 0, 0, 0)
	if q.questionLen > 0 {
		m.incrementCount(0)
		m.buf = append(m.buf, q.question[:q.questionLen]...)
	}
	return m
}

// responseFlags returns the flags of every response: the opcode, RD and CD of the
// query, QR, and RA.
func (q *query) responseFlags() uint16 {
	return flagQR | flagRA | q.flags&(opcodes|flagRD|flagCD)
}

// Sections of a message.
const (
	answerSection     = 1
	authoritySection  = 2
	additionalSection = 3
)

// incrementCount adds one to the number of records of a section.
func (m *message) incrementCount(section int) {
	at := m.buf[m.start+4+2*section:]
	binary.BigEndian.PutUint16(at, binary.BigEndian.Uint16(at)+1)
}

// record writes a record up to its data, which is size bytes long. Its owner is the
// name of the query without its first skip bytes.
func (m *message) record(section, skip, typ, size int) {
	m.incrementCount(section)
	m.buf = binary.BigEndian.AppendUint16(m.buf, 0xc000|uint16(headLen+skip)) //nolint:gosec // G115: inside the question
	m.buf = binary.BigEndian.AppendUint16(m.buf, uint16(typ))                 //nolint:gosec // G115: a constant
	m.buf = append(m.buf, 0, classIN, 0, 0, 0, localTTL, 0, byte(size))       //nolint:gosec // G115: a constant
}

// soa writes the SOA record of the zone above the name of the query, as if the gateway
// were its server: so an answer about one name says nothing about other names. As in
// RFC 6303 section 3, its server name is not a real one.
func (m *message) soa() {
	const rname = "\x06nobody\x07invalid\x00"
	skip := 0
	if !m.q.isRoot() {
		skip = 1 + int(m.q.question[0])
	}
	m.record(authoritySection, skip, typeSOA, 2+len(rname)+5*4)
	m.buf = binary.BigEndian.AppendUint16(m.buf, 0xc000|uint16(headLen+skip))
	m.buf = append(m.buf, rname...)
	for _, n := range [...]uint32{1, 3600, 1200, 604800, localTTL} {
		m.buf = binary.BigEndian.AppendUint32(m.buf, n)
	}
}

// hinfo writes the answer to ANY (RFC 8482 section 4.2).
func (m *message) hinfo() {
	const data = "\x07RFC8482\x00"
	m.record(answerSection, 0, typeHINFO, len(data))
	m.buf = append(m.buf, data...)
}

// address writes an address record for localhost.
func (m *message) address(typ allowlist.QueryType, addr netip.Addr) {
	data := addr.As16()
	rdata := data[:]
	if addr.Is4() {
		rdata = data[12:]
	}
	m.record(answerSection, 0, int(typ), len(rdata))
	m.buf = append(m.buf, rdata...)
}

// extended is an extended error (RFC 8914); the zero value means that there is none.
type extended struct {
	present bool
	code    uint16
	// reason and id make up the text, if there is a reason.
	reason allowlist.Reason
	id     string
}

// opt writes the OPT, if the query had one.
func opt(q *query, buf []byte, start, code int, e extended) []byte {
	if !q.opt {
		return buf
	}
	m := message{q: q, buf: buf, start: start}
	m.incrementCount(additionalSection)
	m.buf = append(m.buf, 0, 0, typeOPT, ourUDP>>8, ourUDP&0xff, byte(code>>4), 0) //nolint:gosec // G115: eight bits
	flags := uint16(0)
	if q.do {
		flags = flagDO
	}
	m.buf = binary.BigEndian.AppendUint16(m.buf, flags)
	m.buf = append(m.buf, 0, 0)
	if !e.present {
		return m.buf
	}
	size := len(m.buf)
	const optionEDE = 15
	m.buf = append(m.buf, 0, optionEDE, 0, 0)
	m.buf = binary.BigEndian.AppendUint16(m.buf, e.code)
	if token := e.reason.String(); token != "" {
		m.buf = append(m.buf, "r="...)
		m.buf = append(m.buf, token...)
		m.buf = append(m.buf, " d="...)
		m.buf = append(m.buf, e.id...)
	}
	all := len(m.buf) - size
	binary.BigEndian.PutUint16(m.buf[size-2:], uint16(all))   //nolint:gosec // G115: a token and an id
	binary.BigEndian.PutUint16(m.buf[size+2:], uint16(all-4)) //nolint:gosec // G115: a token and an id
	return m.buf
}

// isResolver reports whether a name is in the zone resolver.arpa, which exists and is
// empty here (RFC 9462 section 6.4).
func isResolver(h allowlist.Host) bool {
	return h.String() == "resolver.arpa" || strings.HasSuffix(h.String(), ".resolver.arpa")
}
