package workloadapi_test

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	client "github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newAuthority(t *testing.T, name string) *authority.Authority {
	t.Helper()
	a, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(name)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func svid(a *authority.Authority, path string, lifetime time.Duration) authority.Options {
	return authority.Options{ID: spiffeid.RequireFromPath(a.TrustDomain(), path), Lifetime: lifetime}
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl") //nolint:usetesting // the name of a unix socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "private", "agent.sock")
}

// serve starts a server until the test ends, and then checks that it returned no error.
func serve(t *testing.T, config workloadapi.Config) (*workloadapi.Server, string) {
	t.Helper()
	server, err := workloadapi.New(config)
	if err != nil {
		t.Fatal(err)
	}
	path := socketPath(t)
	listener, err := workloadapi.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket is still there")
		}
	})
	return server, path
}

// watch follows the X.509 context with the client of go-spiffe.
func watch(t *testing.T, path string) <-chan *client.X509Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	updates := make(updates, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.WatchX509Context(ctx, updates, client.WithAddr("unix://"+path))
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return updates
}

type updates chan *client.X509Context

func (u updates) OnX509ContextUpdate(c *client.X509Context) { u <- c }
func (updates) OnX509ContextWatchError(error)               {}

// TestEveryCallerGetsAllSVIDs checks that every caller gets all SVIDs, the default one
// first, with certificates of its own.
func TestEveryCallerGetsAllSVIDs(t *testing.T) {
	a, partner := newAuthority(t, "demo.example"), newAuthority(t, "partner.example")
	_, path := serve(t, workloadapi.Config{
		Authority: a,
		SVIDs:     []authority.Options{svid(a, "/gateway", 0), svid(a, "/other", 0)},
		Federated: []*x509bundle.Bundle{partner.X509Bundle()},
	})
	got, other := <-watch(t, path), <-watch(t, path)
	if len(got.SVIDs) != 2 || got.DefaultSVID().ID.Path() != "/gateway" || got.SVIDs[1].ID.Path() != "/other" {
		t.Errorf("SVIDs %v", got.SVIDs)
	}
	for _, want := range []*x509bundle.Bundle{a.X509Bundle(), partner.X509Bundle()} {
		if bundle, ok := got.Bundles.Get(want.TrustDomain()); !ok || !bundle.Equal(want) {
			t.Errorf("bundle of %s is %v", want.TrustDomain(), bundle)
		}
	}
	if got.DefaultSVID().Certificates[0].Equal(other.DefaultSVID().Certificates[0]) {
		t.Error("two callers share a certificate")
	}
	if left := time.Until(got.DefaultSVID().Certificates[0].NotAfter); left < 59*time.Minute || left > 61*time.Minute {
		t.Errorf("lifetime %s, want that of the authority package", left)
	}
}

func TestSVIDsRotateBeforeTheyExpire(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "demo.example")
	_, path := serve(t, workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(a, "/x", time.Second)}})
	serials := map[string]bool{}
	for update := range watch(t, path) {
		leaf := update.DefaultSVID().Certificates[0]
		if left := time.Until(leaf.NotAfter); left <= 0 || left > 2*time.Second {
			t.Errorf("lives for %s", left)
		}
		serials[leaf.SerialNumber.String()] = true
		if len(serials) == 3 {
			return
		}
	}
}

func TestCARollIsSentInEveryStep(t *testing.T) {
	a := newAuthority(t, "demo.example")
	_, path := serve(t, workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(a, "/x", 0)}})
	updates := watch(t, path)
	check := func(issuer *x509.Certificate, authorities int) {
		t.Helper()
		update := <-updates
		bundle, _ := update.Bundles.Get(a.TrustDomain())
		if got := len(bundle.X509Authorities()); got != authorities {
			t.Errorf("%d authorities, want %d", got, authorities)
		}
		if err := update.DefaultSVID().Certificates[0].CheckSignatureFrom(issuer); err != nil {
			t.Error(err)
		}
	}
	step := func(take func() error) *x509.Certificate {
		t.Helper()
		if err := take(); err != nil {
			t.Fatal(err)
		}
		return a.X509Bundle().X509Authorities()[0]
	}
	first := a.X509Bundle().X509Authorities()[0]
	check(first, 1)
	step(a.Prepare)
	check(first, 2)
	second := step(a.Activate)
	check(second, 2)
	step(a.Retire)
	check(second, 1)
}

func TestFederatedBundlesAreSentWhenTheyChange(t *testing.T) {
	a, partner := newAuthority(t, "demo.example"), newAuthority(t, "partner.example")
	server, path := serve(t, workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(a, "/x", 0)}})
	stream, err := dial(t, path).FetchX509Bundles(withHeader(t.Context()), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(names ...string) {
		t.Helper()
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if len(got.GetBundles()["spiffe://"+name]) == 0 {
				t.Errorf("no bundle of %s", name)
			}
		}
		if len(got.GetBundles()) != len(names) {
			t.Errorf("%d bundles, want those of %v", len(got.GetBundles()), names)
		}
	}
	want("demo.example")
	if err := server.SetFederated(partner.X509Bundle()); err != nil {
		t.Fatal(err)
	}
	want("demo.example", "partner.example")
	if err := server.SetFederated(a.X509Bundle()); err == nil {
		t.Error("no error for a federated bundle of our own trust domain")
	}
	if err := server.SetFederated(); err != nil {
		t.Fatal(err)
	}
	want("demo.example")
}

func TestSVIDsEndWithTheAuthority(t *testing.T) {
	short, err := authority.New(authority.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("short.example"), CALifetime: 90 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	_, path := serve(t, workloadapi.Config{Authority: short, SVIDs: []authority.Options{svid(short, "/x", 2*time.Hour)}})
	left := time.Until((<-watch(t, path)).DefaultSVID().Certificates[0].NotAfter)
	if left < 89*time.Minute || left > 90*time.Minute {
		t.Errorf("lives for %s, want what is left of the authority", left)
	}
}

func TestCallsThatAreRefused(t *testing.T) {
	a := newAuthority(t, "demo.example")
	_, path := serve(t, workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(a, "/x", 0)}})
	api := dial(t, path)
	receive := func(ctx context.Context) error {
		stream, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	header := func(value string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", value)
	}
	for _, test := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"no header", receive(t.Context()), codes.InvalidArgument},
		{"a header that is not true", receive(header("false")), codes.InvalidArgument},
		{"a header twice", receive(metadata.AppendToOutgoingContext(header("true"), "workload.spiffe.io", "true")), codes.InvalidArgument},
		{"a JWT-SVID without the header", func() error { _, err := api.FetchJWTSVID(t.Context(), nil); return err }(), codes.InvalidArgument},
		{"a JWT-SVID", func() error { _, err := api.FetchJWTSVID(withHeader(t.Context()), nil); return err }(), codes.Unimplemented},
		{"a request that is too large", func() error {
			_, err := api.ValidateJWTSVID(withHeader(t.Context()), &workload.ValidateJWTSVIDRequest{Svid: strings.Repeat("x", 1<<20)})
			return err
		}(), codes.ResourceExhausted},
	} {
		if got := status.Code(test.err); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, test.err, test.want)
		}
	}
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func dial(t *testing.T, path string) workload.SpiffeWorkloadAPIClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return workload.NewSpiffeWorkloadAPIClient(conn)
}

func TestNewRefuses(t *testing.T) {
	a, other := newAuthority(t, "demo.example"), newAuthority(t, "other.example")
	good := svid(a, "/x", 0)
	for _, test := range []struct {
		name   string
		config workloadapi.Config
		want   string
	}{
		{"nothing", workloadapi.Config{}, "needs an authority"},
		{"no SVID", workloadapi.Config{Authority: a}, "needs an SVID"},
		{"a lifetime below a second", workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(a, "/x", time.Second-1)}}, "below 1s"},
		{"a negative lifetime", workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(a, "/x", -1)}}, "below 1s"},
		{"an ID twice", workloadapi.Config{Authority: a, SVIDs: []authority.Options{good, good}}, "twice"},
		{"an ID of another trust domain", workloadapi.Config{Authority: a, SVIDs: []authority.Options{svid(other, "/x", 0)}}, "not in trust domain"},
		{"an empty federated bundle", workloadapi.Config{Authority: a, SVIDs: []authority.Options{good}, Federated: []*x509bundle.Bundle{x509bundle.New(other.TrustDomain())}}, "empty"},
		{"two bundles of one trust domain", workloadapi.Config{Authority: a, SVIDs: []authority.Options{good}, Federated: []*x509bundle.Bundle{other.X509Bundle(), other.X509Bundle()}}, "has one already"},
	} {
		server, err := workloadapi.New(test.config)
		if err == nil || server != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.name, err, test.want)
		}
	}
}

func TestListenIsForThisUserOnly(t *testing.T) {
	path := socketPath(t)
	listener, err := workloadapi.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(name), got, want)
		}
	}
	if _, err := workloadapi.Listen(t.Context(), path); err == nil {
		t.Error("a second listener replaced the socket of one that is still in use")
	}
}

func TestListenReplacesASocketThatNobodyServes(t *testing.T) {
	path := socketPath(t)
	dead, err := workloadapi.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unixListener, ok := dead.(*net.UnixListener)
	if !ok {
		t.Fatalf("%T", dead)
	}
	unixListener.SetUnlinkOnClose(false) // the socket stays, as after a crash
	dead.Close()
	next, err := workloadapi.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	next.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := workloadapi.Listen(t.Context(), path); err == nil {
		t.Error("a file was replaced")
	}
	if _, err := workloadapi.Listen(t.Context(), "/"+strings.Repeat("x", 107)); err == nil || !strings.Contains(err.Error(), "1 to 107") {
		t.Errorf("got %v for a path that is too long", err)
	}
}
