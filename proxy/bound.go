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

// boundNames holds the names by which a tunnel to an address literal is allowed though no
// rule names the address: the DNS door has answered the caller with the address for these
// names, and the caller may reach them. The zero value means that there are none.
type boundNames struct {
	addr  netip.Addr
	names []resolve.Binding // names that the caller may reach at addr, on the requested port
	way   allowlist.Way     // way of the name that is the destination of the decision
}

// decideByBoundNames decides a tunnel to an address by the names that the DNS door has
// answered with the address, if no rule allows the address itself. The name whose rule
// checks the first bytes most strictly becomes the destination of the decision; a
// ClientHello may ask for any of the names. Names that were answered to an identity shown
// by source-map become the destination only if there are no others.
func decideByBoundNames(x *request, now time.Time) {
	x.bound = boundNames{}
	host := x.asked.Dest.Host
	if x.proxy.cfg.Bound == nil || x.read.IsPlain() || !host.IsAddr() || !bindable(x.decision.Reason) {
		return
	}
	proved := false // one of the names was answered to an identity not shown by source-map
	for _, b := range x.proxy.cfg.Bound(x.asked.ID, host.Addr(), now) {
		d, ok := decideBoundName(x.state, x.asked, netip.AddrPortFrom(host.Addr(), x.asked.Dest.Port), b)
		if !ok {
			continue
		}
		x.bound.names = append(x.bound.names, b)
		if b.Mapped && proved { // a forged datagram must not select the rule
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

// maxBoundNames is the largest number of names that a record lists for an address.
const maxBoundNames = 4

// text returns the text about the names for the record, or "" if there are none.
func (b *boundNames) text() string {
	if len(b.names) == 0 {
		return ""
	}
	var text strings.Builder
	text.WriteString("the address was told for ")
	for i, name := range b.names[:min(len(b.names), maxBoundNames)] {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(name.Name.String())
	}
	if more := len(b.names) - maxBoundNames; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return text.String()
}

// decideBoundName decides a request for an address by a name that the DNS door has answered
// with the address. It reports whether the decision allows the name at that address.
func decideBoundName(state *live.State, req allowlist.Request, addr netip.AddrPort, b resolve.Binding) (d allowlist.Decision, ok bool) {
	req.Dest.Host = b.Name
	d = state.Decide(req)
	return d, d.Verdict == allowlist.Allow && d.CheckAddr(addr) == nil && d.CheckWay(b.Way) == allowlist.NoReason
}

// bindable reports whether a denial only means that no rule for the address allows the
// request, so that the rule of a name may still allow it.
func bindable(reason allowlist.Reason) bool {
	switch reason { //nolint:exhaustive // a name cannot change the other denials
	case allowlist.IPNotOnAllowlist, allowlist.PortNotAllowed, allowlist.RuleExpired, allowlist.MethodNotAllowed,
		allowlist.ResolvedAddressDenied:
		return true
	}
	return false
}

// stricter reports whether decision a checks the first bytes of a tunnel more strictly
// than decision b.
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
