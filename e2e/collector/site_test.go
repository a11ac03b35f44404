package collector

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/e2e/bench/process"
	"github.com/exeat-dev/exeat/identity/authority"
)

// callers is how many identities there are on the TLS listener.
const callers = 20

// site is a directory with everything that a test needs, and an origin.
type site struct {
	dir     string
	roots   *x509.CertPool
	callers []*tls.Certificate
	origin  net.Listener
	otlp    string // where the collector listens, whenever it runs
}

func newSite(t *testing.T) *site {
	t.Helper()
	if *otelcol == "" {
		t.Skip("no collector: run make collector")
	}
	dir, err := os.MkdirTemp("", "col-") //nolint:usetesting // t.TempDir is too long for a unix socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{dir: dir, roots: x509.NewCertPool(), otlp: freeAddress(t)}
	s.mint(t)
	s.serveOrigin(t)
	s.write(t, "policy.yaml", s.policy())
	s.write(t, "exeat.yaml", siteConfig)
	s.write(t, "collector.yaml", fmt.Sprintf(collectorConfig, s.otlp, dir))
	return s
}

const siteConfig = `version: 1
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

func (s *site) policy() string {
	rule := fmt.Sprintf("allow: [{host: allowed.example, ports: %s, addresses: 127.0.0.1/32}]", portOf(s.origin))
	text := "version: 1\nidentities:\n  - {id: spiffe://prod.example/sidecar, " + rule + "}\n"
	for i := range callers {
		text += fmt.Sprintf("  - {id: spiffe://prod.example/caller-%d, %s}\n", i, rule)
	}
	return text
}

// allowed is the destination that the policy allows, as callers ask for it.
func (s *site) allowed() string { return "allowed.example:" + portOf(s.origin) }

func portOf(l net.Listener) string {
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	return port
}

func (s *site) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// mint makes the certificates of the gateway and of the callers.
func (s *site) mint(t *testing.T) {
	t.Helper()
	ca, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("prod.example")})
	if err != nil {
		t.Fatal(err)
	}
	s.roots.AppendCertsFromPEM(ca.Bundle())
	mint := func(path string, names ...string) *authority.SVID {
		svid, err := ca.Mint(authority.Options{
			ID: spiffeid.RequireFromPath(ca.TrustDomain(), path), DNS: names, Lifetime: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		return svid
	}
	if err := mint("/gateway", "localhost").WriteDir(filepath.Join(s.dir, "gateway"), ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	for i := range callers {
		pair := mint(fmt.Sprintf("/caller-%d", i)).TLS()
		s.callers = append(s.callers, &pair)
	}
}

// serveOrigin sends back what it gets.
func (s *site) serveOrigin(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.origin = l
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer func() { _ = conn.Close() }()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// gateway is exeat, running.
type gateway struct {
	*process.Process

	mtlsAddress, socketPath, admin string
	tls                            *tls.Config
}

// startExeat starts the gateway with everything going to the collector.
func (s *site) startExeat(t *testing.T, env ...string) *gateway {
	t.Helper()
	p, err := process.Start(t.Context(), process.Command{
		Path: *exeat, Args: []string{"serve", "--config", filepath.Join(s.dir, "exeat.yaml")}, Addresses: 3,
		Env: append([]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + s.otlp,
			"OTEL_EXPORTER_OTLP_COMPRESSION=gzip",
			"OTEL_BSP_SCHEDULE_DELAY=500",
		}, env...),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return &gateway{
		Process:     p,
		mtlsAddress: p.Addresses[0], socketPath: strings.TrimPrefix(p.Addresses[1], "unix:"), admin: p.Addresses[2],
		tls: &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "localhost", RootCAs: s.roots},
	}
}

// otelcolProcess is the collector, running.
type otelcolProcess struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// startCollector starts the collector and returns when it listens.
func (s *site) startCollector(t *testing.T) *otelcolProcess {
	t.Helper()
	cmd := exec.Command(*otelcol, "--config", filepath.Join(s.dir, "collector.yaml"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // warnings only
	if err := cmd.Start(); err != nil {
		t.Errorf("starting the collector: %v", err)
		return nil
	}
	c := &otelcolProcess{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(c.kill)
	late := time.After(patience)
	for {
		conn, err := net.Dial("tcp", s.otlp)
		if err == nil {
			_ = conn.Close()
			return c
		}
		select {
		case <-c.ended:
			t.Error("the collector ended")
			return c
		case <-late:
			t.Error("the collector does not listen")
			return c
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// kill ends the collector as a crash would, and waits for its end.
func (c *otelcolProcess) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}
