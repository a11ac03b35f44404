package audit

import (
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
)

// key is who a record is about, for a fair share: the identity, or before there
// is one the source; see allowlist.SourceOf. A key of another kind stands for
// many of these. What is proved of it keeps what may be forged apart.
type key struct {
	name  string // the identity, or of a listener its name
	addr  netip.Addr
	kind  kind // with the proof the last ones, so that one hash covers them and the address
	proof proof
}

// kind says what a key stands for.
type kind uint8

// The kinds. The zero value is one identity or source.
const (
	kindOne      kind = iota
	kindNetwork       // all in the /24 or /48 whose first address it is
	kindListener      // all on a listener
	kindStranger      // all that have no identity
)

func keyOf(rec *Record) key {
	if rec.Identity.IsZero() {
		return key{addr: allowlist.SourceOf(rec.Client.Addr()), proof: proofOf(rec)}
	}
	return key{name: rec.Identity.String(), proof: proofOf(rec)}
}

// networkOf returns the key of the network that an address is in: the /24 of an
// IPv4 address, or the /48 of an IPv6 address.
func networkOf(addr netip.Addr) key {
	addr = addr.Unmap().WithZone("")
	bits := 24
	if addr.Is6() {
		bits = 48
	}
	prefix, _ := addr.Prefix(bits) // which every address has
	return key{kind: kindNetwork, addr: prefix.Addr()}
}

func listenerOf(rec *Record) key { return key{kind: kindListener, name: rec.Listener} }

// maxPathLen is the length of the longest path.
const maxPathLen = 4

// who appends the path of a record in shares by caller: the identity, or of those
// that have none, which are one party together, the listener, the network and the
// source. A source without an identity may be forged, and so may one that is all
// that shows an identity, so that many of them are worth no more than one identity.
func who(path []key, rec *Record) []key {
	k := keyOf(rec)
	if k.name != "" && !k.proof.forgeable() {
		return append(path, k)
	}
	return append(path, key{kind: kindStranger}, listenerOf(rec), networkOf(rec.Client.Addr()), k)
}

// where appends the path of a record in shares by place: of an identity the
// network, the source and itself; else that of who.
func where(path []key, rec *Record) []key {
	k := keyOf(rec)
	if k.name == "" || k.proof.forgeable() {
		return who(path, rec)
	}
	return append(path, networkOf(rec.Client.Addr()), key{addr: allowlist.SourceOf(rec.Client.Addr())}, k)
}
