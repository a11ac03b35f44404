package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// origin is the demo's destination: a TLS server that answers with a greeting.
type origin struct {
	addr   netip.AddrPort
	server *http.Server
	done   chan struct{}
}

func startOrigin(ctx context.Context, a *authority.Authority, address string) (*origin, error) {
	svid, err := a.Mint(authority.Options{
		ID:  spiffeid.RequireFromPath(a.TrustDomain(), "/origin"),
		DNS: []string{demoHello, demoSecret},
	})
	if err != nil {
		return nil, err
	}
	l, err := listen.TCP(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("--origin %w", err)
	}
	addr, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	if addr.Addr().IsUnspecified() { // every address of this host
		loopback := netip.IPv6Loopback()
		if addr.Addr().Is4() {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		addr = netip.AddrPortFrom(loopback, addr.Port())
	}
	o := &origin{addr: addr, done: make(chan struct{}), server: &http.Server{
		Handler:           http.HandlerFunc(greet),
		ReadHeaderTimeout: 10 * time.Second,
	}}
	secure := tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{svid.TLS()}})
	go func() {
		defer close(o.done)
		_ = o.server.Serve(secure) // returns when stop closes the server
	}()
	return o, nil
}

func greet(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, greeting(host))
}

// greeting returns what the origin says under a name.
func greeting(host string) string { return fmt.Sprintf("hello from %q\n", host) }

func (o *origin) stop() {
	_ = o.server.Close()
	<-o.done
}
