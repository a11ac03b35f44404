package workload_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/exeat-dev/exeat/identity/authority"
	source "github.com/exeat-dev/exeat/identity/workload"
)

func TestEveryRotationIsASnapshot(t *testing.T) {
	t.Parallel()
	a, socket := newAuthority(t, "prod.example"), socketPath(t)
	serve(t, newServer(t, a, "/gateway", time.Second), socket)
	f := follow(t, socket)
	before := f.Snapshot()
	serials := map[string]bool{before.Certificate().Leaf.SerialNumber.String(): true}
	for len(serials) < 3 {
		snap := f.next(t, source.Updated).Snapshot
		if snap.Generation() != before.Generation()+1 || snap.ID() != before.ID() || snap.ID().Path() != "/gateway" {
			t.Errorf("generation %d of %s after %d of %s", snap.Generation(), snap.ID(), before.Generation(), before.ID())
		}
		if !snap.SameTrust(before) || !snap.NotAfter().After(time.Now()) {
			t.Errorf("ends %s; the trust changed or it is over already", snap.NotAfter())
		}
		serials[snap.Certificate().Leaf.SerialNumber.String()] = true
		before = snap
	}
}

// TestTheSnapshotOutlivesTheAgent checks that the snapshot stays while the agent is
// away, and that its absence and its return are reported once.
func TestTheSnapshotOutlivesTheAgent(t *testing.T) {
	t.Parallel()
	a, socket := newAuthority(t, "prod.example"), socketPath(t)
	kill := serve(t, newServer(t, a, "/gateway", 0), socket)
	f := follow(t, socket)
	last := f.Snapshot()
	kill()
	if err := f.next(t, source.AgentLost).Err; err == nil || strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("lost with %v, want one line", err)
	}
	if f.Snapshot() != last {
		t.Error("the snapshot went with the agent")
	}
	serve(t, newServer(t, a, "/gateway", 0), socket)
	f.next(t, source.AgentBack) // it must not be lost a second time before
	if snap := f.next(t, source.Updated).Snapshot; snap != f.Snapshot() || snap.Generation() != 2 {
		t.Errorf("generation %d", snap.Generation())
	}
}

func TestAnExpiredSnapshotStaysUntilTheAgentIsBack(t *testing.T) {
	t.Parallel()
	a, socket := newAuthority(t, "prod.example"), socketPath(t)
	kill := serve(t, newServer(t, a, "/gateway", time.Second), socket)
	f := follow(t, socket)
	kill()
	for lost := false; !lost; { // a rotation may be reported first
		lost = (<-f.events).Kind == source.AgentLost
	}
	last := f.Snapshot()
	<-time.After(time.Until(last.NotAfter()) + time.Millisecond)
	if f.Snapshot() != last || time.Now().Before(last.NotAfter()) {
		t.Error("the expired snapshot is gone")
	}
	serve(t, newServer(t, a, "/gateway", 0), socket)
	f.next(t, source.AgentBack)
	if snap := f.next(t, source.Updated).Snapshot; time.Until(snap.NotAfter()) < time.Minute {
		t.Errorf("ends %s", snap.NotAfter())
	}
}

// responseOf returns what an agent sends for one SVID.
func responseOf(t *testing.T, a *authority.Authority, svid *authority.SVID) *workload.X509SVIDResponse {
	t.Helper()
	pair := svid.TLS()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var bundle []byte
	for _, ca := range a.X509Bundle().X509Authorities() {
		bundle = append(bundle, ca.Raw...)
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: svid.ID.String(), X509Svid: slices.Concat(pair.Certificate...), X509SvidKey: key, Bundle: bundle,
	}}}
}

func mint(t *testing.T, a *authority.Authority, path string) *authority.SVID {
	t.Helper()
	svid, err := a.Mint(optionsOf(a, path))
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestUnusableUpdateIsRefused(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t, "prod.example"), newAuthority(t, "other.example")
	agent, socket := newScripted(t)
	good := responseOf(t, a, mint(t, a, "/gateway"))
	change := func(f func(*workload.X509SVIDResponse)) *workload.X509SVIDResponse {
		r := responseOf(t, a, mint(t, a, "/gateway"))
		f(r)
		return r
	}
	foreignCA := other.X509Bundle().X509Authorities()[0].Raw
	bad := []struct {
		name   string
		answer *workload.X509SVIDResponse
		want   string
	}{
		{"no SVID", &workload.X509SVIDResponse{}, "no SVIDs"},
		{"another key", change(func(r *workload.X509SVIDResponse) { r.Svids[0].X509SvidKey = good.Svids[0].X509SvidKey }), "private key"},
		{"a certificate that is garbage", change(func(r *workload.X509SVIDResponse) { r.Svids[0].X509Svid = []byte("x") }), "certificate"},
		{"an empty bundle", change(func(r *workload.X509SVIDResponse) { r.Svids[0].Bundle = nil }), "is empty"},
		{"a bundle that did not issue it", change(func(r *workload.X509SVIDResponse) {
			r.Svids[0].Bundle = newAuthority(t, "prod.example").X509Bundle().X509Authorities()[0].Raw
		}), "not issued by"},
		{"a CA of another trust domain", change(func(r *workload.X509SVIDResponse) { r.Svids[0].Bundle = append(r.Svids[0].Bundle, foreignCA...) }), `belongs to trust domain "other.example"`},
	}
	proceed := make(chan struct{})
	agent.calls <- func(send func(*workload.X509SVIDResponse)) error {
		send(good)
		<-proceed
		for _, test := range bad {
			send(test.answer)
			<-proceed
		}
		send(good) // the same SVID again is no update
		send(change(func(*workload.X509SVIDResponse) {}))
		return nil // a stream that ends without an error is reported as an absence, too
	}
	f := follow(t, socket)
	before := f.Snapshot()
	proceed <- struct{}{}
	for _, test := range bad {
		if err := f.next(t, source.Refused).Err; err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want it to say %q", test.name, err, test.want)
		}
		if !f.Refused() {
			t.Errorf("%s: the provider does not say that the update was refused", test.name)
		}
		proceed <- struct{}{}
	}
	if snap := f.next(t, source.Updated).Snapshot; snap.Generation() != before.Generation()+1 {
		t.Errorf("generation %d after %d", snap.Generation(), before.Generation())
	}
	if f.Refused() {
		t.Error("the provider says that a sound update was refused")
	}
	f.next(t, source.AgentLost)
}

// TestBadBundleOfAnotherTrustDomainDoesNotDelayARenewal checks that an unusable bundle
// of another trust domain prevents neither the renewal of the gateway's own SVID nor the
// removal of one of its own authorities.
func TestBadBundleOfAnotherTrustDomainDoesNotDelayARenewal(t *testing.T) {
	t.Parallel()
	a, partner, other := newAuthority(t, "prod.example"), newAuthority(t, "partner.example"), newAuthority(t, "other.example")
	agent, socket := newScripted(t)
	const unsound = `belongs to trust domain "other.example"`
	rows := []struct {
		name    string
		sent    *authority.Authority // authority whose bundle is sent for partner.example; nil if none
		empty   bool                 // an empty bundle is sent for partner.example
		refused bool
		trusted bool // partner.example is trusted afterwards
	}{
		{"unusable from the start", other, false, true, false},
		{"usable", partner, false, false, true},
		{"unusable: the last one stays", other, false, true, true},
		{"empty: the trust domain has no authority any more", nil, true, false, false},
		{"unusable: an older one is not trusted again", other, false, true, false},
		{"usable again", partner, false, false, true},
		{"not federated any more", nil, false, false, false},
		{"unusable: an older one is not trusted again, either", other, false, true, false},
	}
	next := make(chan struct{})
	agent.calls <- func(send func(*workload.X509SVIDResponse)) error {
		for _, row := range rows {
			r := responseOf(t, a, mint(t, a, "/gateway"))
			if row.empty || row.sent != nil {
				r.FederatedBundles = map[string][]byte{"spiffe://partner.example": nil}
			}
			if row.sent != nil {
				r.FederatedBundles["spiffe://partner.example"] = row.sent.X509Bundle().X509Authorities()[0].Raw
			}
			send(r)
			<-next
		}
		return nil
	}
	f := follower{events: make(chan source.Event, 64)}
	var err error
	f.Provider, err = source.New(t.Context(), source.Config{Socket: socket, Report: func(e source.Event) { f.events <- e }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	for i, row := range rows {
		if row.refused {
			if err := f.next(t, source.BundleRefused).Err; err == nil || !strings.Contains(err.Error(), unsound) {
				t.Errorf("%s: got %v, want it to say %q", row.name, err, unsound)
			}
		}
		snap := f.next(t, source.Updated).Snapshot
		if got := f.Refused(); got != row.refused {
			t.Errorf("%s: refused is %v", row.name, got)
		}
		if snap.Generation() != uint64(i+1) {
			t.Errorf("%s: generation %d, want %d", row.name, snap.Generation(), i+1)
		}
		if got := slices.Contains(snap.TrustDomains(), partner.TrustDomain()); got != row.trusted {
			t.Errorf("%s: partner.example is trusted: %v", row.name, got)
		}
		if !snap.Roots(partner.TrustDomain()).Equal(rootsOf(partner, row.trusted)) {
			t.Errorf("%s: not its own authorities stand for partner.example", row.name)
		}
		next <- struct{}{}
	}
	f.next(t, source.AgentLost)
}

func rootsOf(a *authority.Authority, trusted bool) *x509.CertPool {
	roots := x509.NewCertPool()
	if trusted {
		roots.AddCert(a.X509Bundle().X509Authorities()[0])
	}
	return roots
}

// TestNoAnswerOfTheAgentEndsTheSource checks that the source continues after answers of
// the agent at which go-spiffe stops watching.
func TestNoAnswerOfTheAgentEndsTheSource(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "prod.example")
	agent, socket := newScripted(t)
	answer := func(code codes.Code, path string) {
		agent.calls <- func(send func(*workload.X509SVIDResponse)) error {
			if path != "" {
				send(responseOf(t, a, mint(t, a, path)))
			}
			return status.Error(code, "as the test says\nin two lines")
		}
	}
	answer(codes.Canceled, "")
	answer(codes.Canceled, "/one")
	answer(codes.PermissionDenied, "")
	answer(codes.InvalidArgument, "/two")
	answer(codes.Canceled, "")
	answer(codes.Unavailable, "/three")
	f := follow(t, socket)
	for _, want := range []string{"/two", "/three"} {
		if err := f.next(t, source.AgentLost).Err; err.Error() != "as the test says?in two lines" {
			t.Errorf("got %v", err)
		}
		f.next(t, source.AgentBack)
		if got := f.next(t, source.Updated).Snapshot.ID().Path(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	f.next(t, source.AgentLost)
	f.Close()
	f.Close()
	if len(f.events) != 0 {
		t.Errorf("closing was reported as %v", <-f.events)
	}
	if f.Snapshot().ID().Path() != "/three" {
		t.Error("closing took the snapshot away")
	}
}

func TestErrorAtTheStartSaysWhatToCheck(t *testing.T) {
	t.Parallel()
	a, other := newAuthority(t, "prod.example"), newAuthority(t, "prod.example")
	nobody := filepath.Join(filepath.Dir(socketPath(t)), "none.sock")
	mute := socketPath(t)
	listener, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	denies, deniesAt := newScripted(t)
	confused, confusedAt := newScripted(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	for range cap(denies.calls) {
		denies.calls <- func(func(*workload.X509SVIDResponse)) error {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		confused.calls <- func(send func(*workload.X509SVIDResponse)) error {
			send(responseOf(t, other, mint(t, a, "/gateway")))
			<-release
			return nil
		}
	}
	for _, test := range []struct {
		name, socket string
		wants        []string
	}{
		{"nobody listens", nobody, []string{"none.sock", "no such file", "check the path of the socket", "the agent runs", "is registered"}},
		{"nobody answers", mute, []string{"it does not answer", "check the path of the socket"}},
		{"nobody is registered", deniesAt, []string{"no identity issued", "the agent runs; check that this workload is registered"}},
		{"the answer is unusable", confusedAt, []string{"what it sent cannot be used", "not issued by"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			told := map[string]int{}
			s, err := source.New(t.Context(), source.Config{
				Socket: test.socket, StartTimeout: 300 * time.Millisecond, Waiting: func(why error) { told[why.Error()]++ },
			})
			if err == nil || s != nil {
				t.Fatal("no error")
			}
			for why, n := range told {
				if n != 1 || !strings.HasSuffix(err.Error(), why) {
					t.Errorf("while it waits it tells %d times of %q, and at the end says %q", n, why, err)
				}
			}
			for _, want := range append(test.wants, "no X509-SVID from the Workload API at unix://", "within 300ms") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %q", err)
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("told to stop"))
	if _, err := source.New(ctx, source.Config{Socket: mute}); err == nil || !strings.Contains(err.Error(), "told to stop") {
		t.Errorf("got %v, want the cause of the end", err)
	}
	if _, err := source.New(t.Context(), source.Config{Socket: mute, StartTimeout: -1}); err == nil {
		t.Error("no error for a negative timeout")
	}
}

func TestSocketsThatAreRefused(t *testing.T) {
	for _, test := range []struct{ name, socket, want string }{
		{"none", "", "no socket"},
		{"a relative path", "run/agent.sock", "absolute path"},
		{"a relative path in a URI", "unix://run/agent.sock", "not absolute"},
		{"a URI of another kind", "https://agent.example/", "absolute path"},
		{"a host name", "tcp://localhost:8081", "absolute path"},
		{"an address of the network", "tcp://192.0.2.1:8081", "loopback"},
		{"no port", "tcp://127.0.0.1", "absolute path"},
		{"port 0", "tcp://127.0.0.1:0", "loopback"},
		{"a query", "unix:///run/agent.sock?x", "absolute path"},
		{"a newline", "unix:///run/\nagent.sock", "absolute path"},
	} {
		_, err := source.New(t.Context(), source.Config{Socket: test.socket})
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want it to say %q", test.name, err, test.want)
		}
	}
}

func TestFormsOfSocketAddresses(t *testing.T) {
	a, socket := newAuthority(t, "prod.example"), socketPath(t)
	odd := filepath.Join(filepath.Dir(socket), "a b?#%41.sock")
	server := newServer(t, a, "/gateway", 0)
	serve(t, server, socket)
	serve(t, server, odd)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	// The environment may name this gateway as the proxy.
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	for _, form := range []string{socket, "unix://" + socket, "unix:" + socket, odd, "tcp://" + listener.Addr().String()} {
		s, err := source.New(t.Context(), source.Config{Socket: form, StartTimeout: 5 * time.Second})
		if err != nil {
			t.Error(err)
			continue
		}
		s.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
