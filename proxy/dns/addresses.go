package dns

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
)

// The parameters of SVCB and HTTPS records that hold addresses (RFC 9460 section 7.3).
const (
	hint4 = 4
	hint6 = 6
)

// addressesOf appends the addresses in a response that this package has written, with
// those in hints, each once and as many as fit into the capacity of all. asked is the
// length of the question in bytes.
//
// It reads the response that was sent, and is called only if a record is made, so that
// a response without a record costs nothing.
func addressesOf(all []netip.Addr, msg []byte, asked int) []netip.Addr {
	if len(msg) < headLen+asked {
		return all
	}
	answers := binary.BigEndian.Uint16(msg[6:])
	rest := msg[headLen+asked:]
	for ; answers > 0; answers-- {
		const fixed = 12 // a pointer to the owner, type, class, time to live and length
		if len(rest) < fixed {
			return all
		}
		typ, size := allowlist.QueryType(binary.BigEndian.Uint16(rest[2:])), int(binary.BigEndian.Uint16(rest[10:]))
		if rest = rest[fixed:]; len(rest) < size {
			return all
		}
		data := rest[:size]
		rest = rest[size:]
		switch typ { //nolint:exhaustive // the others have no addresses
		case allowlist.TypeA, allowlist.TypeAAAA:
			all = addAddress(all, data)
		case allowlist.TypeHTTPS, allowlist.TypeSVCB:
			all = addHints(all, data)
		}
	}
	return all
}

// addHints appends the addresses in the data of a SVCB or HTTPS record: a priority, an
// uncompressed name, and parameters (RFC 9460 section 2.2).
func addHints(all []netip.Addr, data []byte) []netip.Addr {
	n := 2
	for n < len(data) && data[n] != 0 {
		n += 1 + int(data[n])
	}
	for params := data[min(n+1, len(data)):]; len(params) >= 4; {
		key, size := binary.BigEndian.Uint16(params), int(binary.BigEndian.Uint16(params[2:]))
		if params = params[4:]; len(params) < size {
			return all
		}
		value := params[:size]
		params = params[size:]
		each := hintSize(key)
		for ; each > 0 && len(value) >= each; value = value[each:] {
			all = addAddress(all, value[:each])
		}
	}
	return all
}

// hintSize returns the number of bytes of an address in a hint, or zero for any other
// parameter.
func hintSize(key uint16) int {
	switch key {
	case hint4:
		return 4
	case hint6:
		return 16
	}
	return 0
}

// addAddress appends an address of 4 or 16 bytes, unless it is in the list already or
// the list is full.
func addAddress(all []netip.Addr, data []byte) []netip.Addr {
	addr, ok := netip.AddrFromSlice(data)
	if addr = addr.Unmap(); ok && len(all) < cap(all) && !slices.Contains(all, addr) {
		all = append(all, addr)
	}
	return all
}
