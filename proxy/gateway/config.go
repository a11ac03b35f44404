// Package gateway puts the parts of a gateway together: listeners, doors, the
// state in force, and what follows its sources. It is the one layer above the
// doors.
//
//	g, err := gateway.New(ctx, gateway.Config{Policy: …, Identity: …, Resolver: …, Recorder: …, Listeners: …})
//	…
//	g.Serve(ctx)
//
// It is given its policy source, its identity source, its resolver and its
// recorder, and opens no file itself: whoever embeds it, the program and the tests
// alike, says where these come from. A part that is missing is an error of New,
// never an open door.
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

// What a zero field of Config means.
const (
	DefaultMaxConnections = 16384
	DefaultDNSConnections = 4096
	DefaultLookups        = dns.DefaultTotal
)

// PolicySource says what the policy is.
type PolicySource interface {
	// Loaded returns what was loaded when the source was opened. Without a policy
	// everything is denied until one comes.
	Loaded() live.Change
	// Follow tells of every later load, one after the other, until ctx is done:
	// what has come anew, or why it is not used; with an error there may still be
	// a part that holds by itself. It loads again at once when it receives from
	// again, and then tells also if nothing has changed.
	Follow(ctx context.Context, again <-chan struct{}, loaded func(context.Context, live.Change, error))
}

// IdentitySource says who the gateway is and whom it trusts.
type IdentitySource interface {
	identity.Source
	// Follow calls changed when there may be another snapshot, until ctx is done.
	// It reads again at once when it receives from again.
	Follow(ctx context.Context, again <-chan struct{}, changed func(context.Context))
}

// Resolver resolves names that are allowed; it is made of the methods of package
// resolve.
type Resolver struct {
	// Resolve returns the addresses of a decision's destination, and the way to
	// each. Required.
	Resolve func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error)
	// Bound returns the names that an identity was told an address for; nil is
	// none.
	Bound func(id spiffeid.ID, addr netip.Addr, now time.Time) []resolve.Binding
	// DNS answers queries; required with a DNS listener.
	DNS dns.Resolver
}

// Config is what a gateway needs. Policy, Resolver, Recorder, Log, Listeners and
// HostAddresses are required, and Identity if a listener asks for certificates or
// has the gateway's own identity. A zero time or number means the default of the
// package that it is for.
type Config struct {
	Policy   PolicySource
	Identity IdentitySource
	Resolver Resolver
	Recorder *audit.Recorder
	Log      *slog.Logger

	Listeners []Listener
	// HostAddresses returns the addresses of this host, which no tunnel may reach
	// unless a rule names them. It is asked every few seconds.
	HostAddresses func() ([]netip.Addr, error)
	// NAT64 are the prefixes of the operator's translators.
	NAT64 []netip.Prefix
	// Admin answers probes; without an address there is none.
	Admin Admin
	// Metrics are told what has no record.
	Metrics Metrics

	// MaxRevoke bounds how many identities may lose something that is open to a new
	// policy; zero is any number. See live.MaxRevoke.
	MaxRevoke live.MaxRevoke
	// CloseAtExpiry ends tunnels when their caller's SVID expires.
	CloseAtExpiry bool
	// Limits bound what each source address and each identity may use.
	Limits limit.Config
	// MaxConnections bounds the connections of all listeners for requests together,
	// and DNSConnections those of all listeners for queries; zero means the
	// defaults. limit.SharesOf divides them among callers.
	MaxConnections, DNSConnections int
	// Descriptors are what everything is taken from that callers can make the
	// gateway open, so that what it opens by itself always finds one.
	Descriptors Descriptors

	HandshakeTimeout, HelloTimeout, DialTimeout time.Duration

	Front   front.Config
	Tunnel  tunnel.Config
	Forward forward.Config

	// DNS bounds what callers may ask at a time, and how many connections for
	// queries one may have.
	DNS dns.Limits
	// Inspect lets a DNS answer lead only to names that are allowed by themselves.
	Inspect bool
	// SpanEvery gives only one in so many allowed queries a span; zero and one give
	// it to each.
	SpanEvery int

	// DrainDelay is how long Serve goes on once it is told to end, and DrainTimeout
	// how long tunnels may go on after that; zero is not at all.
	DrainDelay, DrainTimeout time.Duration
}

// AdminName is the name of the listener for probes in records and metrics.
const AdminName = "admin"

// Admin is the listener for probes.
type Admin struct {
	// Address is an IP address and a port; "" is no listener.
	Address string
	// Connections is how many it keeps open; zero means admin.DefaultConnections.
	Connections int
	// Opened is the listener if it was opened before the gateway, which answers by
	// it from New on and closes it at its end; whoever opened it serves it. nil
	// means that New opens one.
	Opened *admin.Server
	// Notes returns what is wrong and no reason to send connections elsewhere, a
	// line each; nil means nothing.
	Notes func() []string
	// Metrics answers /metrics.
	Metrics http.Handler
}

// Metrics are told of what happens; each may be nil. They are called from any
// goroutine.
type Metrics struct {
	// Handshaken is told of every handshake after which something was asked, and why
	// there is no identity if there is none.
	Handshaken func(allowlist.Reason)
	// Unused is told of every handshake after which nothing was asked, and of those that
	// the client left before it had shown a certificate.
	Unused func()
	// Cut is told how many connections of a listener were closed for want of a slot
	// or a descriptor. When the listener opens it is told of none for each cause, so
	// that whoever counts knows what there is to count.
	Cut func(listener string, why limit.Cause, connections int)
	// Loaded is told what became of each load of the policy.
	Loaded func(Load)
	// Enforced is told of every state that came into force, and of what was ended
	// and held by it.
	Enforced func(live.Enforcement)
}

// Load is what became of a load of the policy.
type Load string

// The loads. What is held is in force for everything new.
const (
	LoadInForce Load = "in-force"
	LoadHeld    Load = "held"
	LoadRefused Load = "refused"
)

// Listener is where callers come in.
type Listener struct {
	Name string
	// Address is HOST:PORT, or unix: and a path.
	Address string
	// SocketMode of a unix socket; zero means listen.DefaultSocketMode.
	SocketMode fs.FileMode
	Protocol   Protocol
	Identity   IdentityKind
	ID         spiffeid.ID                  // for Fixed
	Sources    map[netip.Prefix]spiffeid.ID // for SourceMap
	// AcceptTrace makes its callers' traces the parents of ours.
	AcceptTrace bool
	// Proxies are peers that begin with a PROXY protocol header.
	Proxies []netip.Prefix
	// Web is presented instead of the SVID; nil is not.
	Web *identity.WebCertificate
}

// IdentityKind says where a listener's callers get their identity from.
type IdentityKind uint8

// The kinds: a client certificate; the gateway's own identity; a fixed one; the
// one that the client's address stands for.
const (
	MTLS IdentityKind = iota
	Self
	Fixed
	SourceMap
)

// Protocol is what a listener speaks.
type Protocol uint8

// The protocols: HTTP CONNECT and plain requests; DNS over UDP and TCP, over TLS,
// over HTTPS.
const (
	Connect Protocol = iota
	DNS
	DoT
	DoH
)

// lacks says what a listener has not that its callers need for an identity; "" if
// nothing is missing. A zero ID is nobody's.
func (l *Listener) lacks(source bool) string {
	switch l.Protocol {
	case Connect, DNS:
	case DoT, DoH:
		if l.Identity != MTLS {
			return "speaks TLS, where the client's certificate is the identity"
		}
	default:
		return "has no protocol"
	}
	switch l.Identity {
	case MTLS, Self:
		if !source {
			return "needs an identity source"
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

// check refuses a configuration in which something is missing, and fills in what
// may be.
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
		if why := l.lacks(c.Identity != nil); why != "" {
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
	if c.Metrics.Cut == nil {
		c.Metrics.Cut = func(string, limit.Cause, int) {}
	}
	if c.Metrics.Loaded == nil {
		c.Metrics.Loaded = func(Load) {}
	}
	if c.Metrics.Enforced == nil {
		c.Metrics.Enforced = func(live.Enforcement) {}
	}
	return nil
}
