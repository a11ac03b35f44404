package forward

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/head"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func decisionFor(name string) *allowlist.Decision {
	return &allowlist.Decision{
		Request: allowlist.Request{ID: spiffeid.RequireFromString("spiffe://td.example/" + name)},
		Outcome: allowlist.Outcome{Verdict: allowlist.Allow},
	}
}

// takeFor takes a lane for a request without credentials.
func (p *pools) takeFor(d *allowlist.Decision) *lane {
	return p.acquire(&Exchange{Decision: *d, Head: new(head.Head)})
}

// used gives a lane a connection, as a successful exchange does.
func used(l *lane) *lane {
	near, far := net.Pipe()
	_ = far.Close()
	l.conn = newUpstream(dial.Result{Conn: near})
	return l
}

// TestPoolsAreBounded gives lanes to more pools than there may be, and checks that the
// least recently used pool is removed.
func TestPoolsAreBounded(t *testing.T) {
	var p pools
	lanes := map[string]*lane{}
	give := func(name string) {
		lanes[name] = used(p.takeFor(decisionFor(name)))
		p.release(lanes[name], nil, true)
	}
	give("first")
	give("second")
	for i := range maxPools - 2 {
		give(fmt.Sprintf("w%d", i))
	}
	if l := p.takeFor(decisionFor("first")); l != lanes["first"] {
		t.Error("the first pool is gone though there was room")
	}
	p.release(lanes["first"], nil, true)
	give("one-more")
	if len(p.byKey) != maxPools {
		t.Errorf("%d pools, want %d", len(p.byKey), maxPools)
	}
	if p.takeFor(decisionFor("first")) != lanes["first"] {
		t.Error("the pool that was used last is gone")
	}
	if p.takeFor(decisionFor("second")) == lanes["second"] {
		t.Error("the pool that was not used for the longest time is still there")
	}
	p.closeIdle()
	if len(p.byKey) != 0 {
		t.Errorf("%d pools are left", len(p.byKey))
	}
	for range idlePerPool + 1 {
		p.release(used(&lane{key: keyOf(decisionFor("first")), transport: p.newTransport(), closeCount: p.closeCount}), nil, true)
	}
	if n := len(p.byKey[keyOf(decisionFor("first"))].idle); n != idlePerPool {
		t.Errorf("%d lanes rest in a pool, want %d", n, idlePerPool)
	}
}

// TestLaneIsReusedAfterAGoodExchange checks when the next request may use a lane.
func TestLaneIsReusedAfterAGoodExchange(t *testing.T) {
	for _, row := range []struct {
		name  string
		after func(*pools, *lane)
		want  bool
	}{
		{"after a good exchange", func(p *pools, l *lane) { p.release(used(l), nil, true) }, true},
		{"after a bad exchange", func(p *pools, l *lane) { p.release(used(l), nil, false) }, false},
		{"on which nothing went out", func(p *pools, l *lane) { p.release(l, nil, true) }, false},
		{"whose connection was closed", func(p *pools, l *lane) { _ = used(l).conn.Close(); p.release(l, nil, true) }, false},
		{"whose connection was closed while it rested", func(p *pools, l *lane) { p.release(used(l), nil, true); _ = l.conn.Close() }, false},
		{"after another state has come", func(p *pools, l *lane) { p.closeIdle(); p.release(used(l), nil, true) }, false},
		{"before another state has come", func(p *pools, l *lane) { p.release(used(l), nil, true); p.closeIdle() }, false},
		{"that belongs to the connection of one client", func(p *pools, l *lane) { used(l).dedicated = true; p.release(l, new(Logins), true) }, false},
	} {
		var p pools
		l := p.takeFor(decisionFor("a"))
		row.after(&p, l)
		if again := p.takeFor(decisionFor("a")) == l; again != row.want {
			t.Errorf("a lane %s is taken again: %v, want %v", row.name, again, row.want)
		}
		if p.takeFor(decisionFor("a")) == l {
			t.Errorf("a lane %s is taken by two", row.name)
		}
	}
}

// TestPoolsAreNotShared checks that requests with different identities, destinations,
// rules or modes do not share connections.
func TestPoolsAreNotShared(t *testing.T) {
	var p pools
	base := decisionFor("a")
	other := *base
	other.Dest.Port = 81
	observed := *base
	observed.Verdict = allowlist.Observe
	ruled := *base
	ruled.Rule = compiledDecision(t).Rule
	seen := map[*lane]string{}
	for name, d := range map[string]*allowlist.Decision{"base": base, "identity": decisionFor("b"), "port": &other, "mode": &observed, "rule": &ruled} {
		l := p.takeFor(d)
		if was, ok := seen[l]; ok {
			t.Errorf("%s and %s share connections", was, name)
		}
		seen[l] = name
		p.release(used(l), nil, true)
		if p.takeFor(d) != l {
			t.Errorf("%s has another lane the second time", name)
		}
		p.release(l, nil, true)
	}
}

// compiledDecision returns a decision that allows a.example:443 at public addresses.
func compiledDecision(t *testing.T) *allowlist.Decision {
	t.Helper()
	host, err := allowlist.ParseHostPattern("a.example")
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://td.example/a")
	pattern, err := allowlist.ParseIdentityPattern(id.String())
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{Pattern: pattern, Allow: []allowlist.Rule{{Host: host}}}}})
	if err != nil {
		t.Fatal(err)
	}
	dest, err := allowlist.ParseDestination("a.example:443")
	if err != nil {
		t.Fatal(err)
	}
	d := policy.Decide(allowlist.Request{ID: id, Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Now()})
	return &d
}

// TestHopByHopFields checks which fields are never sent on, and which may be trailers.
func TestHopByHopFields(t *testing.T) {
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate", "Proxy-Status", "proxy-anything",
		"TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings", "Alt-Svc", "X-Exeat-Decision", "x-exeat-trace",
		"Proxy", "Keep_Alive", "proxy_authorization", "Proxy.Status", "transfer_encoding", "X_Exeat-Trace", // other spellings that become the same variable
	} {
		if !variableOf(name).isHop() || isTrailer(name) {
			t.Errorf("%s crosses the gateway", name)
		}
	}
	for _, name := range []string{"Accept", "Authorization", "Cookie", "Cache-Control", "Proxied", "Via", "Traceparent", "X-Anything"} {
		if variableOf(name).isHop() {
			t.Errorf("%s does not cross the gateway", name)
		}
	}
	for _, name := range []string{"Host", "Content-Length", "Authorization", "Set-Cookie", "Content-Type", "X-Forwarded-For", "Content_Length", "Set_Cookie", "X-Original-URL", "Destination", "", "a b", "a:b"} {
		if isTrailer(name) {
			t.Errorf("%q may be a trailer", name)
		}
	}
	if !isTrailer("X-Checksum") || !isTrailer("Server-Timing") {
		t.Error("a trailer that says nothing of routes or frames is refused")
	}
}

// TestMeterReportsAfterReportBytes checks that progress is reported after reportBytes and
// not more often.
func TestMeterReportsAfterReportBytes(t *testing.T) {
	var reports []string
	m := meter{report: func(up, down int64) { reports = append(reports, fmt.Sprintf("%d/%d", up>>20, down>>20)) }}
	m.start(time.Hour, func() { t.Error("the exchange was ended") })
	defer m.stop()
	for range 40 {
		m.add(4<<20, 0)
	}
	m.add(0, 96<<20)
	if got, want := strings.Join(reports, " "), "64/0 128/0 160/96"; got != want {
		t.Errorf("reported %s, want %s", got, want)
	}
}

// TestCarryWaitsUntilTheTransportIsDone checks that carry waits until the transport reads
// from a reused connection or has closed it.
func TestCarryWaitsUntilTheTransportIsDone(t *testing.T) {
	for name, look := range map[string]func(*upstream){
		"the transport reads":  func(u *upstream) { _, _ = u.Read(make([]byte, 1)) },
		"the transport closes": func(u *upstream) { _ = u.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				u := newUpstream(dial.Result{Conn: near})
				next, carried := new(run), make(chan struct{})
				go func() {
					u.assign(next, true)
					close(carried)
				}()
				synctest.Wait()
				select {
				case <-carried:
					t.Error("the next request goes out before the transport reads or closes")
				default:
				}
				go look(u)
				<-carried
				_ = far.Close()
				_ = u.Close()
			})
		})
	}
}

// TestBytesOnAnUnusedConnectionAreNoAnswer checks that bytes on a connection that no
// exchange uses are not taken for an answer.
func TestBytesOnAnUnusedConnectionAreNoAnswer(t *testing.T) {
	near, far := net.Pipe()
	u := newUpstream(dial.Result{Conn: near})
	t.Cleanup(func() { _ = u.Close() })
	go func() { _, _ = far.Write([]byte("a")) }()
	if n, err := u.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errUnsolicited) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	_ = far.Close()
}

// TestEndBeforeUseIsExplained checks that an exchange explains the end of its connection
// also if the transport has read that end before the exchange used the connection.
func TestEndBeforeUseIsExplained(t *testing.T) {
	for name, c := range map[string]struct {
		sent  string
		cause allowlist.Cause
		text  string
	}{
		"the origin closes": {"", allowlist.CauseTerminated, "closed the connection without an answer"},
		"the origin speaks": {"220 ready\r\n", allowlist.CauseProtocol, "the origin speaks without being asked"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			u := newUpstream(dial.Result{Conn: near})
			go func() {
				if c.sent != "" { // a pipe passes on an empty write, too
					_, _ = io.WriteString(far, c.sent)
				}
				_ = far.Close()
			}()
			_, err := u.Read(make([]byte, 64))
			r := &run{Exchange: new(Exchange), upstream: u}
			u.assign(r, false)
			if got := explainError(r, err); got.cause != c.cause || got.text != c.text {
				t.Errorf("explained as %v %q, want %v %q", got.cause, got.text, c.cause, c.text)
			}
			_ = u.Close()
		})
	}
}

// TestEndedExchangeWritesNothing checks that nothing is written for an exchange that has
// ended. The transport would write, if a connection is ready, even when the context of its
// request is done.
func TestEndedExchangeWritesNothing(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	done := make(chan struct{})
	close(done)
	r := &run{Exchange: new(Exchange), done: done}
	u := newUpstream(dial.Result{Conn: near})
	u.assign(r, false)
	if u.writesFor() != nil || r.mayHaveSent.Load() {
		t.Error("a request that has ended may be written")
	}
	_ = u.Close()
}
