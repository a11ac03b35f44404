package live

import "github.com/exeat-dev/exeat/allowlist"

// FirstBytes is what the client's first bytes through a tunnel were. It is of no
// meaning for anything but a tunnel that was asked for by CONNECT.
type FirstBytes uint8

// What first bytes may be. The zero value is what must not be taken for a match.
const (
	FirstBytesUnseen FirstBytes = iota // nobody looks at them, or has
	FirstBytesToCome                   // they are looked at by the state of when they come
	FirstBytesNotTLS                   // not a ClientHello
	FirstBytesNoName                   // a ClientHello without a name
	FirstBytesHello                    // a ClientHello for a name that was allowed, or observed
)

// mustBeHello reports whether a decision that allows a tunnel lets only a ClientHello
// through, which is to come.
func mustBeHello(d *allowlist.Decision, was *Decided) bool {
	if was.FirstBytes != FirstBytesToCome {
		return false
	}
	mode, _ := d.TLS()
	return mode == allowlist.TLSRequire
}

// checkFirstBytes returns why a decision that allows a tunnel refuses its first bytes.
// They are judged as those of a new tunnel, and if nobody has looked at them, as bytes
// that do not match.
func checkFirstBytes(state *State, d *allowlist.Decision, was *Decided) allowlist.Reason {
	if was.Request.Method != "" || was.FirstBytes == FirstBytesToCome {
		return allowlist.NoReason
	}
	mode, ech := d.TLS()
	seen := was.FirstBytes
	switch {
	case mode == allowlist.TLSOff:
	case ech == allowlist.ECHRefuse && (was.ECH || seen == FirstBytesUnseen), was.ECH && refusesECH(state, d, was):
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

// refusesECH reports whether the rule of a name refuses ECH that may be behind it. A
// name that does not lead to the address any more is not behind it.
func refusesECH(state *State, d *allowlist.Decision, was *Decided) bool {
	for _, hidden := range was.Hidden {
		req := d.Request
		req.Dest.Host = hidden.Name
		other := state.Decide(req)
		if _, ech := other.TLS(); other.Verdict != allowlist.Allow || ech != allowlist.ECHRefuse {
			continue
		}
		if other.CheckAddr(was.Addr) == nil && other.CheckWay(hidden.Way) == allowlist.NoReason {
			return true
		}
	}
	return false
}
