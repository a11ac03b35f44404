package config

import (
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// The default ports of name servers.
const (
	portDNS = 53
	portDoT = 853
)

// The bounds of some settings.
const (
	minCacheBytes = 1 << 20
	maxCacheBytes = 64 << 30
	maxNames      = 1_000_000
)

// resolverReader reads the settings of the resolver.
type resolverReader struct {
	dir   directory
	taken map[allowlist.Host]bool               // suffixes of the groups read so far
	asked map[netip.AddrPort][]*strictyaml.Node // where each name server is written
}

// keys returns a function that reads the mapping resolver.
func (r *resolverReader) keys(c *Config) func(*strictyaml.Node) {
	into := &c.Resolver
	return mapping(
		key{"servers", func(v *strictyaml.Node) { into.Servers = r.servers(v) }},
		key{"groups", func(v *strictyaml.Node) {
			for item := range v.OneOrMore() {
				into.Groups = append(into.Groups, r.group(item))
			}
		}},
		key{"hosts", func(v *strictyaml.Node) { into.Hosts = hosts(v) }},
		key{"cache_bytes", func(v *strictyaml.Node) { into.CacheBytes = cacheBytes(v) }},
		key{"serve_stale", orNever(&into.ServeStale)},
		key{"names_per_minute", number(&into.Names, 1, maxNames)},
		key{"cname", func(v *strictyaml.Node) {
			word, _ := v.Word("trust", "inspect")
			into.Inspect = word == "inspect"
		}},
		key{"nat64", func(v *strictyaml.Node) { c.Gateway.NAT64 = prefixes(v, notNAT64) }},
	)
}

// notNAT64 returns why a prefix cannot be a translator's, or "" if it can.
func notNAT64(prefix netip.Prefix) string {
	if allowlist.IsNAT64(prefix) {
		return ""
	}
	return "is no prefix for NAT64: write an IPv6 one of 32, 40, 48, 56, 64 or 96 bits"
}

func cacheBytes(n *strictyaml.Node) int {
	size, ok := n.Bytes()
	if ok && (size < minCacheBytes || size > maxCacheBytes) {
		n.Errorf("write 1MiB to 64GiB")
	}
	return int(size)
}

func (r *resolverReader) group(n *strictyaml.Node) resolve.Group {
	var g resolve.Group
	there := readKeys(n,
		key{"suffixes", func(v *strictyaml.Node) { g.Suffixes = r.suffixes(v) }},
		key{"servers", func(v *strictyaml.Node) { g.Servers = r.servers(v) }},
	)
	if there != nil && (there["suffixes"] == nil || there["servers"] == nil) {
		n.Errorf("a group has suffixes and servers: write both")
	}
	return g
}

func (r *resolverReader) suffixes(n *strictyaml.Node) []allowlist.Host {
	var list []allowlist.Host
	for item := range n.OneOrMore() {
		text, ok := item.Text()
		if !ok {
			continue
		}
		host, err := allowlist.ParseHost(text)
		switch {
		case err != nil || host.IsAddr() || host.String() != text:
			item.Errorf("%q is no name in canonical form (lower case, no dot in front or behind)", text)
		case host.IsLocalhost():
			item.Errorf("no server is asked for %s, which is always 127.0.0.1 and ::1 (RFC 6761 section 6.3): leave it out", host)
		case r.taken[host]:
			item.Errorf("two groups have the suffix %s", host)
		default:
			r.taken[host] = true
			list = append(list, host)
		}
	}
	return list
}

func (r *resolverReader) servers(n *strictyaml.Node) []resolve.Server {
	if n.IsScalar() {
		return []resolve.Server{{Addr: r.serverAddr(n, portDNS)}}
	}
	var list []resolve.Server
	for item := range n.OneOrMore() {
		if item.IsMapping() {
			list = append(list, r.server(item))
			continue
		}
		list = append(list, resolve.Server{Addr: r.serverAddr(item, portDNS)})
	}
	return list
}

// server reads a name server in the form of a mapping, with its protocol.
func (r *resolverReader) server(n *strictyaml.Node) resolve.Server {
	var s resolve.Server
	protocols := 0
	speaks := func(protocol resolve.Protocol, port uint16) func(*strictyaml.Node) {
		return func(v *strictyaml.Node) {
			protocols++
			s.Protocol, s.Addr = protocol, r.serverAddr(v, port)
		}
	}
	there := readKeys(n,
		key{"udp", speaks(resolve.UDP, portDNS)},
		key{"tcp", speaks(resolve.TCP, portDNS)},
		key{"dot", speaks(resolve.DoT, portDoT)},
		key{"name", func(v *strictyaml.Node) { s.Name = serverName(v) }},
		key{"ca", r.dir.path(&s.CA)},
	)
	switch {
	case there == nil: // there is an error already
	case protocols != 1:
		n.Errorf("write one of udp, tcp and dot, with the server's address")
	case s.Protocol == resolve.DoT && there["name"] == nil:
		n.Errorf("name is missing: what the certificate of the server must be for")
	case s.Protocol != resolve.DoT && (s.Name != "" || s.CA != ""):
		n.Errorf("name and ca are for dot only")
	}
	return s
}

// serverName reads a DNS name or an address for which a certificate can be issued.
func serverName(n *strictyaml.Node) string {
	text, ok := n.Text()
	if !ok {
		return ""
	}
	host, err := allowlist.ParseHost(text)
	if err != nil || host.String() != text {
		n.Errorf("%q is no name in canonical form (lower case, no final dot)", text)
	}
	return text
}

func (r *resolverReader) serverAddr(n *strictyaml.Node, port uint16) netip.AddrPort {
	text, ok := n.Text()
	if !ok {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(text)
	if addr, short := netip.ParseAddr(text); short == nil {
		ap, err = netip.AddrPortFrom(addr, port), nil
	}
	if err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
		n.Errorf("%q is no name server: write its IP address, with a port if it is not %d", text, port)
	}
	r.asked[ap] = append(r.asked[ap], n)
	return ap
}

// checkListeners refuses a name server that is one of the listeners, because the gateway
// would query itself. It runs last, because a listener may come later in the file.
func (r *resolverReader) checkListeners(c *Config) {
	for at, nodes := range r.asked {
		own := c.ListenerAt(at)
		if own == "" {
			continue
		}
		for _, n := range nodes {
			n.Errorf("%s is this gateway's own listener %s: name the server that knows the answers", at, own)
		}
	}
}

func hosts(n *strictyaml.Node) map[allowlist.Host][]netip.Addr {
	table := map[allowlist.Host][]netip.Addr{}
	for name, v := range n.Fields() {
		host, err := allowlist.ParseHost(name)
		if err != nil || host.IsAddr() || host.String() != name {
			v.KeyErrorf("%q is no host name in canonical form: write one whole name in lower case, without a wildcard and without a final dot", name)
			v.Skip()
			continue
		}
		if host.IsLocalhost() {
			v.KeyErrorf("%s is always 127.0.0.1 and ::1 (RFC 6761 section 6.3): leave it out, and open it with addresses: in the rule", host)
			v.Skip()
			continue
		}
		for item := range v.OneOrMore() {
			text, ok := item.Text()
			if !ok {
				continue
			}
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Zone() != "" {
				item.Errorf("%q is no IP address: write one such as 10.20.0.7", text)
				continue
			}
			table[host] = append(table[host], addr.Unmap())
		}
	}
	return table
}
