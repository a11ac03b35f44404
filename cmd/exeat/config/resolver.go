package config

import (
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// The ports of name servers that are written without one.
const (
	portDNS = 53
	portDoT = 853
)

// The bounds of what may be set.
const (
	minCacheBytes = 1 << 20
	maxCacheBytes = 64 << 30
	maxNames      = 1_000_000
)

func (p *parser) resolver(n *strictyaml.Node) {
	for key, v := range n.Fields() {
		switch key {
		case "servers":
			p.Resolver.Servers = p.servers(v)
		case "groups":
			for item := range v.Items() {
				p.Resolver.Groups = append(p.Resolver.Groups, p.group(item))
			}
		case "hosts":
			p.hosts(v)
		case "cache_bytes":
			p.Resolver.CacheBytes = cacheBytes(v)
		case "serve_stale":
			if duration(v, &p.Resolver.ServeStale); p.Resolver.ServeStale == 0 {
				p.Resolver.ServeStale = -1
			}
		case "names_per_minute":
			p.Resolver.Names, _ = v.Int(1, maxNames)
		case "cname":
			word, _ := v.Word("trust", "inspect")
			p.Resolver.Inspect = word == "inspect"
		case "nat64":
			p.NAT64 = prefixes(v, func(prefix netip.Prefix) string {
				if allowlist.IsNAT64(prefix) {
					return ""
				}
				return "is no prefix for NAT64: write an IPv6 one of 32, 40, 48, 56, 64 or 96 bits"
			})
		default:
			v.Unknown("servers", "groups", "hosts", "cache_bytes", "serve_stale", "names_per_minute", "cname", "nat64")
		}
	}
}

func cacheBytes(n *strictyaml.Node) int {
	size, ok := n.Bytes()
	if ok && (size < minCacheBytes || size > maxCacheBytes) {
		n.Errorf("write 1MiB to 64GiB")
	}
	return int(size)
}

func (p *parser) group(n *strictyaml.Node) resolve.Group {
	var g resolve.Group
	for key, v := range n.Fields() {
		switch key {
		case "suffixes":
			g.Suffixes = p.suffixes(v)
		case "servers":
			g.Servers = p.servers(v)
		default:
			v.Unknown("suffixes", "servers")
		}
	}
	if len(g.Suffixes) == 0 || len(g.Servers) == 0 {
		n.Errorf("a group has suffixes and servers: write both")
	}
	return g
}

func (p *parser) suffixes(n *strictyaml.Node) []allowlist.Host {
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
		case p.taken[host]:
			item.Errorf("two groups have the suffix %s", host)
		default:
			p.taken[host] = true
			list = append(list, host)
		}
	}
	return list
}

func (p *parser) servers(n *strictyaml.Node) []resolve.Server {
	if n.IsScalar() {
		return []resolve.Server{{Addr: p.serverAddr(n, portDNS)}}
	}
	var list []resolve.Server
	for item := range n.OneOrMore() {
		if item.IsMapping() {
			list = append(list, p.server(item))
			continue
		}
		list = append(list, resolve.Server{Addr: p.serverAddr(item, portDNS)})
	}
	return list
}

// server reads a name server that is written with its protocol.
func (p *parser) server(n *strictyaml.Node) resolve.Server {
	var s resolve.Server
	protocols := 0
	for key, v := range n.Fields() {
		switch key {
		case "udp", "tcp":
			protocols++
			if key == "tcp" {
				s.Protocol = resolve.TCP
			}
			s.Addr = p.serverAddr(v, portDNS)
		case "dot":
			protocols++
			s.Protocol, s.Addr = resolve.DoT, p.serverAddr(v, portDoT)
		case "name":
			s.Name = serverName(v)
		case "ca":
			s.CA = p.path(v)
		default:
			v.Unknown("udp", "tcp", "dot", "name", "ca")
		}
	}
	switch {
	case protocols != 1:
		n.Errorf("write one of udp, tcp and dot, with the server's address")
	case s.Protocol == resolve.DoT && s.Name == "":
		n.Errorf("name is missing: what the certificate of the server must be for")
	case s.Protocol != resolve.DoT && (s.Name != "" || s.CA != ""):
		n.Errorf("name and ca are for dot only")
	}
	return s
}

// serverName is a DNS name or an address that a certificate can be for.
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

func (p *parser) serverAddr(n *strictyaml.Node, port uint16) netip.AddrPort {
	text, ok := n.Text()
	if !ok {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(text)
	if addr, short := netip.ParseAddr(text); short == nil {
		ap, err = netip.AddrPortFrom(addr, port), nil
	}
	if err != nil || ap.Port() == 0 {
		n.Errorf("%q is no name server: write an IP address, with a port if it is not %d", text, port)
	}
	p.asked[ap] = append(p.asked[ap], n)
	return ap
}

// checkServers refuses a name server that is one of the listeners: the gateway
// would ask itself. A listener may stand below in the file.
func (p *parser) checkServers() {
	for at, nodes := range p.asked {
		own := p.Own(at)
		if own == "" {
			continue
		}
		for _, n := range nodes {
			n.Errorf("%s is this gateway's own listener %s: name the server that knows the answers", at, own)
		}
	}
}

func (p *parser) hosts(n *strictyaml.Node) {
	p.Resolver.Hosts = map[allowlist.Host][]netip.Addr{}
	for name, v := range n.Fields() {
		host, err := allowlist.ParseHost(name)
		if err != nil || host.IsAddr() || host.String() != name {
			v.KeyErrorf("%q is no host name in canonical form (lower case, no final dot)", name)
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
				item.Errorf("%q is no IP address", text)
				continue
			}
			p.Resolver.Hosts[host] = append(p.Resolver.Hosts[host], addr.Unmap())
		}
	}
}
