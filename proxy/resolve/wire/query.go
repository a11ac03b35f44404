package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

const (
	headLen = 12
	// payload is the size of UDP answers that we ask for: what fits into every
	// path without fragments (RFC 9715 section 3).
	payload = 1232

	flagQR, flagAA, flagTC, flagRD = 1 << 15, 1 << 10, 1 << 9, 1 << 8
	flagRA, flagAD, flagCD         = 1 << 7, 1 << 5, 1 << 4
	opcodes                        = 0xf << 11
)

// Query is one question as it goes to a server, with an id that nobody can
// guess.
type Query struct {
	question Question
	packet   []byte
}

// NewQuery makes a query. If mixed, its letters have random case, which a
// forged answer must guess, too (draft-vixie-dnsext-dns0x20): for datagrams.
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
	p = append(p, 0, 0, byte(dns.TypeOPT)) // owned by the root
	p = binary.BigEndian.AppendUint16(p, payload)
	p = append(p, 0, 0, 0, 0, 0, 0) // version 0, DO off, no option
	return &Query{question: q, packet: p}, nil
}

// Packet returns the query on the wire. It must not be changed.
func (q *Query) Packet() []byte { return q.packet }

// ID returns the id of the query.
func (q *Query) ID() uint16 { return binary.BigEndian.Uint16(q.packet) }

// asked returns the question section.
func (q *Query) asked() []byte { return q.packet[headLen : len(q.packet)-11] }

// check reports whether a packet is an answer to this query.
func (q *Query) check(msg []byte) error {
	if len(msg) < headLen || binary.BigEndian.Uint16(msg) != q.ID() {
		return ErrStray
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&flagQR == 0 || flags&opcodes != 0 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return ErrStray
	}
	asked := q.asked()
	if len(msg) < headLen+len(asked) {
		return ErrStray
	}
	switch got := msg[headLen : headLen+len(asked)]; {
	case bytes.Equal(got, asked):
		return nil
	case bytes.EqualFold(got, asked): // type and class have no letters that would fold unlike these
		return ErrCase
	}
	return ErrStray
}

// appendName appends a canonical name as labels.
func appendName(dst []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		dst = append(dst, byte(len(label))) //nolint:gosec // G115: at most 63
		dst = append(dst, label...)
	}
	return append(dst, 0)
}

// mixCase gives each letter of a name the case of a random bit. The lengths of
// labels are no letters: they are 63 at most.
func mixCase(name, random []byte) {
	for i, c := range name {
		if 'a' <= c && c <= 'z' && random[i/8]>>(i%8)&1 != 0 {
			name[i] = c - 'a' + 'A'
		}
	}
}
