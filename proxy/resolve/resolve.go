// Package resolve turns a decided host name into addresses, inside the
// process: no search list completes a name, and a name that a policy did not
// allow is never asked for, since only an allowed request gets here.
//
// It does not check the addresses it returns; the dialer asks the decision for
// each of them. It is built on net.Resolver, which looks a name up in the
// /etc/hosts of the machine before it asks a server (if nsswitch.conf says so,
// or does not exist), and which keeps no answers.
package resolve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// How long configured servers are waited for: each try of one of them, and all
// tries together; and how often each is tried.
const (
	tryTimeout    = 2 * time.Second
	lookupTimeout = 5 * time.Second
	rounds        = 2
)

// Config says where names are looked up.
type Config struct {
	// Servers are asked in turn: the next one if the one before did not answer
	// within two seconds or failed, each twice at most and all of them for five
	// seconds. nil means those of the system's resolv.conf, with its timeouts.
	Servers []netip.AddrPort
	// Hosts answers these names without asking anybody.
	Hosts map[allowlist.Host][]netip.Addr
}

// Resolver looks names up. It is safe for concurrent use.
type Resolver struct {
	hosts   map[allowlist.Host][]netip.Addr
	servers []*net.Resolver // asked in turn; none: those of the system
	system  net.Resolver
	try     time.Duration
}

// New returns a resolver.
func New(cfg Config) *Resolver {
	r := &Resolver{hosts: make(map[allowlist.Host][]netip.Addr, len(cfg.Hosts)), try: tryTimeout}
	r.system.PreferGo, r.system.Dial = true, dialServer(netip.AddrPort{})
	for host, addrs := range cfg.Hosts {
		r.hosts[host] = unmap(addrs)
	}
	for _, server := range cfg.Servers {
		r.servers = append(r.servers, &net.Resolver{PreferGo: true, Dial: dialServer(server)})
	}
	return r
}

// Resolve returns the addresses of a host, IPv4-mapped ones unmapped. An
// address literal is its own answer. The error is that of net.Resolver: a
// *net.DNSError says whether it was a timeout.
func (r *Resolver) Resolve(ctx context.Context, host allowlist.Host) ([]netip.Addr, error) {
	if host.IsAddr() {
		return []netip.Addr{host.Addr()}, nil
	}
	if addrs, ok := r.hosts[host]; ok {
		return addrs, nil
	}
	name := host.String() + "." // rooted: no search list
	if len(r.servers) == 0 {
		addrs, err := r.system.LookupNetIP(ctx, "ip", name)
		return unmap(addrs), err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var err error
	for i := range rounds * len(r.servers) {
		var addrs []netip.Addr
		addrs, err = r.ask(ctx, r.servers[i%len(r.servers)], name)
		if err == nil {
			return unmap(addrs), nil
		}
		if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound || ctx.Err() != nil {
			break // an answer, or nobody waits for one any more
		}
	}
	return nil, err
}

// ask asks one server. net.Resolver would ask it again after a time that the
// system's resolv.conf sets; ours is shorter.
func (r *Resolver) ask(ctx context.Context, server *net.Resolver, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, r.try)
	defer cancel()
	return server.LookupNetIP(ctx, "ip", name)
}

// dialServer connects to a server, whatever the system's resolv.conf names, or
// to the one that it names if server is the zero value. UDP and, for a
// truncated answer, TCP go to the same one.
//
// net.Resolver leaves a lookup whose context has ended waiting for its socket
// until the time of resolv.conf is over: closing the socket ends it now.
func dialServer(server netip.AddrPort) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if server.IsValid() {
			address = server.String()
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		return conn, nil
	}
}

// unmap returns the addresses with IPv4-mapped ones unmapped, in a new slice.
func unmap(addrs []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.Unmap())
	}
	return out
}
