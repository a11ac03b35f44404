// Package config reads the gateway's configuration file: YAML, version 1, as
// strict as the policy. [Load] returns typed values with every default filled
// in, or all errors of the file, each with its place.
//
// It opens nothing but that file: certificates and policies are read by those
// who use them.
package config

import (
	"fmt"
	"os"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/audit/file"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/resolve"
	"github.com/exeat-dev/exeat/proxy/tunnel"
	"github.com/exeat-dev/exeat/proxy/watch"
)

// The defaults that no other package has.
const (
	defaultDrainDelay   = 5 * time.Second
	defaultDrainTimeout = 15 * time.Second
)

// Config is a whole configuration. Paths are absolute or relative to the
// working directory of the process.
type Config struct {
	// Gateway is what the gateway itself is told, without its parts and listeners.
	Gateway   gateway.Config
	Listeners []Listener

	// Identity and WorkloadAPI, the address of a Workload API socket, are two
	// sources of the gateway's identity; neither is set when no listener needs
	// one.
	Identity    *identity.FileConfig
	WorkloadAPI string

	Policy []string
	// PolicyPoll is the time between looks at the files without any event;
	// negative is never.
	PolicyPoll time.Duration

	// MetricIdentities is how many identities get a series of their own; zero
	// is none.
	MetricIdentities int

	Resolver resolve.Config

	// FitConnections and FitDNSConnections say that the bounds on connections for
	// requests and for queries are not written: they are lowered to what there are
	// file descriptors for.
	FitConnections, FitDNSConnections bool

	// Records are the sinks of records, at least one.
	Records []RecordSink
	// RecordsRequired refuses what cannot be recorded.
	RecordsRequired bool
	// Collapse merges identical denials within this time; zero is never.
	Collapse time.Duration

	// Places says where the paths above stand in the file.
	Places Places
	// Warnings are what is no error, and most likely not what was meant.
	Warnings strictyaml.Errors
}

// Listener is one entry of listeners.
type Listener struct {
	gateway.Listener

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

// Defaults returns a configuration with every default and nothing else.
func Defaults() Config {
	return Config{
		Records:    []RecordSink{{Name: "stdout"}},
		PolicyPoll: watch.DefaultPoll, FitConnections: true, FitDNSConnections: true,
		Resolver: resolve.Config{
			CacheBytes: resolve.DefaultCacheBytes, ServeStale: resolve.DefaultServeStale, Names: resolve.DefaultNames,
		},
		Gateway: gateway.Config{
			HandshakeTimeout: listen.DefaultHandshakeTimeout,
			HelloTimeout:     proxy.DefaultHelloTimeout,
			DialTimeout:      dial.DefaultTimeout,
			Front: front.Config{
				HeadTimeout: front.DefaultHeadTimeout, KeepAlive: front.DefaultKeepAlive, HeadLimit: head.DefaultLimit,
			},
			Forward:        forward.Config{Body: forward.DefaultBody, Response: forward.DefaultResponse},
			Tunnel:         tunnel.Config{Idle: tunnel.DefaultIdle, Max: tunnel.DefaultMax},
			DrainDelay:     defaultDrainDelay,
			DrainTimeout:   defaultDrainTimeout,
			MaxConnections: gateway.DefaultMaxConnections,
			DNSConnections: gateway.DefaultDNSConnections,
			SpanEvery:      1,
			Limits: limit.Config{
				Connections: limit.DefaultConnections, Handshakes: limit.DefaultHandshakes, Requests: limit.DefaultRequests,
				Identity: allowlist.Limits{
					Tunnels: limit.DefaultTunnels, ConnectsPerSecond: limit.DefaultConnectsPerSecond,
					DNSPerSecond: limit.DefaultDNSPerSecond, UploadPerHour: limit.DefaultUploadPerHour,
				},
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
