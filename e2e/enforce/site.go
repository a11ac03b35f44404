package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
)

// The names and sizes of the site. Every identity may reach every destination,
// which makes a policy of 1,000 rules.
const (
	trustDomain  = "enforce.example"
	serverName   = "localhost"
	identities   = 100
	destinations = 10
	// Of the identities, the last few are issued by the authority that goes.
	leaving = 10
	// The destinations that end, one by leaving the policy, one by a date.
	removed = 9
	expired = 8
	// Probes go through what survives every scenario.
	probes = 10
)

// site is the directory of the gateway and everything that runs.
type site struct {
	dir           string
	staying, gone *authority.Authority
	port          string // of the origin
	callers       []pair
	records       *recordFile

	children       []*child
	holder, prober *role
}

// newSite starts everything. After an error nothing of it is left.
func newSite(ctx context.Context, exeat string) (*site, error) {
	dir, err := os.MkdirTemp("", "exeat-enforce-")
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, records: &recordFile{path: filepath.Join(dir, "records.jsonl")}}
	if err := s.build(ctx, exeat); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

func (s *site) build(ctx context.Context, exeat string) error {
	if exeat == "" {
		exeat = s.path("exeat")
		out, err := exec.CommandContext(ctx, "go", "build", "-o", exeat, "github.com/exeat-dev/exeat/cmd/exeat").CombinedOutput()
		if err != nil {
			return fmt.Errorf("building: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	if err := s.mint(); err != nil {
		return err
	}
	origin, err := s.start(ctx, originRole)
	if err != nil {
		return err
	}
	first, err := origin.hear()
	if err != nil {
		return err
	}
	s.port = first.Address[strings.LastIndexByte(first.Address, ':')+1:]
	if err := s.configure(); err != nil {
		return err
	}
	gateway, address, err := startExeat(ctx, exeat, s.path("exeat.yaml"))
	if err != nil {
		return err
	}
	s.children = append(s.children, gateway)
	return s.startCallers(ctx, address)
}

func (s *site) startCallers(ctx context.Context, gateway string) error {
	for _, r := range []**role{&s.holder, &s.prober} {
		started, err := s.start(ctx, holderRole)
		if err != nil {
			return err
		}
		*r = started
		if _, err := started.do(command{Setup: &setup{Gateway: gateway, Roots: s.staying.Bundle(), Callers: s.callers}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) start(ctx context.Context, name string) (*role, error) {
	r, err := startRole(ctx, name)
	if err != nil {
		return nil, err
	}
	s.children = append(s.children, r.child)
	return r, nil
}

// end ends every child, the last one first, and removes the directory.
func (s *site) end() {
	for len(s.children) > 0 {
		last := len(s.children) - 1
		s.children[last].stop()
		s.children = s.children[:last]
	}
	_ = os.RemoveAll(s.dir)
}

// mint makes two authorities of one trust domain, the gateway's SVID and those
// of all callers.
func (s *site) mint() error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return err
	}
	for _, a := range []**authority.Authority{&s.staying, &s.gone} {
		if *a, err = authority.New(authority.Config{TrustDomain: td}); err != nil {
			return err
		}
	}
	const lifetime = authority.DefaultCALifetime / 2
	own, err := s.staying.Mint(authority.Options{ID: spiffeid.RequireFromPath(td, "/gateway"), DNS: []string{serverName}, Lifetime: lifetime})
	if err != nil {
		return err
	}
	for i := range identities {
		issuer := s.staying
		if i >= identities-leaving {
			issuer = s.gone
		}
		svid, err := issuer.Mint(authority.Options{ID: spiffeid.RequireFromString(callerID(i)), Lifetime: lifetime})
		if err != nil {
			return err
		}
		s.callers = append(s.callers, pair{svid.Certificate, svid.Key})
	}
	return own.WriteDir(s.path("gateway"), s.bundle(true))
}

func (s *site) bundle(both bool) []byte {
	all := s.staying.Bundle()
	if both {
		all = append(all, s.gone.Bundle()...)
	}
	return all
}

func callerID(i int) string { return fmt.Sprintf("spiffe://%s/ns/load/sa/worker-%02d", trustDomain, i) }

func host(destination int) string { return fmt.Sprintf("dest-%d.%s", destination, trustDomain) }

func (s *site) configure() error {
	var hosts strings.Builder
	for d := range destinations {
		fmt.Fprintf(&hosts, "    %s: 127.0.0.1\n", host(d))
	}
	config := fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: {files: policy.yaml}
listeners:
  - {name: enforce, address: "127.0.0.1:0", identity: mtls}
resolver:
  hosts:
%srecords: {file: %s}
timeouts: {drain_delay: 0s, drain_timeout: 0s}
limits: {connections_per_source: 100000, handshakes_per_source: 100000, requests_per_identity: 100000, tunnels: 100000, connects_per_second: 100000}
`, hosts.String(), filepath.Base(s.records.path))
	_, err := s.replace("policy.yaml", []byte(s.policy(everything)))
	return errors.Join(err, os.WriteFile(s.path("exeat.yaml"), []byte(config), 0o600))
}

// everything is a rule that changes no rule.
func everything(_ int, rule string) string { return rule }

// policy writes a rule for every identity and destination; change returns what
// to write for a destination, "" for nothing.
func (s *site) policy(change func(destination int, rule string) string) string {
	var b strings.Builder
	b.WriteString("version: 1\nidentities:\n")
	for i := range identities {
		fmt.Fprintf(&b, "  - id: %s\n    allow:\n", callerID(i))
		for d := range destinations {
			rule := fmt.Sprintf("host: %s, ports: [%s], addresses: 127.0.0.1/32", host(d), s.port)
			if rule = change(d, rule); rule != "" {
				fmt.Fprintf(&b, "      - {%s}\n", rule)
			}
		}
	}
	return b.String()
}

// replace puts a file in place by a rename, and returns when that was.
func (s *site) replace(name string, data []byte) (time.Time, error) {
	path := s.path(name)
	next := filepath.Join(filepath.Dir(path), ".next-"+filepath.Base(path))
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	return now, os.Rename(next, path)
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }
