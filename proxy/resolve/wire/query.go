package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"
)

const (
	headLen = 12
	// payload is the size of UDP answers in queries: it passes every path without
	// fragmentation (RFC 9715 section 3).
	payload = 1232

	flagQR, flagAA, flagTC, flagRD = 1 << 15, 1 << 10, 1 << 9, 1 << 8
	flagRA, flagAD, flagCD         = 1 << 7, 1 << 5, 1 << 4
	opcodes                        = 0xf << 11
)

// Query is a question as it is sent to a server, with an id that nobody can guess.
type Query struct {
	question Question
	packet   []byte
	end      int // end of the question section
}

// NewQuery makes a query. If mixed is set, its letters have random case, which a forged
// answer must guess, too (draft-vixie-dnsext-dns0x20); this is for datagrams.
func NewQuery(q Question, mixed bool) (*Query, error) {
	if q.Name.IsZero() || q.Name.IsAddr() {
		return nil, fmt.Errorf("packing a query: %q is no name", q.Name)
	}
	if !Forwarded(q.Type) {
		return nil, fmt.Errorf("packing a query: %w: %d", ErrType, q.Type)
	}
	var random [2 + 32]byte     // an id and a bit for each of 253 letters
	_, _ = rand.Read(random[:]) // never fails
	p := make([]byte, 0, headLen+255+4+11)
	p = append(p, random[0], random[1])
	p = binary.BigEndian.AppendUint16(p, flagRD|flagAD)
	p = append(p, 0, 1, 0, 0, 0, 0, 0, 1)
	p = appendName(p, q.Name.String())
	if mixed {
		mixCase(p[headLen:], random[2:])
	}
	p = binary.BigEndian.AppendUint16(p, q.Type)
	p = append(p, 0, dns.ClassINET)
	end := len(p)
	p = append(p, 0, 0, byte(dns.TypeOPT)) // its owner is the root
	p = binary.BigEndian.AppendUint16(p, payload)
	p = append(p, 0, 0, 0, 0, 0, 0) // version 0, DO off, no option
	return &Query{question: q, packet: p, end: end}, nil
}

// WithoutEDNS returns the query without its OPT, for a server that does not understand
// it.
func (q *Query) WithoutEDNS() *Query {
	p := bytes.Clone(q.packet[:q.end])
	p[headLen-1] = 0 // number of additional records
	return &Query{question: q.question, packet: p, end: q.end}
}

// Packet returns the query in wire format. It must not be changed.
func (q *Query) Packet() []byte { return q.packet }

// ID returns the id of the query.
func (q *Query) ID() uint16 { return binary.BigEndian.Uint16(q.packet) }

// questionSection returns the question section.
func (q *Query) questionSection() []byte { return q.packet[headLen:q.end] }

// check checks that a packet is an answer to this query, and returns the offset after
// its question. A failing server may leave out the question: the offset is then headLen,
// and only the header and the OPT record count.
func (q *Query) check(msg []byte) (body int, err error) {
	if len(msg) < headLen || binary.BigEndian.Uint16(msg) != q.ID() {
		return 0, ErrStray
	}
	flags, questions := binary.BigEndian.Uint16(msg[2:]), binary.BigEndian.Uint16(msg[4:])
	if flags&flagQR == 0 || flags&opcodes != 0 {
		return 0, ErrStray
	}
	if len(msg) == headLen || questions == 0 {
		return headLen, nil
	}
	asked := q.questionSection()
	if questions != 1 || len(msg) < headLen+len(asked) {
		return 0, ErrStray
	}
	switch got := msg[headLen : headLen+len(asked)]; {
	case bytes.Equal(got, asked):
		return headLen + len(asked), nil
	case bytes.EqualFold(got, asked): // no two types that are looked up differ in letter case only
		return 0, ErrCase
	}
	return 0, ErrStray
}

// refuses reports whether the code in a header is an error.
func refuses(flags uint16) bool {
	code := int(flags & 0xf)
	return code != NoError && code != NXDomain
}

// mixCase sets the case of each letter in a name by a random bit. The lengths of labels
// are at most 63 and therefore not taken for letters.
func mixCase(name, random []byte) {
	for i, c := range name {
		if 'a' <= c && c <= 'z' && random[i/8]>>(i%8)&1 != 0 {
			name[i] = c - 'a' + 'A'
		}
	}
}
