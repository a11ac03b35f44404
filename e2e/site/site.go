// Package site makes the surroundings of the exeat program in a test or a
// measurement: a directory with a throw-away authority, the programs that run
// in it, and an origin that callers reach through the gateway.
//
//	s, err := site.New("prod.example")
//	defer s.Close()
//	err = s.Build(ctx)
//	gateway, err := s.Serve(ctx, "exeat.yaml", config, 1)
//	before, err := gateway.CPU()
//
// Package load has the clients. Package site ends only the processes that it
// started, by their IDs. The product does not import it.
package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/identity/authority"
)

const module = "github.com/exeat-dev/exeat/"

// Program is the package of exeat, as an argument of Build.
const Program = "cmd/exeat"

// ServerName is the DNS name in the gateway's certificate.
const ServerName = "localhost"

// lifetime is the lifetime of every certificate, longer than any test or measurement.
const lifetime = authority.DefaultCALifetime / 2

// A Site is a directory and everything that was started for it. Its methods may be called
// from one goroutine at a time.
type Site struct {
	// Authority issues the certificates.
	Authority *authority.Authority
	// Exeat is the path of the program. If it is "", Build builds the program and sets
	// it.
	Exeat string

	dir   string
	roots *x509.CertPool
	ends  []func() // functions that Close calls, the last one first
}

// New makes a directory, an authority of the trust domain, and the certificate of its
// workload /gateway in the subdirectory gateway, with the files that the configuration
// "identity: {dir: gateway}" reads. The path of the directory is short enough for a unix
// socket in it.
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

// Close ends everything that was started, the last one first, and removes the directory.
func (s *Site) Close() {
	for len(s.ends) > 0 {
		last := len(s.ends) - 1
		s.ends[last]()
		s.ends = s.ends[:last]
	}
}

// Path returns the path of a file in the directory.
func (s *Site) Path(name string) string { return filepath.Join(s.dir, name) }

// Write writes a file in place.
func (s *Site) Write(name, text string) error {
	return os.WriteFile(s.Path(name), []byte(text), 0o600)
}

// Replace replaces a file by a rename, and returns the time just before the rename.
func (s *Site) Replace(name, text string) (time.Time, error) {
	next := filepath.Join(filepath.Dir(name), ".next-"+filepath.Base(name))
	if err := s.Write(next, text); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	return now, os.Rename(s.Path(next), s.Path(name))
}

// Mint returns a new SVID of a workload, with these DNS names. The path begins with a
// slash.
func (s *Site) Mint(path string, names ...string) (*authority.SVID, error) {
	id, err := spiffeid.FromPath(s.Authority.TrustDomain(), path)
	if err != nil {
		return nil, err
	}
	return s.Authority.Mint(authority.Options{ID: id, DNS: names, Lifetime: lifetime})
}

// MintDir makes an SVID of the workload /NAME with the DNS name ServerName, and writes it
// with its key and the bundle into the subdirectory of that name.
func (s *Site) MintDir(name string) error {
	svid, err := s.Mint("/"+name, ServerName)
	if err != nil {
		return err
	}
	return svid.WriteDir(s.Path(name), s.Authority.Bundle())
}

// Client returns the TLS configuration of a caller with the SVID. If svid is nil, the
// caller has no certificate.
func (s *Site) Client(svid *authority.SVID) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ServerName, RootCAs: s.roots}
	if svid != nil {
		config.Certificates = []tls.Certificate{svid.TLS()}
	}
	return config
}

// Build builds programs into the directory as [Build] does. It also builds exeat, unless
// Exeat is set.
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

// Build builds programs of this module into a directory, without symbols, as `make build`
// does: they are linked in half the time. They are named by the last elements of the paths
// of their packages. The working directory must be in the module. A program is copied by
// `go run`, which keeps what it has linked in the build cache; `go build` does not, and
// each package of tests would link it anew.
func Build(ctx context.Context, dir string, packages ...string) error {
	for _, p := range packages {
		cmd := exec.CommandContext(ctx, "go", "run", "-ldflags=-s -w", "-exec=cp", module+p, filepath.Join(dir, path.Base(p)))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", p, err, strings.TrimSpace(string(out)))
		}
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

// Serve writes a configuration, starts the gateway with it, and returns when the gateway
// has logged that many listeners, admin included. The gateway runs in the directory, with
// no environment but env.
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
