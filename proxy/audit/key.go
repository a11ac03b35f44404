package audit

import (
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
)

// key names the party that a record counts for in a fair share: the identity, or the
// source address if there is no identity; see allowlist.SourceOf. A key of another kind
// stands for many parties. The proof is part of the key, so that records which may be
// forged count apart.
type key struct {
	name  string // the identity; for a kindListener the name of the listener
	addr  netip.Addr
	kind  kind // last together with proof, so that one hash covers both and the address
	proof proof
}

// kind says what a key stands for.
type kind uint8

// The kinds. The zero value is one identity or source.
const (
	kindOne      kind = iota
	kindNetwork       // every source in the /24 or /48 that begins with addr
	kindListener      // every caller on a listener
	kindStranger      // every caller without an identity
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
	prefix, _ := addr.Prefix(bits) // every valid address has one
	return key{kind: kindNetwork, addr: prefix.Addr()}
}

func listenerOf(rec *Record) key { return key{kind: kindListener, name: rec.Listener} }

// maxPathLen is the length of the longest path.
const maxPathLen = 4

// callerPath appends the path of a record in shares by caller. The path of an identity is
// its own key alone. All callers without an identity share one node, below which each
// listener, network and source has its own. A source without an identity may be forged,
// and so may an identity that only the source shows; therefore all of them together have
// no larger share than one identity.
func callerPath(path []key, rec *Record) []key {
	k := keyOf(rec)
	if k.name != "" && !k.proof.forgeable() {
		return append(path, k)
	}
	return append(path, key{kind: kindStranger}, listenerOf(rec), networkOf(rec.Client.Addr()), k)
}

// networkPath appends the path of a record in shares by place: network, source and
// identity. Without an identity, or with one that may be forged, it is the callerPath.
func networkPath(path []key, rec *Record) []key {
	k := keyOf(rec)
	if k.name == "" || k.proof.forgeable() {
		return callerPath(path, rec)
	}
	return append(path, networkOf(rec.Client.Addr()), key{addr: allowlist.SourceOf(rec.Client.Addr())}, k)
}
