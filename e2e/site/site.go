// Package site makes what stands around the exeat program in a test or a
// measurement: a directory with a throw-away authority, the programs that run
// in it, and an origin that callers reach through the gateway.
//
//	s, err := site.New("prod.example")
//	defer s.Close()
//	err = s.Build(ctx)
//	gateway, err := s.Serve(ctx, "exeat.yaml", config, 1)
//	before, err := gateway.CPU()
//
// Package load beside it makes the clients. It ends only the processes that it
// started, by their id. No part of the product imports it.
package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
)

const module = "github.com/exeat-dev/exeat/"

// Program is the package of exeat, as Build takes it.
const Program = "cmd/exeat"

// ServerName is the DNS name in the gateway's certificate.
const ServerName = "localhost"

// lifetime is that of every certificate: longer than anything runs.
const lifetime = authority.DefaultCALifetime / 2

// A Site is a directory and everything that was started for it. Its methods may
// be called from one goroutine at a time.
type Site struct {
	// Authority issues the certificates.
	Authority *authority.Authority
	// Exeat is the path of the program; Build sets it if it is "".
	Exeat string

	dir   string
	roots *x509.CertPool
	ends  []func() // what Close calls, the last one first
}

// New makes a directory, an authority of the trust domain, and the certificate
// of its workload /gateway in the subdirectory gateway, with the files that
// "identity: {dir: gateway}" reads. The path of the directory is short enough
// for a unix socket in it.
func New(trustDomain string) (*Site, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	ca, err := authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "exeat-")
	if err != nil {
		return nil, err
	}
	s := &Site{Authority: ca, dir: dir, roots: x509.NewCertPool(), ends: []func(){func() { _ = os.RemoveAll(dir) }}}
	s.roots.AppendCertsFromPEM(ca.Bundle())
	if err := s.MintDir("gateway"); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends what was started, the last one first, and removes the directory.
func (s *Site) Close() {
	for len(s.ends) > 0 {
		last := len(s.ends) - 1
		s.ends[last]()
		s.ends = s.ends[:last]
	}
}

// Path returns the path of a file in the directory.
func (s *Site) Path(name string) string { return filepath.Join(s.dir, name) }

// Write makes a file or overwrites it in place.
func (s *Site) Write(name, text string) error {
	return os.WriteFile(s.Path(name), []byte(text), 0o600)
}

// Replace puts a file in place by a rename, and returns the moment of it.
func (s *Site) Replace(name, text string) (time.Time, error) {
	next := filepath.Join(filepath.Dir(name), ".next-"+filepath.Base(name))
	if err := s.Write(next, text); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	return now, os.Rename(s.Path(next), s.Path(name))
}

// Mint makes the certificate of a workload, with these DNS names in it. The
// path begins with a slash.
func (s *Site) Mint(path string, names ...string) (*authority.SVID, error) {
	id, err := spiffeid.FromPath(s.Authority.TrustDomain(), path)
	if err != nil {
		return nil, err
	}
	return s.Authority.Mint(authority.Options{ID: id, DNS: names, Lifetime: lifetime})
}

// MintDir makes the certificate of the workload /NAME, which has the name of a
// server too, and writes it with its key and the bundle into the subdirectory
// of that name.
func (s *Site) MintDir(name string) error {
	svid, err := s.Mint("/"+name, ServerName)
	if err != nil {
		return err
	}
	return svid.WriteDir(s.Path(name), s.Authority.Bundle())
}

// Client returns the configuration of a caller of the gateway; nil means one
// that shows no certificate.
func (s *Site) Client(svid *authority.SVID) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ServerName, RootCAs: s.roots}
	if svid != nil {
		config.Certificates = []tls.Certificate{svid.TLS()}
	}
	return config
}

// Build builds programs into the directory as [Build] does, and exeat too unless
// there is one.
func (s *Site) Build(ctx context.Context, packages ...string) error {
	if s.Exeat == "" {
		s.Exeat = s.Path("exeat")
		packages = append(packages, Program)
	}
	if len(packages) == 0 {
		return nil
	}
	return Build(ctx, s.dir, packages...)
}

// Build builds programs of this module, named by the paths of their packages in
// it, into a directory. It must run somewhere in the module.
func Build(ctx context.Context, dir string, packages ...string) error {
	args := []string{"build", "-o", dir + "/"}
	for _, p := range packages {
		args = append(args, module+p)
	}
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w: %s", strings.Join(packages, ", "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Start starts a process that Close stops.
func (s *Site) Start(cmd *exec.Cmd, ready Ready) (*Process, error) {
	p, err := Start(cmd, ready)
	if err != nil {
		return nil, err
	}
	s.ends = append(s.ends, p.Stop)
	return p, nil
}

// Serve writes a configuration, starts the gateway with it, and returns when so
// many listeners of it are announced, that of admin included. It runs in the
// directory with nothing but env in its environment.
func (s *Site) Serve(ctx context.Context, name, config string, listeners int, env ...string) (*Process, error) {
	if err := s.Write(name, config); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, s.Exeat, "serve", "--config", s.Path(name))
	cmd.Dir, cmd.Env = s.dir, env
	return s.Start(cmd, Ready{Announces: listeners})
}

// Echo starts an origin that Close stops.
func (s *Site) Echo(ctx context.Context) (*Echo, error) {
	e, err := NewEcho(ctx)
	if err != nil {
		return nil, err
	}
	s.ends = append(s.ends, e.Close)
	return e, nil
}
