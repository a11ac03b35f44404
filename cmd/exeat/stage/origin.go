// Package stage has what stands around the gateway of the demo: an origin that greets, and the
// Workload API of a throw-away authority.
package stage

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

// Origin is a TLS server that answers with a greeting.
type Origin struct {
	// Addr is where it listens: an address of loopback if it listens on all.
	Addr netip.AddrPort

	server *http.Server
	done   chan struct{}
}

// StartOrigin starts an origin at an address, with a certificate for some names.
func StartOrigin(ctx context.Context, a *authority.Authority, address string, names ...string) (*Origin, error) {
	svid, err := a.Mint(authority.Options{
		ID:  spiffeid.RequireFromPath(a.TrustDomain(), "/origin"),
		DNS: names,
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
	o := &Origin{Addr: addr, done: make(chan struct{}), server: &http.Server{
		Handler:           http.HandlerFunc(greet),
		ReadHeaderTimeout: 10 * time.Second,
	}}
	secure := tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{svid.TLS()}})
	go func() {
		defer close(o.done)
		_ = o.server.Serve(secure) // returns when Stop closes the server
	}()
	return o, nil
}

func greet(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, Greeting(host))
}

// Greeting returns what the origin says under a name.
func Greeting(host string) string { return fmt.Sprintf("hello from %q\n", host) }

// Stop ends the origin, and waits for that.
func (o *Origin) Stop() {
	_ = o.server.Close()
	<-o.done
}
