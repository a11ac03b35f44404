package soak

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/exeat-dev/exeat/e2e/site"
)

const (
	trustDomain = "soak.example"
	goodHost    = "origin.soak.example"
)

// identities returns the names of the callers: well-behaved, hostile, and one that makes
// a request now and then.
func identities() []string { return []string{"good", "hostile", "quiet"} }

// world is what the gateways share.
type world struct {
	*site.Site

	origin  *site.Echo
	configs map[string]*tls.Config // TLS configurations of callers by identity; that of "" has no certificate
}

// newWorld starts the origin. If it returns an error, everything is ended.
func newWorld(ctx context.Context, exeat string) (*world, error) {
	s, err := site.New(trustDomain)
	if err != nil {
		return nil, err
	}
	s.Exeat = exeat
	w := &world{Site: s, configs: map[string]*tls.Config{"": s.Client(nil)}}
	if err := w.build(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *world) build(ctx context.Context) (err error) {
	if err := w.Build(ctx); err != nil {
		return err
	}
	if w.origin, err = w.Echo(ctx); err != nil {
		return err
	}
	for _, name := range identities() {
		svid, err := w.Mint("/" + name)
		if err != nil {
			return err
		}
		w.configs[name] = w.Client(svid)
	}
	return w.Write("policy.yaml", w.policy())
}

// target returns the origin's name and port.
func (w *world) target() string { return w.origin.At(goodHost) }

func (w *world) policy() string {
	var b strings.Builder
	b.WriteString("version: 1\nidentities:\n")
	for _, name := range identities() {
		fmt.Fprintf(&b, "  - id: spiffe://%s/%s\n    allow: [{host: %s, ports: [%d], addresses: 127.0.0.1/32}]\n", trustDomain, name, goodHost, w.origin.Address.Port())
	}
	return b.String()
}

// generous has limits that one source or identity does not reach.
const generous = `limits:
  connections_per_source: 100000
  handshakes_per_source: 100000
  requests_per_identity: 100000
  tunnels: 100000
  connects_per_second: 100000
`

// hasty has short timeouts for hostile callers.
const hasty = "timeouts: {handshake: 2s, head: 2s, client_hello: 2s, drain_delay: 0s, drain_timeout: 0s}\n"

// serve starts a gateway. more is appended to its configuration: limits and timeouts.
func (w *world) serve(ctx context.Context, more string) (*gateway, error) {
	child, err := w.Serve(ctx, "exeat.yaml", fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: soak, address: "127.0.0.1:0", identity: mtls}
admin: {address: "127.0.0.1:0"}
resolver:
  hosts:
    %s: 127.0.0.1
records: {file: records.jsonl}
%s`, goodHost, more), 2, "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
	if err != nil {
		return nil, err
	}
	return &gateway{Process: child, address: child.Addresses[0], metrics: "http://" + child.Addresses[1] + "/metrics"}, nil
}
