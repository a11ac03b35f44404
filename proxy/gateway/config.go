// Package gateway combines the parts of a gateway: the doors, the state in force, and the
// goroutines that follow the providers of identity and policy. It is the only package
// above proxy and proxy/dns, which serve the doors.
//
//	g, err := gateway.New(ctx, gateway.Config{Policy: …, Identity: …, Resolver: …, Recorder: …, Listeners: …})
//	…
//	g.Serve(ctx)
//
// Its configuration has the policy provider, the identity provider, the resolver and the
// recorder, and the package opens no file itself: the code that embeds it, the program
// as well as the tests, decides where these come from. A missing part is an error of
// New; it never means that everything is allowed.
package gateway

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/admin"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// The defaults of Config.
const (
	DefaultMaxConnections = 16384
	DefaultDNSConnections = 4096
	DefaultLookups        = dns.DefaultTotal
)

// PolicyProvider provides the policy and the quarantine list.
type PolicyProvider interface {
	// Loaded returns what the provider has loaded when it was opened. Without a policy
	// everything is denied until one is loaded.
	Loaded() live.Change
	// Follow calls loaded for every later load, one after the other, until ctx is done:
	// with the parts that are new, and an error if a part is not used. With an error
	// there may still be another part that is valid by itself. When Follow receives
	// from reread it loads at once, and calls loaded even if nothing has changed.
	Follow(ctx context.Context, reread <-chan struct{}, loaded func(context.Context, live.Change, error))
}

// IdentityProvider provides the gateway's own identity and the trusted authorities.
type IdentityProvider interface {
	identity.Provider
	// Follow calls changed when there may be a new snapshot, until ctx is done. It
	// reads at once when it receives from reread.
	Follow(ctx context.Context, reread <-chan struct{}, changed func(context.Context))
}

// Resolver resolves allowed names. Its fields are methods of package resolve.
type Resolver struct {
	// Resolve returns the addresses of a decision's destination, and for each the way
	// that led to it. It is required.
	Resolve func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error)
	// Bound returns the names for which an identity was given an address; nil means
	// none.
	Bound func(id spiffeid.ID, addr netip.Addr, now time.Time) []resolve.Binding
	// DNS answers queries; it is required with a DNS listener.
	DNS dns.Resolver
}

// Config configures a [Gateway]. Policy, Resolver, Recorder, Log, Listeners and
// HostAddresses are required, and Identity if a listener requires certificates or gives
// its callers the gateway's own identity. A zero time or number means the default of
// the package that uses it.
type Config struct {
	Policy   PolicyProvider
	Identity IdentityProvider
	Resolver Resolver
	Recorder *audit.Recorder
	Log      *slog.Logger

	Listeners []Listener
	// HostAddresses returns the addresses of this host, which no tunnel may reach
	// unless a rule names them. It is called every few seconds.
	HostAddresses func() ([]netip.Addr, error)
	// NAT64 holds the prefixes of the operator's translators.
	NAT64 []netip.Prefix
	// Admin configures the listener for probes; without an address there is none.
	Admin Admin
	// Metrics are called for events that have no record.
	Metrics Metrics

	// MaxRevoke bounds how many identities may lose open tunnels or connections to a
	// new policy; zero means any number. See live.MaxRevoke.
	MaxRevoke live.MaxRevoke
	// CloseAtExpiry ends tunnels when their caller's SVID expires.
	CloseAtExpiry bool
	// Limits bound what each source address and each identity may use.
	Limits limit.Config
	// MaxConnections bounds the connections of all listeners for requests together,
	// and DNSConnections those of all listeners for queries; zero means the
	// defaults. limit.SharesOf divides them among callers.
	MaxConnections, DNSConnections int
	// Descriptors bound the files that callers can make the gateway open, so that there
	// is always a descriptor for those that it opens for itself.
	Descriptors Descriptors

	HandshakeTimeout, HelloTimeout, DialTimeout time.Duration

	Front   front.Config
	Tunnel  tunnel.Config
	Forward forward.Config

	// DNS bounds the number of concurrent queries of a caller, and of its connections
	// for queries.
	DNS dns.Limits
	// Inspect lets a DNS answer lead only to names that are allowed by themselves.
	Inspect bool
	// SpanEvery is n if one in n allowed queries has a span; zero and one mean that all
	// have one.
	SpanEvery int

	// DrainDelay is how long Serve continues after its context is done, and
	// DrainTimeout how long tunnels may continue after that; zero means not at all.
	DrainDelay, DrainTimeout time.Duration
}

// AdminName is the name of the listener for probes in records and metrics.
const AdminName = "admin"

// Admin configures the listener for probes.
type Admin struct {
	// Address is an IP address and a port; "" means no listener.
	Address string
	// Connections bounds its open connections; zero means admin.DefaultConnections.
	Connections int
	// Opened is the listener if it was opened before the gateway. From New on the
	// gateway answers its requests, and it closes it at its end; the code that opened
	// it serves it. nil means that New opens one.
	Opened *admin.Server
	// Notes returns problems, a line each, that are no reason to send connections
	// elsewhere. It may be nil.
	Notes func() []string
	// Metrics answers /metrics.
	Metrics http.Handler
}

// Metrics has functions that are called when something happens; each may be nil. They
// are called from any goroutine.
type Metrics struct {
	// Handshaken is called for every handshake that was followed by a request, with the
	// reason why there is no identity, or NoReason.
	Handshaken func(allowlist.Reason)
	// Unused is called for every handshake that was not followed by a request, also if
	// the client left before it had presented a certificate.
	Unused func()
	// Shed is called with the number of connections of a listener that were closed for
	// want of a slot or a descriptor. When the listener is opened it is called with
	// zero for each cause, so that every count exists from the start.
	Shed func(listener string, why limit.Cause, connections int)
	// Loaded is called with the result of each load of the policy.
	Loaded func(Load)
	// Enforced is called for every state that came into force, with what it ended and
	// what was held.
	Enforced func(live.Enforcement)
}

// Load is the result of a load of the policy.
type Load string

// The results. A policy that is held is in force for everything new.
const (
	LoadInForce Load = "in-force"
	LoadHeld    Load = "held"
	LoadRefused Load = "refused"
)

// Listener configures a listener for callers.
type Listener struct {
	Name string
	// Address is HOST:PORT, or unix: followed by a path.
	Address string
	// SocketMode is the mode of a unix socket; zero means listen.DefaultSocketMode.
	SocketMode fs.FileMode
	Protocol   Protocol
	Identity   IdentityKind
	ID         spiffeid.ID                  // identity of the callers, for Fixed
	Sources    map[netip.Prefix]spiffeid.ID // for SourceMap
	// AcceptTrace makes the callers' traces the parents of ours.
	AcceptTrace bool
	// Proxies are the peers that send a PROXY protocol header first.
	Proxies []netip.Prefix
	// Web is presented instead of the SVID; nil means the SVID.
	Web *identity.WebCertificate
}

// IdentityKind says where the identity of a listener's callers comes from.
type IdentityKind uint8

// The kinds: a client certificate; the gateway's own identity; a fixed identity; an
// identity for the client's address.
const (
	MTLS IdentityKind = iota
	Self
	Fixed
	SourceMap
)

// Protocol says what a listener takes.
type Protocol uint8

// The protocols: HTTP CONNECT and plain requests; these together with DNS over HTTPS; SOCKS5,
// without TLS; DNS over UDP and TCP, over TLS, over HTTPS.
const (
	Connect Protocol = iota
	ConnectAndDoH
	SOCKS5
	DNS
	DoT
	DoH
)

// TakesRequests reports whether the listener takes requests, which are those of HTTP or
// SOCKS5. Its connections then count among those for requests, whatever else it takes.
func (p Protocol) TakesRequests() bool { return p == Connect || p == ConnectAndDoH || p == SOCKS5 }

// TakesQueries reports whether the listener takes DNS queries.
func (p Protocol) TakesQueries() bool { return p != Connect && p != SOCKS5 }

// missing returns what the listener is missing to identify its callers, or "" if nothing
// is missing. A zero ID is not an identity.
func (l *Listener) missing(provider bool) string {
	switch l.Protocol {
	case Connect, DNS:
	case ConnectAndDoH, DoT, DoH:
		if l.Identity != MTLS {
			return "speaks TLS, where the client's certificate is the identity"
		}
	case SOCKS5:
		if l.Identity != Self && l.Identity != Fixed {
			return "speaks SOCKS5, whose callers have the gateway's own identity or a fixed one"
		}
		if l.AcceptTrace {
			return "speaks SOCKS5, which carries no trace context"
		}
	default:
		return "has no protocol"
	}
	switch l.Identity {
	case MTLS, Self:
		if !provider {
			return "needs an identity provider"
		}
	case Fixed:
		if l.ID.IsZero() {
			return "needs the identity of its callers"
		}
	case SourceMap:
		if len(l.Sources) == 0 {
			return "needs a map of addresses"
		}
		for prefix, id := range l.Sources {
			if id.IsZero() {
				return "has no identity for " + prefix.String()
			}
		}
	default:
		return "has no kind of identity"
	}
	return ""
}

// check refuses a configuration with missing parts, and sets defaults.
func (c *Config) check() error {
	switch {
	case c.Policy == nil || c.Log == nil || c.HostAddresses == nil:
		return errors.New("gateway: policy, log and host addresses are required")
	case len(c.Listeners) == 0:
		return errors.New("gateway: at least one listener is required")
	}
	for _, l := range c.Listeners {
		if l.Name == AdminName {
			return errors.New("gateway: a listener has the name of the admin listener")
		}
		if why := l.missing(c.Identity != nil); why != "" {
			return errors.New("gateway: listener " + l.Name + " " + why)
		}
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.DNSConnections == 0 {
		c.DNSConnections = DefaultDNSConnections
	}
	if c.Metrics.Handshaken == nil {
		c.Metrics.Handshaken = func(allowlist.Reason) {}
	}
	if c.Metrics.Unused == nil {
		c.Metrics.Unused = func() {}
	}
	if c.Metrics.Shed == nil {
		c.Metrics.Shed = func(string, limit.Cause, int) {}
	}
	if c.Metrics.Loaded == nil {
		c.Metrics.Loaded = func(Load) {}
	}
	if c.Metrics.Enforced == nil {
		c.Metrics.Enforced = func(live.Enforcement) {}
	}
	return nil
}
