// Package config reads the gateway's configuration file: YAML, version 1, as strict as
// the policy. [Load] returns typed values with every default set, or all errors of the
// file, each with its place.
//
// It opens no other file: certificates and policies are read by the packages that use
// them.
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

// The defaults that are not constants of another package.
const (
	defaultDrainDelay   = 5 * time.Second
	defaultDrainTimeout = 15 * time.Second
)

// Config is a whole configuration. Paths are absolute or relative to the working
// directory of the process.
type Config struct {
	// Gateway is the configuration of the gateway, without its parts and listeners.
	Gateway   gateway.Config
	Listeners []Listener

	// Identity and WorkloadAPI, the address of a Workload API socket, are the two
	// possible providers of the gateway's identity; neither is set if no listener needs
	// one.
	Identity    *identity.FileConfig
	WorkloadAPI string

	Policy []string
	// PolicyPoll is the time after which the policy files are read without an event;
	// negative means never.
	PolicyPoll time.Duration

	// MetricIdentities bounds the identities that have a series of their own; zero
	// means none.
	MetricIdentities int

	Resolver resolve.Config

	// FitConnections and FitDNSConnections say that the file does not set the bounds on
	// connections for requests and for queries, so that they are lowered to the number
	// that the file descriptors allow.
	FitConnections, FitDNSConnections bool

	// Records are the sinks of records. There is at least one.
	Records []RecordSink
	// RecordsRequired makes the gateway refuse requests that it cannot record.
	RecordsRequired bool
	// Collapse merges identical denials within this time; zero means never.
	Collapse time.Duration

	// Places says where the file has the paths above.
	Places Places
	// Warnings are about settings that are valid, but most likely not what was meant.
	Warnings strictyaml.Errors
}

// Listener is one entry of listeners.
type Listener struct {
	gateway.Listener

	// WebCertificate and WebKey are paths of a certificate that is presented instead of
	// the SVID; "" means the SVID.
	WebCertificate, WebKey string
}

// RecordSink configures a place that records go to.
type RecordSink struct {
	Name string
	// File is a path; "" means standard output. It is not set with OTLP.
	File string
	// OTLP sends records as OpenTelemetry logs, as the OTEL_* variables say.
	OTLP   bool
	Format Format
	Only   Selection
	// Rotate says when the file is rotated; zero means never.
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

// Selection says which records a sink keeps.
type Selection uint8

// The selections. Denials are all decisions other than allow, and the records of
// tunnels that ended because they were no longer allowed.
const (
	Everything Selection = iota
	Denials
)

// Defaults returns a configuration that has only defaults.
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
				Streams: front.DefaultStreams,
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

// Load reads a configuration file. Relative paths in it are relative to its directory.
// The error is an error of reading, or a strictyaml.Errors with every error of the
// file.
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path) //nolint:gosec // G304: the operator chose the path
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w (--config names the file)", err)
	}
	return Parse(path, data)
}
