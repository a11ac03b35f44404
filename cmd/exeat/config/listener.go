package config

import (
	"cmp"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/gateway"
)

func (p *parser) listeners(n *strictyaml.Node) {
	names := map[string]bool{}
	for item := range n.Items() {
		l := p.listener(item)
		if l.Name != "" && names[l.Name] {
			item.Errorf("there are two listeners with the name %q", l.Name)
		}
		names[l.Name] = true
		p.Listeners = append(p.Listeners, l)
	}
	if len(p.Listeners) == 0 && n.IsList() {
		n.Errorf("the list is empty: write a listener")
	}
}

func (p *parser) listener(n *strictyaml.Node) Listener {
	var l Listener
	there := readKeys(n,
		key{"name", word(&l.Name)},
		key{"address", func(v *strictyaml.Node) { l.Address = p.dir.address(v) }},
		key{"protocol", func(v *strictyaml.Node) { l.Protocol = protocol(v) }},
		key{"identity", func(v *strictyaml.Node) { l.Identity = identityKind(v) }},
		key{"id", func(v *strictyaml.Node) { l.ID = spiffeID(v) }},
		key{"sources", func(v *strictyaml.Node) { l.Sources = sources(v) }},
		key{"present", func(v *strictyaml.Node) { p.present(v, &l) }},
		key{"socket_mode", func(v *strictyaml.Node) { l.SocketMode = socketMode(v) }},
		key{"proxy_protocol", func(v *strictyaml.Node) { l.Proxies = prefixes(v, nil) }},
		key{"trace_parent", func(v *strictyaml.Node) {
			word, _ := v.Word("link", "accept")
			l.AcceptTrace = word == "accept"
		}},
	)
	if there == nil {
		return l // there is an error already
	}
	if there["name"] == nil {
		n.Errorf("the listener has no name: records name it")
	}
	if there["address"] == nil { // an address that is not valid is an error already
		n.Errorf("the listener has no address: write HOST:PORT or unix:/path")
	}
	switch id := there["id"]; {
	case id == nil && l.Identity == gateway.Fixed:
		n.Errorf("an id goes with identity: fixed: write id and the SPIFFE ID that every caller of the listener has")
	case id != nil && l.Identity != gateway.Fixed:
		n.Errorf("id goes with identity: fixed only: write that, too, or remove id")
	}
	p.occupy(there["address"], l.Name, l.Address)
	l.check(n)
	return l
}

func identityKind(n *strictyaml.Node) gateway.IdentityKind {
	switch word, _ := n.Word("mtls", "self", "fixed", "source-map"); word {
	case "self":
		return gateway.Self
	case "fixed":
		return gateway.Fixed
	case "source-map":
		return gateway.SourceMap
	}
	return gateway.MTLS
}

// check checks the fields of a listener against each other.
func (l *Listener) check(n *strictyaml.Node) {
	if l.Name == gateway.AdminName {
		n.Errorf("%q is the name of the admin listener in records and metrics: choose another one", l.Name)
	}
	if l.Address == "" {
		return // there is an error already
	}
	unix := strings.HasPrefix(l.Address, "unix:")
	if l.SocketMode != 0 && !unix {
		n.Errorf("socket_mode is for unix sockets only")
	}
	if l.Proxies != nil && (unix || l.Protocol == gateway.DNS) {
		n.Errorf("proxy_protocol is for TCP only: it says nothing on a unix socket or in a datagram")
	}
	if (l.Identity == gateway.SourceMap) != (l.Sources != nil) {
		n.Errorf("sources goes with identity: source-map, which needs it")
	}
	l.checkProtocol(n, unix)
	if l.Identity == gateway.MTLS {
		return
	}
	if l.WebCertificate != "" {
		n.Errorf("present is for identity: mtls only: this listener speaks no TLS")
	}
	if !unix && l.Identity != gateway.SourceMap && !isLoopback(l.Address) {
		n.Errorf("a listener that asks for no certificate gives its identity to whoever reaches %s: use 127.0.0.1, [::1] or a unix socket", l.Address)
	}
}

func isLoopback(address string) bool {
	ap, err := netip.ParseAddrPort(address)
	return err == nil && ap.Addr().IsLoopback()
}

func spiffeID(n *strictyaml.Node) spiffeid.ID {
	text, ok := n.Text()
	if !ok {
		return spiffeid.ID{}
	}
	id, err := spiffeid.FromString(text)
	if err != nil || id.Path() == "" {
		n.Errorf("%q is no SPIFFE ID of a workload: write spiffe://trust.domain/path", text)
		return spiffeid.ID{}
	}
	return id
}

func (p *parser) present(n *strictyaml.Node, l *Listener) {
	if n.IsScalar() {
		if text, ok := n.Text(); ok && text != "svid" {
			n.Errorf("want svid, or {certificate: FILE, key: FILE}, not %q", text)
		}
		return
	}
	there := readKeys(n, key{"certificate", p.dir.path(&l.WebCertificate)}, key{"key", p.dir.path(&l.WebKey)})
	if there != nil && (there["certificate"] == nil || there["key"] == nil) {
		n.Errorf("write svid, or both certificate and key")
	}
}

func socketMode(n *strictyaml.Node) fs.FileMode {
	text, ok := n.Text()
	if !ok {
		return 0
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode == 0 || mode > 0o777 {
		n.Errorf("%q is no permission: write it in octal, such as \"0660\"", text)
		return 0
	}
	return fs.FileMode(mode)
}

// protocol reads the protocol of a listener, or the list of those that it takes.
func protocol(n *strictyaml.Node) gateway.Protocol {
	if !n.IsList() {
		p, _ := oneProtocol(n, "socks5")
		return p
	}
	var all []gateway.Protocol
	for item := range n.Items() {
		if text, ok := item.Text(); ok && text == "socks5" {
			item.Errorf("socks5 shares no listener: write protocol: socks5")
			return gateway.Connect
		}
		p, ok := oneProtocol(item)
		if !ok {
			return gateway.Connect // there is an error already
		}
		all = append(all, p)
	}
	switch {
	case len(all) == 1:
		return all[0]
	case len(all) == 2 && slices.Contains(all, gateway.Connect) && slices.Contains(all, gateway.DoH):
		return gateway.ConnectAndDoH
	}
	n.Errorf("write one of connect, dns, dot and doh, or [connect, doh]: no others share a listener")
	return gateway.Connect
}

// oneProtocol reads one of the protocols that a list may have, or one of others.
func oneProtocol(n *strictyaml.Node, others ...string) (p gateway.Protocol, ok bool) {
	word, ok := n.Word(append([]string{"connect", "dns", "dot", "doh"}, others...)...)
	switch word {
	case "socks5":
		p = gateway.SOCKS5
	case "dns":
		p = gateway.DNS
	case "dot":
		p = gateway.DoT
	case "doh":
		p = gateway.DoH
	}
	return p, ok
}

// sources reads ranges of addresses and the identities of their callers.
func sources(n *strictyaml.Node) map[netip.Prefix]spiffeid.ID {
	ranges := map[netip.Prefix]spiffeid.ID{}
	for key, v := range n.Fields() {
		prefix, err := netip.ParsePrefix(key)
		if err != nil || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
			v.KeyErrorf("%q is no range of addresses: write one such as 10.20.0.0/16, or 10.20.0.7/32", key)
			v.Skip()
			continue
		}
		ranges[prefix] = spiffeID(v)
	}
	return ranges
}

// checkProtocol checks that the protocol's callers can have the listener's kind of
// identity.
func (l *Listener) checkProtocol(n *strictyaml.Node, unix bool) {
	if l.Protocol == gateway.Connect || l.Protocol == gateway.SOCKS5 {
		if l.Identity == gateway.SourceMap {
			n.Errorf("identity: source-map is for protocol: dns only")
		}
		if l.Protocol == gateway.SOCKS5 {
			l.checkSOCKS5(n)
		}
		return
	}
	if unix {
		n.Errorf("DNS is asked over an IP address: write one, with a port")
		return
	}
	if l.AcceptTrace && !l.Protocol.TakesRequests() {
		n.Errorf("trace_parent is for protocol: connect only: queries carry none")
	}
	if l.Protocol != gateway.DNS {
		switch {
		case l.Identity == gateway.MTLS:
		case l.Protocol == gateway.ConnectAndDoH:
			n.Errorf("DoH is spoken over TLS, where the client's certificate is the identity: remove the key identity, or doh from protocol")
		default:
			n.Errorf("over TLS the client's certificate is the identity: remove the key identity")
		}
		return
	}
	if l.Identity == gateway.MTLS {
		n.Errorf("plain DNS shows no certificate: write identity: self, fixed or source-map, or protocol: dot")
	}
	if ap, err := netip.ParseAddrPort(l.Address); err == nil && ap.Addr().Unmap().IsUnspecified() {
		n.Errorf("an answer has to come from the address that was asked: write the one that clients ask, not %s", ap.Addr())
	}
}

// checkSOCKS5 checks what SOCKS5 cannot carry.
func (l *Listener) checkSOCKS5(n *strictyaml.Node) {
	if l.Identity == gateway.MTLS {
		n.Errorf("SOCKS5 shows no certificate: write identity: self or fixed, or protocol: connect")
	}
	if l.AcceptTrace {
		n.Errorf("trace_parent is for protocol: connect only: SOCKS5 carries none")
	}
}

// needsIdentity reports whether the gateway needs an identity of its own for the
// listener.
func (l *Listener) needsIdentity() bool {
	return l.Identity == gateway.MTLS || l.Identity == gateway.Self
}

// dnsLimits returns a function that reads the bounds of the DNS listeners.
func dnsLimits(c *Config) func(*strictyaml.Node) {
	const most = 1 << 30
	d := &c.Gateway.DNS
	return compared(
		func(there map[string]*strictyaml.Node) {
			neverReached(c, there["connections_per_identity"], d.Streams, "dns.connections", c.Gateway.DNSConnections)
			neverReached(c, there["lookups_per_identity"], d.InFlight, "dns.lookups", cmp.Or(d.Total, gateway.DefaultLookups))
		},
		key{"queries_per_second", number(&c.Gateway.Limits.Identity.DNSPerSecond, 1, most)},
		key{"lookups", number(&d.Total, 1, most)},
		key{"lookups_per_identity", number(&d.InFlight, 1, most)},
		key{"connections", written(&c.FitDNSConnections, number(&c.Gateway.DNSConnections, 1, most))},
		key{"connections_per_identity", number(&d.Streams, 1, most)},
		key{"queries_per_connection", number(&d.PerStream, 1, most)},
		key{"span_every", number(&c.Gateway.SpanEvery, 1, most)},
	)
}
