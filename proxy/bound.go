package proxy

import (
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// bound is why a tunnel to an address literal is allowed that no rule names: the
// caller was told the address by the DNS door, for a name that it may reach.
type bound struct {
	addr  netip.Addr
	names []allowlist.Host  // that the caller may reach there, on the port it asks for
	ech   allowlist.ECHMode // refuse, if the rule of one of the names does
}

// bind decides a tunnel to an address once more, by the names that it was the
// answer for. Of these, the one whose rule looks at the first bytes most
// strictly is the destination of the decision; a ClientHello may ask for any.
// Names that the identity was told when it was shown by source-map count for the
// decision only if there are no others.
func bind(x *request, now time.Time) {
	x.bound = bound{}
	host := x.asked.Dest.Host
	if x.proxy.cfg.Bound == nil || x.read.IsPlain() || !host.IsAddr() || !bindable(x.decision.Reason) {
		return
	}
	proved := false // one of the names was told to more than an address
	for _, b := range x.proxy.cfg.Bound(x.asked.ID, host.Addr(), now) {
		req := x.asked
		req.Dest.Host = b.Name
		d := x.state.Decide(req)
		if d.Verdict != allowlist.Allow || d.CheckAddr(netip.AddrPortFrom(host.Addr(), req.Dest.Port)) != nil ||
			b.Check(&d) != allowlist.NoReason {
			continue
		}
		x.bound.names = append(x.bound.names, b.Name)
		if b.Mapped && proved { // whoever forges a datagram does not choose the rule
			continue
		}
		proved = !b.Mapped
		if _, ech := d.TLS(); ech == allowlist.ECHRefuse {
			x.bound.ech = ech
		}
		if len(x.bound.names) == 1 || stricter(d, x.decision) {
			x.decision = d
		}
	}
	if len(x.bound.names) > 0 {
		x.bound.addr = host.Addr()
	}
}

// bindable reports whether a denial only says that no rule opens the address.
// The rule of a name may, also beside one for the address that does not.
func bindable(reason allowlist.Reason) bool {
	switch reason { //nolint:exhaustive // no name opens what the others deny
	case allowlist.IPNotOnAllowlist, allowlist.PortNotAllowed, allowlist.RuleExpired, allowlist.MethodNotAllowed,
		allowlist.ResolvedAddressDenied:
		return true
	}
	return false
}

// stricter compares how two decisions look at the first bytes of a tunnel.
func stricter(a, b allowlist.Decision) bool {
	strictness := func(d allowlist.Decision) int {
		mode, _ := d.TLS()
		switch mode {
		case allowlist.TLSOff:
			return 0
		case allowlist.TLSAuto:
			return 1
		case allowlist.TLSRequire, allowlist.TLSDefault:
		}
		return 2
	}
	return strictness(a) > strictness(b)
}
