package gateway

import (
	"context"
	"net"
	"strconv"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// queryAnswerer returns the function that answers the requests which may contain a query,
// on a listener for CONNECT and DoH.
func queryAnswerer(server *dns.Server) proxy.AnswerQuery {
	return func(ctx context.Context, from listen.Verified, r *front.Request) front.Answer {
		a := server.AnswerHTTP(ctx, from, &dns.HTTPRequest{
			Method: r.Method, Parameters: r.Query.Parameters, ContentType: r.Head.Get("Content-Type"), Attributed: r.Head.Get(audit.AttributedField),
			Body: r.Query.Body,
		})
		return front.Answer{
			Kind: front.Local, Response: front.Response{Status: a.Status, Fields: a.Fields, Body: a.Body},
			Last: a.Last, Done: a.Done,
			WasAllowed: from.Caller.Reason == allowlist.NoReason, // without an identity, a connection may not stay idle for long
		}
	}
}

// isQueryAuthority reports whether an authority names a listener: by a name or an address
// of the certificate that it presents, or by the trust domain if that is the gateway's
// SVID, and by the port of the listener, if the authority has one. Another authority
// means that the client takes this listener for another server, or for a proxy.
func (d *doors) isQueryAuthority(l door, authority string) bool {
	port := portOf(l.Listener)
	dest, err := allowlist.ParseDestination(authority)
	if err != nil {
		dest, err = allowlist.ParseDestination(authority + ":" + strconv.Itoa(int(port)))
	}
	if err != nil || dest.Port != port {
		return false
	}
	if l.web != nil {
		return l.web.Certificate().Leaf.VerifyHostname(dest.Host.String()) == nil
	}
	own := d.cfg.Identity.Snapshot()
	domain, err := allowlist.ParseHost(own.TrustDomain().Name())
	return err == nil && dest.Host == domain || own.Certificate().Leaf.VerifyHostname(dest.Host.String()) == nil
}

// portOf returns the port of a listener, or 0 if it is no TCP listener.
func portOf(l *listen.Listener) uint16 {
	tcp, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	return tcp.AddrPort().Port()
}
