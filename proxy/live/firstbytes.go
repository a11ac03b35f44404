package live

import "github.com/exeat-dev/exeat/allowlist"

// FirstBytes says what the first bytes of the client in a tunnel were. It has a meaning
// only for tunnels that were opened by CONNECT.
type FirstBytes uint8

// The kinds of first bytes. The zero value never counts as a match.
const (
	FirstBytesUnseen FirstBytes = iota // they were not inspected, and will not be
	FirstBytesToCome                   // they have not come; the state of that moment will decide them
	FirstBytesNotTLS                   // not a ClientHello
	FirstBytesNoName                   // a ClientHello without a server name
	FirstBytesHello                    // a ClientHello with a server name that was allowed or observed
)

// awaitsHello reports whether a decision demands a ClientHello in an allowed tunnel
// whose first bytes have not come yet.
func awaitsHello(d *allowlist.Decision, entry *Decided) bool {
	if entry.FirstBytes != FirstBytesToCome {
		return false
	}
	mode, _ := d.TLS()
	return mode == allowlist.TLSRequire
}

// checkFirstBytes returns the reason for which a decision that allows a tunnel refuses
// its first bytes, or NoReason. They are decided as those of a new tunnel. First bytes
// that were not inspected count as bytes that do not match.
func checkFirstBytes(state *State, d *allowlist.Decision, entry *Decided) allowlist.Reason {
	if entry.Request.Method != "" || entry.FirstBytes == FirstBytesToCome {
		return allowlist.NoReason
	}
	mode, ech := d.TLS()
	seen := entry.FirstBytes
	switch {
	case mode == allowlist.TLSOff:
	case ech == allowlist.ECHRefuse && (entry.ECH || seen == FirstBytesUnseen), entry.ECH && refusesECH(state, d, entry):
		return allowlist.ECHRefused
	case seen == FirstBytesNoName && !d.Dest.Host.IsAddr():
		return allowlist.SNIMissing
	case mode != allowlist.TLSRequire:
	case seen == FirstBytesUnseen:
		return allowlist.SNIMismatch
	case seen == FirstBytesNotTLS:
		return allowlist.NotTLS
	}
	return allowlist.NoReason
}

// refusesECH reports whether a rule refuses Encrypted Client Hello for one of the names
// that it may hide. A name that no longer leads to the address is not considered.
func refusesECH(state *State, d *allowlist.Decision, entry *Decided) bool {
	for _, hidden := range entry.Hidden {
		req := d.Request
		req.Dest.Host = hidden.Name
		other := state.Decide(req)
		if _, ech := other.TLS(); other.Verdict != allowlist.Allow || ech != allowlist.ECHRefuse {
			continue
		}
		if other.CheckAddr(entry.Addr) == nil && other.CheckWay(hidden.Way) == allowlist.NoReason {
			return true
		}
	}
	return false
}
