package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// bound is why a tunnel to an address literal is allowed that no rule names: the
// caller was told the address by the DNS door, for a name that it may reach.
type bound struct {
	addr  netip.Addr
	names []resolve.Binding // that the caller may reach there, on the port it asks for
	way   allowlist.Way     // of the name that is the destination of the decision
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
		d, ok := decideBound(x.state, x.asked, netip.AddrPortFrom(host.Addr(), x.asked.Dest.Port), b)
		if !ok {
			continue
		}
		x.bound.names = append(x.bound.names, b)
		if b.Mapped && proved { // whoever forges a datagram does not choose the rule
			continue
		}
		proved = !b.Mapped
		if len(x.bound.names) == 1 || stricter(d, x.decision) {
			x.decision, x.bound.way = d, b.Way
		}
	}
	if len(x.bound.names) > 0 {
		x.bound.addr = host.Addr()
	}
}

// maxBoundTold is how many names a record has of an address that several were told for.
const maxBoundTold = 4

// told says for which names the caller was told the address; "" if it is allowed
// by itself.
func (b *bound) told() string {
	if len(b.names) == 0 {
		return ""
	}
	var text strings.Builder
	text.WriteString("the address was told for ")
	for i, name := range b.names[:min(len(b.names), maxBoundTold)] {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(name.Name.String())
	}
	if more := len(b.names) - maxBoundTold; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return text.String()
}

// decideBound decides a request for an address by a name that it was the answer for,
// and reports whether the name opens the address.
func decideBound(state *live.State, req allowlist.Request, addr netip.AddrPort, b resolve.Binding) (d allowlist.Decision, ok bool) {
	req.Dest.Host = b.Name
	d = state.Decide(req)
	return d, d.Verdict == allowlist.Allow && d.CheckAddr(addr) == nil && d.CheckWay(b.Way) == allowlist.NoReason
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
