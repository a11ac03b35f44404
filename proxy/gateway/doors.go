package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// doors holds the listeners with the protocols that they serve.
type doors struct {
	cfg      *Config
	verifier *identity.Verifier // nil without an identity provider
	panicked func(ctx context.Context, cause any, stack []byte)
	shed     *shedReporter

	connections []door
	datagrams   []*listen.UDP
}

// door is a listener for connections with the protocol that it serves.
type door struct {
	*listen.Listener

	protocol Protocol
	web      *identity.WebCertificate // certificate that it presents; nil means the SVID
}

// open opens the listeners of the configuration.
func (d *doors) open(ctx context.Context) error {
	sources := limit.NewSources(d.cfg.Limits)
	permits := limit.NewPermits(limit.DefaultPermits)
	slots, dnsSlots := limit.NewSlots(limit.SharesOf(d.cfg.MaxConnections)), limit.NewSlots(d.cfg.dnsShares())
	for _, l := range d.cfg.Listeners {
		cfg, err := d.config(l)
		if err != nil {
			return err
		}
		cfg.Slots, cfg.Sources, cfg.Permits, cfg.Descriptors = slots, sources, permits, d.cfg.Descriptors.Accepted
		cfg.Shed = d.shed.counter(l.Name)
		if !l.Protocol.TakesRequests() {
			cfg.Slots = dnsSlots
			cfg.HandshakeTimeout = min(cfg.HandshakeTimeout, dns.HandshakeTimeout)
		}
		opened, err := listen.Listen(ctx, cfg)
		if err != nil {
			return err
		}
		d.connections = append(d.connections, door{opened, l.Protocol, l.Web})
		if l.Protocol == DNS {
			if err := d.openDatagrams(ctx, opened, cfg); err != nil {
				return err
			}
		}
	}
	return nil
}

// openDatagrams opens the socket for datagrams at the address of a listener for DNS
// over TCP.
func (d *doors) openDatagrams(ctx context.Context, l *listen.Listener, cfg listen.Config) error {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("listener %s: DNS needs an IP address, for its datagrams", cfg.Name)
	}
	u, err := listen.OpenUDP(ctx, listen.UDPConfig{
		Name: cfg.Name, Address: tcp.AddrPort(), Fixed: cfg.Fixed, Mapped: cfg.Mapped, Loops: runtime.GOMAXPROCS(0), //nolint:forbidigo // zero only queries the value
	})
	if err != nil {
		return err
	}
	d.datagrams = append(d.datagrams, u)
	return nil
}

// hasDNSListener reports whether there is a listener for queries.
func (d *doors) hasDNSListener() bool {
	for _, l := range d.connections {
		if l.protocol.TakesQueries() {
			return true
		}
	}
	return false
}

// addresses returns the addresses on which the doors listen.
func (d *doors) addresses() []netip.AddrPort {
	var all []netip.AddrPort
	for _, u := range d.datagrams {
		all = append(all, u.Addr())
	}
	for _, l := range d.connections {
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			all = append(all, tcp.AddrPort())
		}
	}
	return all
}

func (d *doors) close() {
	for _, l := range d.connections {
		_ = l.Close()
	}
	for _, u := range d.datagrams {
		_ = u.Close()
	}
}

// applicationProtocols returns what a TLS listener offers in ALPN.
func applicationProtocols(p Protocol) []string {
	switch p {
	case DoT:
		return []string{"dot"} // RFC 7858 names none; IANA lists this one
	case Connect, DoH, ConnectAndDoH:
		return []string{"h2", "http/1.1"}
	case DNS, SOCKS5:
	}
	return nil
}

// config returns the configuration of a listener for package listen, including where
// its callers' identity comes from.
func (d *doors) config(l Listener) (listen.Config, error) {
	cfg := listen.Config{
		Name: l.Name, Address: l.Address, SocketMode: l.SocketMode, AcceptTrace: l.AcceptTrace, Proxies: l.Proxies,
		HandshakeTimeout: d.cfg.HandshakeTimeout, Log: d.cfg.Log, Panicked: d.panicked, Refused: d.refused(l.Name),
	}
	if cfg.HandshakeTimeout <= 0 {
		cfg.HandshakeTimeout = listen.DefaultHandshakeTimeout
	}
	switch l.Identity {
	case Self:
		cfg.Fixed = func() spiffeid.ID { return d.cfg.Identity.Snapshot().ID() }
		return cfg, nil
	case Fixed:
		cfg.Fixed = func() spiffeid.ID { return l.ID }
		return cfg, nil
	case SourceMap:
		cfg.Mapped = listen.NewAddressMap(l.Sources).Find
		return cfg, nil
	case MTLS:
	}
	var err error
	cfg.TLS, err = identity.ServerConfig{
		Provider: d.cfg.Identity, Verifier: d.verifier, Protocols: applicationProtocols(l.Protocol), Web: l.Web,
	}.TLS()
	if err != nil {
		return cfg, fmt.Errorf("listener %s: %w", l.Name, err)
	}
	cfg.Verifier, cfg.Realm = d.verifier, d.cfg.Identity.Snapshot().TrustDomain().Name()
	cfg.HandshakeFailed, cfg.Handshaken, cfg.Unused = d.handshakeFailed(l.Name), d.cfg.Metrics.Handshaken, d.unused(l.Name)
	return cfg, nil
}

// handshakeFailed returns a function that records a handshake which failed inside the
// TLS library. A connection that was closed without a byte, as health checks do, was no
// handshake.
func (d *doors) handshakeFailed(listener string) func(context.Context, netip.AddrPort, error) {
	return func(_ context.Context, client netip.AddrPort, err error) {
		if errors.Is(err, io.EOF) {
			return
		}
		d.cfg.Recorder.Event(audit.Record{
			Event: audit.EventHandshake, Listener: listener, Client: client,
			Reason: allowlist.TLSHandshakeFailed, Detail: err.Error(),
		})
	}
}

// unused returns a function that counts a handshake without a request, as health checks
// make. It records the handshake only if the certificate was not valid.
func (d *doors) unused(listener string) func(context.Context, netip.AddrPort, allowlist.Reason, string) {
	record := d.refused(listener)
	return func(ctx context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
		d.cfg.Metrics.Unused()
		if why != allowlist.NoReason && why != allowlist.IdentityMissing {
			record(ctx, client, why, detail)
		}
	}
}

// refused returns a function that records a connection which was closed without an
// answer.
func (d *doors) refused(listener string) func(context.Context, netip.AddrPort, allowlist.Reason, string) {
	return func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
		d.cfg.Recorder.Event(audit.Record{Event: audit.EventHandshake, Listener: listener, Client: client, Reason: why, Detail: detail})
	}
}
