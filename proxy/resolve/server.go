package resolve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
)

// Protocol is the protocol of a server.
type Protocol uint8

// The protocols: UDP, with TCP for truncated answers; TCP; DNS over TLS.
const (
	UDP Protocol = iota
	TCP
	DoT
)

// String returns the word in the configuration.
func (p Protocol) String() string {
	switch p {
	case UDP:
		return "udp"
	case TCP:
		return "tcp"
	case DoT:
		return "dot"
	}
	return "invalid"
}

// Server is one upstream server.
type Server struct {
	Protocol Protocol
	Addr     netip.AddrPort
	// Name is the DNS name or address that the certificate of a DoT server must be
	// valid for. It is required with DoT, and must be empty otherwise.
	Name string
	// CA is a PEM file of the CA certificates for a DoT server; "" means those of the
	// system.
	CA string
}

// String names the server in errors, the log and metrics, such as 192.0.2.1:53 (udp),
// or 192.0.2.1:853 (dot, dns.example).
func (s Server) String() string { return s.textOver(s.Protocol) }

// textOver names the server with the protocol that was used, which may be TCP for a UDP
// server.
func (s Server) textOver(p Protocol) string {
	text := s.Addr.String() + " (" + p.String()
	if s.Name != "" {
		text += ", " + s.Name
	}
	return text + ")"
}

func (s Server) check() error {
	switch {
	case !s.Addr.IsValid() || s.Addr.Port() == 0:
		return fmt.Errorf("server %s has no address", s)
	case s.Protocol > DoT:
		return fmt.Errorf("server %s has no protocol", s)
	case (s.Protocol == DoT) != (s.Name != ""), s.Protocol != DoT && s.CA != "":
		return fmt.Errorf("server %s: a name goes with DoT, which needs one, and authorities only with DoT", s)
	}
	return nil
}

// dialer returns a function that connects to the server over TCP, with TLS for DoT.
func (s Server) dialer() (func(context.Context) (net.Conn, error), error) {
	var plain net.Dialer
	if s.Protocol != DoT {
		return func(ctx context.Context) (net.Conn, error) {
			return plain.DialContext(ctx, "tcp", s.Addr.String())
		}, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.Name}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, fmt.Errorf("the authorities of server %s: %w; check the path", s, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the authorities of server %s: no certificate in %s; check the path", s, s.CA)
		}
	}
	return func(ctx context.Context) (net.Conn, error) {
		secure := tls.Dialer{NetDialer: &plain, Config: cfg}
		return secure.DialContext(ctx, "tcp", s.Addr.String())
	}, nil
}

// The servers of the system, and the default if it configures none (resolv.conf(5)).
const (
	resolvConf   = "/etc/resolv.conf"
	maxSystem    = 3
	localAddress = "127.0.0.1"
	dnsPort      = 53
)

// systemServers reads the name servers in a resolv.conf.
func systemServers(path string) ([]Server, error) {
	text, err := os.ReadFile(path) //nolint:gosec // G304: a constant but in tests
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the system's name servers: %w", err)
	}
	var servers []Server
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxSystem {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, Server{Addr: netip.AddrPortFrom(addr, dnsPort)})
		}
	}
	if len(servers) == 0 {
		servers = []Server{{Addr: netip.AddrPortFrom(netip.MustParseAddr(localAddress), dnsPort)}}
	}
	return servers, nil
}
