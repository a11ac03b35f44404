package main

import (
	"context"
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

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/e2e/bench/process"
	"github.com/exeat-dev/exeat/identity/authority"
)

const (
	trustDomain = "soak.example"
	serverName  = "localhost"
	goodHost    = "origin.soak.example"
)

// The identities: who behaves, who does not, and who asks now and then.
func identities() []string { return []string{"good", "hostile", "quiet"} }

// site is the directory of the gateways and what runs beside them.
type site struct {
	dir, exeat string
	origin     net.Listener
	echoing    sync.WaitGroup
	configs    map[string]*tls.Config // of the callers, by identity; "" has none
}

// newSite starts the origin. After an error nothing is left.
func newSite(ctx context.Context, exeat string) (*site, error) {
	dir, err := os.MkdirTemp("", "exeat-soak-")
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, exeat: exeat, configs: map[string]*tls.Config{}}
	if err := s.build(ctx); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

func (s *site) build(ctx context.Context) error {
	if s.exeat == "" {
		s.exeat = filepath.Join(s.dir, "exeat")
		out, err := exec.CommandContext(ctx, "go", "build", "-o", s.exeat, "github.com/exeat-dev/exeat/cmd/exeat").CombinedOutput()
		if err != nil {
			return fmt.Errorf("building: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	var err error
	var listening net.ListenConfig
	if s.origin, err = listening.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	s.echoing.Go(s.echo)
	if err := s.mint(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "policy.yaml"), []byte(s.policy()), 0o600)
}

// echo sends back what comes.
func (s *site) echo() {
	for {
		conn, err := s.origin.Accept()
		if err != nil {
			return
		}
		s.echoing.Go(func() {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		})
	}
}

func (s *site) mint() error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return err
	}
	ca, err := authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		return err
	}
	const lifetime = authority.DefaultCALifetime / 2
	own, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromPath(td, "/gateway"), DNS: []string{serverName}, Lifetime: lifetime})
	if err != nil {
		return err
	}
	if err := own.WriteDir(filepath.Join(s.dir, "gateway"), ca.Bundle()); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Bundle())
	s.configs[""] = &tls.Config{MinVersion: tls.VersionTLS13, ServerName: serverName, RootCAs: roots}
	for _, name := range identities() {
		svid, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromPath(td, "/"+name), Lifetime: lifetime})
		if err != nil {
			return err
		}
		config := s.configs[""].Clone()
		config.Certificates = []tls.Certificate{svid.TLS()}
		s.configs[name] = config
	}
	return nil
}

// target is the origin as callers ask for it.
func (s *site) target() string {
	return goodHost + s.origin.Addr().String()[strings.LastIndexByte(s.origin.Addr().String(), ':'):]
}

func (s *site) policy() string {
	_, port, _ := strings.Cut(s.target(), ":")
	var b strings.Builder
	b.WriteString("version: 1\nidentities:\n")
	for _, name := range identities() {
		fmt.Fprintf(&b, "  - id: spiffe://%s/%s\n    allow: [{host: %s, ports: [%s], addresses: 127.0.0.1/32}]\n", trustDomain, name, goodHost, port)
	}
	return b.String()
}

// generous lets one source and one identity have what the machine can give.
const generous = `limits:
  connections_per_source: 100000
  handshakes_per_source: 100000
  requests_per_identity: 100000
  tunnels: 100000
  connects_per_second: 100000
`

// hasty does not wait long for hostile callers.
const hasty = "timeouts: {handshake: 2s, head: 2s, client_hello: 2s, drain_delay: 0s, drain_timeout: 0s}\n"

// serve starts a gateway with more keys of the configuration, which are its
// limits and timeouts.
func (s *site) serve(ctx context.Context, more string) (*gateway, error) {
	config := fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: soak, address: "127.0.0.1:0", identity: mtls}
admin: {address: "127.0.0.1:0"}
resolver:
  hosts:
    %s: 127.0.0.1
records: {file: records.jsonl}
%s`, goodHost, more)
	path := filepath.Join(s.dir, "exeat.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	child, err := process.Start(ctx, process.Command{
		Path: s.exeat, Args: []string{"serve", "--config", path}, Addresses: 2, Env: []string{"OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none"},
	})
	if err != nil {
		return nil, err
	}
	return &gateway{Process: child, address: child.Addresses[0], metrics: "http://" + child.Addresses[1] + "/metrics"}, nil
}

// end stops the origin and removes the directory.
func (s *site) end() {
	if s.origin != nil {
		_ = s.origin.Close()
		s.echoing.Wait()
	}
	_ = os.RemoveAll(s.dir)
}
