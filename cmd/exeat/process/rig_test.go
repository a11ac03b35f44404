package process

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/gateway"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; no wait should come near it.
const patience = 30 * time.Second

const goodPolicy = `version: 1
identities:
  - id: spiffe://td.example/ns/ci/sa/builder
    owner: team-ci
    allow:
      - host: api.example
        name: the-api
`

// write creates a file in a directory of its own, and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	put(t, path, text)
	return path
}

// put writes a file in place.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace renames a complete file into place.
func replace(t *testing.T, path, text string) {
	t.Helper()
	put(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// configured returns a configuration with a policy and a listener whose callers all
// have the identity of goodPolicy's builder.
func configured(t *testing.T, policy string) config.Config {
	t.Helper()
	cfg := config.Defaults()
	cfg.Policy, cfg.Gateway.DrainDelay, cfg.Gateway.DrainTimeout = []string{policy}, 0, 0
	cfg.Listeners = []config.Listener{{Listener: gateway.Listener{
		Name: "own", Address: "unix:" + filepath.Join(t.TempDir(), "s"),
		Identity: gateway.Fixed, ID: spiffeid.RequireFromString("spiffe://td.example/ns/ci/sa/builder"),
	}}}
	return cfg
}

// options returns options without an environment; the log and the records are
// discarded.
func options() Options {
	return Options{Stdout: io.Discard, Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler)}
}

// serve serves a process until stop is called, or the test ends.
func serve(t *testing.T, p *Process, hangup <-chan os.Signal) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { p.Serve(ctx, hangup) })
	stop = func() {
		cancel()
		serving.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits until is returns true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !is(); <-tick.C {
		if time.Since(begin) > patience {
			t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

func newTestAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	ca, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("td.example")})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// mint writes the files of an identity into a directory.
func mint(t *testing.T, ca *authority.Authority, dir string, dns ...string) {
	t.Helper()
	svid, err := ca.Mint(authority.Options{ID: spiffeid.RequireFromString("spiffe://td.example/gateway"), DNS: dns})
	if err != nil {
		t.Fatal(err)
	}
	if err := svid.WriteDir(dir, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
}
