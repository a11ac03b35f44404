package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// race is a gateway whose states change while callers connect. Callers lock flipping for
// reading until they are answered, so that no request is under way while it is locked for
// writing.
type race struct {
	*gateway
	config   *tls.Config // configuration of the caller builder
	flipping sync.RWMutex
	asked    atomic.Int64
	answered chan struct{} // receives when an answer has come

	callers sync.WaitGroup
	ended   chan struct{} // receives when a caller has seen the end of a tunnel
	opened  atomic.Int64  // number of tunnels that callers have opened
	over    atomic.Int64  // number of tunnels whose end callers have seen

	// Only the goroutine of the test uses the following fields.
	states            map[uint64]*live.State // states by generation
	open              map[string]record      // decisions of open tunnels by id, until their close record
	decisions, closes int
}

func newRace(t *testing.T) *race {
	t.Helper()
	r := &race{
		answered: make(chan struct{}, 1), ended: make(chan struct{}, 1), states: map[uint64]*live.State{}, open: map[string]record{},
	}
	r.gateway = newGateway(t, options{enforced: func(e live.Enforcement) { r.states[e.State.Generation] = e.State }})
	roots := x509.NewCertPool()
	roots.AddCert(r.ca.cert)
	r.config = &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "gateway",
		Certificates: []tls.Certificate{r.ca.issue(t, id("builder").String())},
	}
	return r
}

// TestReloadsAgainstConnects puts states in force at random moments while callers connect.
// After each of them, no tunnel that it forbids may be open, all others must be, and every
// record must name a generation that gives its verdict.
func TestReloadsAgainstConnects(t *testing.T) {
	const flips = 36
	r := newRace(t)
	policies := r.policies(t)
	r.enforcer().put(t.Context(), policies[0])
	ctx, stop := context.WithCancel(t.Context())
	var connecting sync.WaitGroup
	for i := range 6 {
		connecting.Go(func() { r.connects(ctx, t, i%3 > 0) })
	}
	for n := range flips {
		r.flip(ctx, t, policies[(n+1)%len(policies)])
	}
	stop()
	connecting.Wait()
	r.registry.EndAll(tunnel.Drain)
	r.callers.Wait()
	r.registry.Drain(patience)
	if n := r.registry.Len(); n != 0 {
		t.Errorf("%d tunnels are left in the registry", n)
	}
	if r.closes < flips/2 || r.decisions < 2*flips {
		t.Errorf("only %d decisions and %d closes: little was shown", r.decisions, r.closes)
	}
	t.Logf("%d decisions, %d tunnels closed by %d states", r.decisions, r.closes, flips)
}

// The hosts of the race. Every state allows the first one.
func raceHosts() []string {
	return []string{"always.wild.example", "left.wild.example", "right.wild.example"}
}

// policies returns the policies that come into force in turn.
func (r *race) policies(t *testing.T) []*allowlist.Policy {
	t.Helper()
	spec := func(version string, change func(*allowlist.Entry), hosts ...string) *allowlist.Policy {
		entries := []allowlist.Entry{{Pattern: only("builder")}, {Pattern: only("sidecar")}}
		for i := range entries {
			for _, host := range hosts {
				entries[i].Allow = append(entries[i].Allow, to(host))
			}
		}
		if change != nil {
			change(&entries[0])
		}
		p, err := allowlist.Compile(allowlist.Spec{Version: version, Entries: entries})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	names := raceHosts()
	always, left, right := names[0], names[1], names[2]
	quarantine := allowlist.NewQuarantineList([]allowlist.Quarantined{{Pattern: only("builder")}})
	return []*allowlist.Policy{
		spec("left", nil, always, left),
		spec("right", nil, always, right),
		spec("left, denied by a rule to builder", func(e *allowlist.Entry) {
			e.Deny = []allowlist.Rule{with(to(left), func(r *allowlist.Rule) { r.Addresses = nil })}
		}, always, left),
		spec("right, where builder may reach another address", func(e *allowlist.Entry) {
			e.Allow[1].Addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
		}, always, right),
		spec("left, with builder in quarantine", nil, always, left).WithQuarantine(quarantine),
		spec("right again", nil, always, right),
	}
}

// connects opens tunnels until ctx is done.
func (r *race) connects(ctx context.Context, t *testing.T, secure bool) {
	t.Helper()
	for ctx.Err() == nil {
		host := raceHosts()[rand.N(3)]
		r.flipping.RLock()
		err := r.connectOnce(ctx, r.at(host), secure)
		r.flipping.RUnlock()
		if err != nil && ctx.Err() == nil {
			t.Error(err)
			return
		}
	}
}

func (r *race) connectOnce(ctx context.Context, target string, secure bool) error {
	addr := r.plain
	if secure {
		addr = r.secure
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	if secure {
		conn = tls.Client(conn, r.config)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, connectTo(target)); err != nil {
		return err
	}
	r.asked.Add(1)
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	notify(r.answered)
	if resp.StatusCode != http.StatusOK {
		_ = conn.Close()
		return nil
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	r.hold(conn, reader)
	return nil
}

// notify sends to a channel, unless it is full.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// hold waits for the end of a tunnel in a goroutine of its own.
func (r *race) hold(conn net.Conn, reader io.Reader) {
	r.opened.Add(1)
	r.callers.Go(func() {
		_, _ = io.Copy(io.Discard, reader)
		_ = conn.Close()
		r.over.Add(1)
		notify(r.ended)
	})
}

// flip puts a policy in force after a random number of answers, while callers connect, and
// waits until all tunnels that it forbids have ended.
func (r *race) flip(ctx context.Context, t *testing.T, p *allowlist.Policy) {
	t.Helper()
	for range 1 + rand.N(12) {
		r.await(t, r.answered, "an answer")
	}
	r.enforcer().put(ctx, p)
	r.flipping.Lock()
	defer r.flipping.Unlock()
	state := r.current.Load()
	for int64(r.decisions) < r.asked.Load() || r.anyForbidden(state) {
		select {
		case rec := <-r.records:
			r.take(t, rec)
		case <-time.After(patience):
			t.Fatalf("generation %d: %d records of %d decisions, a forbidden tunnel is open: %v",
				state.Generation, r.decisions, r.asked.Load(), r.anyForbidden(state))
		}
	}
	for r.opened.Load()-r.over.Load() > int64(len(r.open)) {
		r.await(t, r.ended, "the end of a tunnel whose record says that it ended")
	}
	if callers := r.opened.Load() - r.over.Load(); callers < int64(len(r.open)) {
		t.Errorf("%d tunnels are open by the records, the callers have %d", len(r.open), callers)
	}
}

func (r *race) await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

// anyForbidden reports whether, according to the records, a tunnel is open that a state
// forbids.
func (r *race) anyForbidden(state *live.State) bool {
	for _, rec := range r.open {
		if reasonBy(state, rec) != allowlist.NoReason {
			return true
		}
	}
	return false
}

// reasonBy returns a state's reason for the request in a record.
func reasonBy(state *live.State, rec record) allowlist.Reason {
	req := allowlist.Request{ID: id("sidecar"), Proof: allowlist.ProofListener, Time: time.Now()}
	if rec.Listener == "secure" {
		req.ID, req.Proof = id("builder"), allowlist.ProofX509SVID
	}
	host, err := allowlist.ParseHost(rec.Host)
	if err != nil {
		return allowlist.MalformedTarget
	}
	req.Dest = allowlist.Destination{Host: host, Port: rec.Port}
	d := state.Decide(req)
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), rec.Port) // address of all names in this test
	if d.Allowed() && d.CheckAddr(addr) != nil {
		return allowlist.ResolvedAddressDenied
	}
	return d.Reason
}

// take reads one record and checks it.
func (r *race) take(t *testing.T, rec record) {
	t.Helper()
	switch rec.Event {
	case string(audit.EventDecision):
		r.decisions++
		state := r.states[rec.Generation]
		if state == nil || state.Policy.Version() != rec.Policy {
			t.Fatalf("%+v names no generation that was in force", rec)
		}
		reason := reasonBy(state, rec)
		if (rec.Verdict == "allow") != (reason == allowlist.NoReason) || rec.Reason != reason.String() {
			t.Errorf("%+v, but generation %d says %q", rec, rec.Generation, reason)
		}
		if rec.Status == http.StatusOK {
			r.open[rec.ID] = rec
		}
	case string(audit.EventTunnelClose):
		opened, ok := r.open[rec.ID]
		if !ok {
			t.Fatalf("%+v closes what never opened", rec)
		}
		delete(r.open, rec.ID)
		r.closes++
		now := r.current.Load()
		reason, by := reasonBy(now, opened), "revoked"
		if reason == allowlist.QuarantinedIdentity {
			by = "quarantined"
		}
		if reason == allowlist.NoReason || rec.Reason != reason.String() || rec.CloseReason != by {
			t.Errorf("%+v, but generation %d says %q", rec, now.Generation, reason)
		}
	default:
		t.Errorf("%+v was not expected", rec)
	}
}
