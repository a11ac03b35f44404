package wire

import (
	"encoding/binary"
	"net/netip"
)

// record is one record of a stored message. Its owner is a name that a response
// contains already, so that a pointer can stand for it (RFC 1035 section 4.1.4): the
// name of the question, or the target of an alias, without its first skip bytes.
type record struct {
	hop       uint8 // 0 for the question's name, n for the target of the nth alias
	skip      uint8 // number of bytes of that name before the owner
	authority bool  // says that the record is in the authority section
	typ       uint16
	ttl       uint32
	rdata     []byte // contains no compressed name
}

const (
	recordHead   = 12
	hopAuthority = 0x80 // combined with the hop, which is at most MaxHops
)

// append appends the stored form of a record.
func (r record) append(dst []byte) []byte {
	hop := r.hop
	if r.authority {
		hop |= hopAuthority
	}
	dst = append(dst, hop, r.skip)
	dst = binary.BigEndian.AppendUint16(dst, r.typ)
	dst = binary.BigEndian.AppendUint32(dst, r.ttl)
	dst = append(dst, 0, 0)                                        // so that a stored record is no smaller than a written one
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.rdata))) //nolint:gosec // G115: packed by the library as rdata
	return append(dst, r.rdata...)
}

// nextRecord returns the first record and the bytes that follow it.
func nextRecord(data []byte) (record, []byte) {
	end := recordHead + int(binary.BigEndian.Uint16(data[10:]))
	return record{
		hop: data[0] &^ hopAuthority, skip: data[1], authority: data[0]&hopAuthority != 0,
		typ: binary.BigEndian.Uint16(data[2:]), ttl: binary.BigEndian.Uint32(data[4:]),
		rdata: data[recordHead:end:end],
	}, data[end:]
}

// addr returns the address of an A or AAAA record, unmapped.
func (r *record) addr() (netip.Addr, bool) {
	if r.typ != TypeA && r.typ != TypeAAAA {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(r.rdata)
	return addr.Unmap(), ok
}
