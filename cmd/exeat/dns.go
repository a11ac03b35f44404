package main

import (
	"context"
	"net"
	"runtime"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// door is a listener for connections and what it speaks.
type door struct {
	*listen.Listener

	protocol config.Protocol
}

// applicationProtocols are what a TLS listener offers in ALPN.
func applicationProtocols(p config.Protocol) []string {
	switch p {
	case config.DoT:
		return []string{"dot"} // RFC 7858 has none; this is what IANA lists
	case config.DoH:
		return []string{"h2", "http/1.1"}
	case config.Connect, config.DNS:
	}
	return nil
}

// handler answers on the connections of a listener.
func (g *gateway) handler(p config.Protocol) func(context.Context, *listen.Conn) {
	switch p {
	case config.DNS, config.DoT:
		return g.dns.ServeStream
	case config.DoH:
		return g.dns.ServeDoH
	case config.Connect:
	}
	return g.proxy.Serve
}

// openDatagrams opens the sockets beside a listener for DNS over TCP, at the
// same address.
func (g *gateway) openDatagrams(ctx context.Context, l *listen.Listener, cfg listen.Config) error {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		panic("a DNS listener without an IP address, which the configuration refuses")
	}
	u, err := listen.OpenUDP(ctx, listen.UDPConfig{
		Name: cfg.Name, Address: tcp.AddrPort(), Fixed: cfg.Fixed, Mapped: cfg.Mapped, Sockets: runtime.NumCPU(),
	})
	if err != nil {
		return err
	}
	g.datagrams = append(g.datagrams, u)
	return nil
}

// buildDNS makes the resolver and, if there is a listener for them, the DNS
// doors.
func (g *gateway) buildDNS() error {
	var err error
	if g.resolver, err = resolve.New(g.cfg.Resolver); err != nil {
		return err
	}
	wanted := false
	for _, l := range g.listeners {
		wanted = wanted || l.protocol != config.Connect
	}
	if !wanted {
		return nil
	}
	g.dns, err = dns.New(dns.Config{
		Current: &g.current, Registry: &g.registry, Recorder: g.recorder, Log: g.log,
		Resolver: dns.Resolver{Cached: g.resolver.Cached, Lookup: g.resolver.Lookup, Bind: g.resolver.Bind},
		Budgets:  g.budgets, Limits: g.cfg.DNS, Inspect: g.cfg.Resolver.Inspect, SpanEvery: uint64(g.cfg.SpanEvery), //nolint:gosec // G115: the configuration has a positive one
	})
	return err
}

// drain makes every door end what it can end.
func (g *gateway) drain() {
	g.proxy.Drain()
	if g.dns != nil {
		g.dns.Drain()
	}
}

// panics is how many connections and queries ended in a panic.
func (g *gateway) panics() uint64 {
	n := g.proxy.Panics()
	if g.dns != nil {
		n += g.dns.Stats().Panics
	}
	return n
}
