package allowlist

import "strings"

// IsSpecial reports whether a name has a special meaning, so that no server should be
// asked for it: localhost, invalid, onion and local with all names below (RFC 6761, 7686,
// 6762), the reverse names of addresses (RFC 6303, here of all addresses), resolver.arpa
// (RFC 9462), and single labels, which have a meaning only with a search list.
func (h Host) IsSpecial() bool {
	switch last := h.name[strings.LastIndexByte(h.name, '.')+1:]; {
	case last == h.name, last == "localhost", last == "invalid", last == "onion", last == "local":
		return true
	case last != "arpa":
		return false
	}
	return isWithin(h.name, "in-addr.arpa") || isWithin(h.name, "ip6.arpa") || isWithin(h.name, "resolver.arpa")
}

// IsLocalhost reports whether a name is localhost or below localhost. Such a name means
// this machine, at 127.0.0.1 and ::1, whatever a name server answers (RFC 6761 section
// 6.3).
func (h Host) IsLocalhost() bool { return isWithin(h.name, "localhost") }

// isWithin reports whether a name is the zone or below the zone.
func isWithin(name, zone string) bool {
	rest, ok := strings.CutSuffix(name, zone)
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}
