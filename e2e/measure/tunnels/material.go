package tunnels

import (
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Names of the site.
const (
	trustDomain = "bench.example"
	originName  = "origin.bench.example"
	deniedName  = "elsewhere.bench.example:443" // allowed for no identity
	recordFile  = "records.jsonl"
)

// Names of exeat's configurations, which differ in where the records go.
const (
	exeatConfig = "exeat.yaml"
	quietConfig = "quiet.yaml" // writes them to /dev/null
)

// Sizes of the policy: each of 1,000 identities has ten rules, one of which allows the
// origin.
const (
	identities = 1000
	rulesEach  = 10
)

// caller is the TLS configuration of a client with a certificate.
type caller struct{ config *tls.Config }

// mint returns n callers with new certificates, for the identities in turn. They offer
// group as their only key exchange.
func (w *world) mint(n int, group tls.CurveID) ([]*caller, error) {
	callers := make([]*caller, n)
	for i := range callers {
		svid, err := w.Mint(callerID(w.Authority.TrustDomain(), i%identities).Path())
		if err != nil {
			return nil, err
		}
		config := w.Client(svid)
		config.CurvePreferences = []tls.CurveID{group}
		callers[i] = &caller{config}
	}
	return callers, nil
}

func callerID(td spiffeid.TrustDomain, i int) spiffeid.ID {
	return spiffeid.RequireFromPathf(td, "/ns/load/sa/worker-%04d", i)
}

func config(caller spiffeid.ID, records string) string {
	return fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: bench, address: "127.0.0.1:0", identity: mtls}
  - {name: clear, address: "127.0.0.1:0", identity: fixed, id: "%s"}
resolver:
  hosts:
    %s: 127.0.0.1
records: {file: %s}
timeouts: {drain_delay: 0s, drain_timeout: 0s}
limits: {streams_per_connection: %d, connections_per_source: 100000, handshakes_per_source: 100000, requests_per_identity: 100000, tunnels: 100000, connects_per_second: 100000}
`, caller, originName, records, maxStreams)
}

func policy(td spiffeid.TrustDomain, targets []string) string {
	ports := make([]string, len(targets))
	for i, target := range targets {
		ports[i] = target[strings.LastIndexByte(target, ':')+1:]
	}
	var b strings.Builder
	b.WriteString("version: 1\nidentities:\n")
	for i := range identities {
		fmt.Fprintf(&b, "  - id: %s\n    allow:\n", callerID(td, i))
		for rule := range rulesEach - 1 {
			fmt.Fprintf(&b, "      - host: service-%d.team-%d.example\n", rule, i)
		}
		fmt.Fprintf(&b, "      - {host: %s, ports: [%s], addresses: 127.0.0.1/32}\n", originName, strings.Join(ports, ", "))
	}
	return b.String()
}
