package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"
)

// reader reads the records of a message one after another.
type reader struct {
	msg []byte
	off int // offset of the next record, or of the rdata of the last one
}

// header is the head of a record.
type header struct {
	typ, class uint16
	ttl        uint32
	size       int // size of the rdata
}

// next reads the owner and the head of a record. r.off is then the offset of the rdata,
// all of which is in the message.
func (r *reader) next() (owner string, h header, err error) {
	var buf [maxNameLen]byte
	name, off, err := readName(buf[:0], r.msg, r.off)
	if err != nil {
		return "", h, err
	}
	if r.off = off; len(r.msg) < off+10 {
		return "", h, fmt.Errorf("%w: cut off in the head of a record", ErrMalformed)
	}
	head := r.msg[off:]
	h = header{
		typ: binary.BigEndian.Uint16(head), class: binary.BigEndian.Uint16(head[2:]),
		ttl: binary.BigEndian.Uint32(head[4:]), size: int(binary.BigEndian.Uint16(head[8:])),
	}
	if r.off = off + 10; len(r.msg) < r.off+h.size {
		return "", h, fmt.Errorf("%w: cut off in a record", ErrMalformed)
	}
	return string(name), h, nil
}

// rr reads the rdata of a record.
func (r *reader) rr(h header, at int) (dns.RR, error) {
	if h.size == 0 {
		return nil, fmt.Errorf("%w: an empty record of type %d", ErrMalformed, h.typ)
	}
	head := dns.RR_Header{Name: ".", Rrtype: h.typ, Class: h.class, Ttl: h.ttl, Rdlength: uint16(h.size)} //nolint:gosec // G115: read from 16 bits
	rr, _, err := dns.UnpackRRWithHeader(head, r.msg[:at+h.size], at)
	if err != nil {
		return nil, fmt.Errorf("%w: a record of type %d: %w", ErrMalformed, h.typ, err)
	}
	return rr, nil
}
