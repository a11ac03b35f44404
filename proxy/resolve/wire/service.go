package wire

import (
	"encoding/binary"
	"net/netip"
)

// Parameters of HTTPS and SVCB records that this package uses (RFC 9460 section
// 14.3.2).
const (
	keyMandatory = 0
	keyIPv4Hint  = 4
	keyECH       = 5
	keyIPv6Hint  = 6
)

// leaveOut is returned instead of a length to remove a parameter.
const leaveOut = -1

func (r *record) isService() bool { return r.typ == TypeSVCB || r.typ == TypeHTTPS }

// isNamed reports whether a stored record has a target that is in Message.names.
func (r *record) isNamed() bool {
	return r.typ == TypeCNAME || r.isService() && r.rdata[2] != 0 // the root stands for the owner
}

// hintSize returns the length of an address in a parameter, or 0 if the parameter has
// none.
func hintSize(key uint16) int {
	switch key {
	case keyIPv4Hint:
		return 4
	case keyIPv6Hint:
		return 16
	}
	return 0
}

// eachHint calls yield for the hints of a stored record. It returns false if yield
// does, and stops then.
func eachHint(rdata []byte, yield func(netip.Addr) bool) bool {
	for rest := rdata[2+nameLen(rdata[2:]):]; len(rest) > 0; {
		size := hintSize(binary.BigEndian.Uint16(rest))
		value := rest[4 : 4+int(binary.BigEndian.Uint16(rest[2:]))]
		rest = rest[4+len(value):]
		for ; size > 0 && len(value) > 0; value = value[size:] {
			if addr, _ := netip.AddrFromSlice(value[:size]); !yield(addr.Unmap()) {
				return false
			}
		}
	}
	return true
}

// stripService removes the ECH parameter and all hints after the first room ones from
// rdata, in place. It returns the remaining length, which is 0 if the record is
// malformed or unusable without the removed parameters; the number of hints left; and
// the number of hints removed.
func stripService(rdata []byte, room int) (kept, hints, cut int) {
	kept = editService(rdata, func(key uint16, value []byte) (int, bool) {
		size := hintSize(key)
		switch {
		case key == keyECH:
			return leaveOut, true
		case size == 0:
			return len(value), true
		case len(value)%size != 0 || len(value) == 0:
			return 0, false
		}
		n := min(len(value)/size, room-hints)
		hints += n
		cut += len(value)/size - n
		if n == 0 {
			return leaveOut, true
		}
		return n * size, true
	})
	if kept == 0 {
		hints = 0
	}
	return kept, hints, cut
}

// filterService removes the hints that the filter refuses from rdata, in place. It
// returns the remaining length, which is 0 if the record is unusable without them, and
// the number of removed hints.
func filterService(rdata []byte, f Filter) (kept, dropped int) {
	kept = editService(rdata, func(key uint16, value []byte) (int, bool) {
		size := hintSize(key)
		if size == 0 {
			return len(value), true
		}
		left := value[:0]
		for ; len(value) >= size; value = value[size:] {
			if addr, ok := netip.AddrFromSlice(value[:size]); ok && f.Addr(addr.Unmap()) {
				left = append(left, value[:size]...)
			} else {
				dropped++
			}
		}
		if len(left) == 0 {
			return leaveOut, true
		}
		return len(left), true
	})
	return kept, dropped
}

// editService calls edit for each parameter of a record. edit may shorten a value in
// place and returns its new length, leaveOut to remove the parameter, or false if the
// record is malformed. A record is unusable without a parameter that it lists as
// mandatory. editService returns the new length, or 0.
func editService(rdata []byte, edit func(key uint16, value []byte) (int, bool)) int {
	params := 2 + nameLen(rdata[2:])
	out := rdata[:params]
	var mandatory []byte
	last := -1
	for rest := rdata[params:]; len(rest) > 0; {
		if len(rest) < 4 {
			return 0
		}
		key, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if int(key) <= last || len(rest) < 4+size {
			return 0
		}
		last = int(key)
		value := rest[4 : 4+size]
		rest = rest[4+size:]
		left, ok := edit(key, value)
		switch {
		case !ok:
			return 0
		case left == leaveOut:
			if lists(mandatory, key) {
				return 0
			}
			continue
		}
		at := len(out)
		out = binary.BigEndian.AppendUint16(out, key)
		out = binary.BigEndian.AppendUint16(out, uint16(left)) //nolint:gosec // G115: no longer than it was
		out = append(out, value[:left]...)
		if key == keyMandatory {
			mandatory = out[at+4:]
		}
	}
	return len(out)
}

// lists reports whether the value of the parameter mandatory contains a key.
func lists(mandatory []byte, key uint16) bool {
	for ; len(mandatory) >= 2; mandatory = mandatory[2:] {
		if binary.BigEndian.Uint16(mandatory) == key {
			return true
		}
	}
	return false
}

// nameLen returns the length of an uncompressed name.
func nameLen(name []byte) int {
	n := 0
	for name[n] != 0 {
		n += 1 + int(name[n])
	}
	return n + 1
}
