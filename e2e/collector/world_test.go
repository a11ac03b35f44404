package collector

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/e2e/site"
)

// callers is the number of identities that connect to the TLS listener.
const callers = 20

// world is a site with an origin and a collector's address.
type world struct {
	*site.Site

	callers []*tls.Config
	origin  *site.Echo
	otlp    string // address of the collector, whether it runs or not
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if *otelcol == "" {
		t.Skip("no collector: run make collector")
	}
	s, err := site.New("prod.example")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Exeat = *exeat
	w := &world{Site: s}
	free, err := site.FreeAddresses(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	w.otlp = free[0].String()
	if w.origin, err = s.Echo(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range callers {
		svid, err := s.Mint(fmt.Sprintf("/caller-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		w.callers = append(w.callers, s.Client(svid))
	}
	for name, text := range map[string]string{
		"policy.yaml": w.policy(), "collector.yaml": fmt.Sprintf(collectorConfig, w.otlp, s.Path("")),
	} {
		if err := s.Write(name, text); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

const gatewayConfig = `version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: mtls, address: "127.0.0.1:0", identity: mtls}
  - {name: socket, address: "unix:exeat.sock", identity: fixed, id: spiffe://prod.example/sidecar}
admin: {address: "127.0.0.1:0"}
resolver:
  hosts: {allowed.example: 127.0.0.1}
records:
  sinks:
    - {name: all, file: records.jsonl, format: native, only: all}
    - {name: siem, file: denials.json, format: ocsf, only: denials}
    - {name: collector, otlp: true}
timeouts: {drain_delay: 0s}
limits: {connections_per_source: 100000, handshakes_per_source: 100000, requests_per_identity: 100000, tunnels: 100000, connects_per_second: 100000}
`

const collectorConfig = `receivers:
  otlp: {protocols: {http: {endpoint: "%s"}}}
exporters:
  lines: {directory: "%s"}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines:
    traces: {receivers: [otlp], exporters: [lines]}
    logs: {receivers: [otlp], exporters: [lines]}
    metrics: {receivers: [otlp], exporters: [lines]}
`

func (w *world) policy() string {
	rule := fmt.Sprintf("allow: [{host: allowed.example, ports: %d, addresses: 127.0.0.1/32}]", w.origin.Address.Port())
	text := "version: 1\nidentities:\n  - {id: spiffe://prod.example/sidecar, " + rule + "}\n"
	for i := range callers {
		text += fmt.Sprintf("  - {id: spiffe://prod.example/caller-%d, %s}\n", i, rule)
	}
	return text
}

// allowed returns the destination that the policy allows, as callers name it.
func (w *world) allowed() string { return w.origin.At("allowed.example") }

// gateway is a running exeat.
type gateway struct {
	*site.Process

	mtlsAddress, socketPath, admin string
}

// startExeat starts the gateway, which exports spans and records to the collector.
func (w *world) startExeat(t *testing.T, env ...string) *gateway {
	t.Helper()
	p, err := w.Serve(t.Context(), "exeat.yaml", gatewayConfig, 3, append([]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + w.otlp,
		"OTEL_EXPORTER_OTLP_COMPRESSION=gzip",
		"OTEL_BSP_SCHEDULE_DELAY=500",
	}, env...)...)
	if err != nil {
		t.Fatal(err)
	}
	return &gateway{
		Process:     p,
		mtlsAddress: p.Addresses[0], socketPath: strings.TrimPrefix(p.Addresses[1], "unix:"), admin: p.Addresses[2],
	}
}

// startCollector starts the collector, and returns when it listens.
func (w *world) startCollector(t *testing.T) *site.Process {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), *otelcol, "--config", w.Path("collector.yaml"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // the collector logs warnings only
	p, err := w.Start(cmd, site.Ready{Accepts: []string{w.otlp}})
	if err != nil {
		t.Error(err)
	}
	return p
}
