// Package config reads the gateway's configuration file: YAML, version 1, as
// strict as the policy. [Load] returns typed values with every default filled
// in, or all errors of the file, each with its place.
//
// It opens nothing but that file: certificates and policies are read by those
// who use them.
package config

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/audit/file"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// The defaults that no other package has.
const (
	DefaultMaxConnections = 16384
	DefaultDrainDelay     = 5 * time.Second
	DefaultDrainTimeout   = 30 * time.Second
	DefaultDNSConnections = 1024
)

// Config is a whole configuration. Paths are absolute or relative to the
// working directory of the process.
type Config struct {
	// Identity and WorkloadAPI, the address of a Workload API socket, are two
	// sources of the gateway's identity; neither is set when no listener needs
	// one.
	Identity    *identity.FileConfig
	WorkloadAPI string
	// CloseAtExpiry ends tunnels when their caller's SVID expires.
	CloseAtExpiry bool

	Policy []string
	// MaxRevoke is the share of the open tunnels that a reload may close; zero
	// is any.
	MaxRevoke float64
	// PolicyPoll is the time between looks at the files without any event;
	// negative is never.
	PolicyPoll time.Duration

	Listeners []Listener
	// AdminAddress is where probes are answered; "" is nowhere.
	AdminAddress string
	// MetricIdentities is how many identities get a series of their own; zero
	// is none.
	MetricIdentities int

	Resolver resolve.Config
	// NAT64 are the prefixes of the operator's translators.
	NAT64 []netip.Prefix

	// DNS bounds the DNS listeners, which have DNSConnections open at a time.
	DNS            dns.Limits
	DNSConnections int
	// SpanEvery gives only one in so many allowed queries a span.
	SpanEvery int

	// Records are the sinks of records, at least one.
	Records []RecordSink
	// RecordsRequired refuses what cannot be recorded.
	RecordsRequired bool
	// Collapse merges identical denials within this time; zero is never.
	Collapse time.Duration

	Disclosure refusal.Disclosure

	HandshakeTimeout, HeadTimeout, HelloTimeout, DialTimeout time.Duration
	KeepAlive, BodyTimeout, ResponseTimeout                  time.Duration
	TunnelIdle, TunnelMax                                    time.Duration
	DrainDelay, DrainTimeout                                 time.Duration
	HeadLimit                                                int
	// NoVia leaves Via out of plain requests and answers, and PassForwarded
	// sends the callers' Forwarded and X-Forwarded fields on.
	NoVia, PassForwarded bool
	MaxConnections       int
	Limits               limit.Config
}

// Listener is one entry of listeners.
type Listener struct {
	Name       string
	Address    string // HOST:PORT, or unix: and a path
	Protocol   Protocol
	Identity   IdentityKind
	ID         spiffeid.ID                  // for Fixed
	Sources    map[netip.Prefix]spiffeid.ID // for SourceMap
	SocketMode fs.FileMode
	// AcceptTrace makes its callers' traces the parents of ours.
	AcceptTrace bool
	// Proxies are peers that begin with a PROXY protocol header.
	Proxies []netip.Prefix
	// WebCertificate and WebKey, if not "", are presented instead of the SVID.
	WebCertificate, WebKey string
}

// RecordSink is one place that records go to.
type RecordSink struct {
	Name string
	// File is a path; "" is standard output. Not with OTLP.
	File string
	// OTLP sends records as OpenTelemetry logs, by the OTEL_* variables.
	OTLP   bool
	Format Format
	Only   Selection
	// Rotate is how the file is rotated; zero is not.
	Rotate file.Rotation
}

// Format is the rendering of records.
type Format uint8

// The formats: exeat's own, OCSF, the Elastic Common Schema.
const (
	Native Format = iota
	OCSF
	ECS
)

// Selection is which records a sink takes.
type Selection uint8

// The selections. Denials are all decisions that are not allowed, and what
// ended tunnels because it was no longer allowed.
const (
	Everything Selection = iota
	Denials
)

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

// The protocols: HTTP CONNECT; DNS over UDP and TCP, over TLS, over HTTPS.
const (
	Connect Protocol = iota
	DNS
	DoT
	DoH
)

// Defaults returns a configuration with every default and nothing else.
func Defaults() Config {
	return Config{
		Records:          []RecordSink{{Name: "stdout"}},
		PolicyPoll:       watch.DefaultPoll,
		HandshakeTimeout: listen.DefaultHandshakeTimeout,
		HeadTimeout:      proxy.DefaultHeadTimeout,
		HelloTimeout:     proxy.DefaultHelloTimeout,
		DialTimeout:      dial.DefaultTimeout,
		KeepAlive:        proxy.DefaultKeepAlive,
		BodyTimeout:      forward.DefaultBody,
		ResponseTimeout:  forward.DefaultResponse,
		TunnelIdle:       tunnel.DefaultIdle,
		TunnelMax:        tunnel.DefaultMax,
		DrainDelay:       DefaultDrainDelay,
		DrainTimeout:     DefaultDrainTimeout,
		HeadLimit:        head.DefaultLimit,
		MaxConnections:   DefaultMaxConnections,
		DNSConnections:   DefaultDNSConnections,
		SpanEvery:        1,
		Resolver: resolve.Config{
			CacheBytes: resolve.DefaultCacheBytes, ServeStale: resolve.DefaultServeStale, Names: resolve.DefaultNames,
		},
		Limits: limit.Config{
			Connections: limit.DefaultConnections, Handshakes: limit.DefaultHandshakes, Requests: limit.DefaultRequests,
			Identity: allowlist.Limits{
				Tunnels: limit.DefaultTunnels, ConnectsPerSecond: limit.DefaultConnectsPerSecond,
				DNSPerSecond: limit.DefaultDNSPerSecond, UploadPerHour: limit.DefaultUploadPerHour,
			},
		},
	}
}

// Load reads a configuration file. Relative paths in it are relative to its
// directory. The error is that of reading it, or a strictyaml.Errors with
// every error of the file.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path) //nolint:gosec // G304: the file that the operator named
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w (--config names the file)", err)
	}
	return Parse(path, data)
}
