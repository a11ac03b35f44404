package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// peerConn is one end of a pipe with a remote address that notes when it is closed.
type peerConn struct {
	net.Conn
	remote netip.AddrPort
	open   *atomic.Int32
	once   sync.Once
}

func (c *peerConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *peerConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// script says for each address how long the attempt takes, and with which error it ends.
// An attempt at an address that is not listed never ends by itself.
type script struct {
	outcomes map[string]outcome
	deaf     bool // attempts do not notice that their context has ended

	mu    sync.Mutex
	start time.Time
	tried []string // "address after time"
	open  atomic.Int32
}

type outcome struct {
	after time.Duration
	err   error
}

func (s *script) connect(ctx context.Context, _ *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
	name := addr.Addr().String()
	s.mu.Lock()
	s.tried = append(s.tried, fmt.Sprint(name, " after ", time.Since(s.start)))
	s.mu.Unlock()
	out, answers := s.outcomes[name]
	var answer <-chan time.Time
	if answers {
		answer = time.After(out.after)
	}
	done := ctx.Done()
	if s.deaf {
		done = nil
	}
	select {
	case <-answer:
	case <-done:
		return nil, ctx.Err()
	}
	if out.err != nil {
		return nil, out.err
	}
	s.open.Add(1)
	a, b := net.Pipe()
	_ = b.Close()
	return &peerConn{Conn: a, remote: addr, open: &s.open}, nil
}

// TestRaces checks when a race tries each address, and which connection wins. Each race
// runs in a synctest bubble, so that times are exact.
func TestRaces(t *testing.T) {
	refused := errors.New("refused")
	rows := []struct {
		name   string
		addrs  string // addresses in the order of the race
		script script
		tried  []string
		won    string // address that wins; "" if none does
		took   time.Duration
	}{
		{
			name: "the first answers before the second is tried", addrs: "1.1.1.1 2.2.2.2",
			script: script{outcomes: map[string]outcome{"1.1.1.1": {after: 100 * time.Millisecond}}},
			tried:  []string{"1.1.1.1 after 0s"}, won: "1.1.1.1", took: 100 * time.Millisecond,
		},
		{
			name: "the next address is tried while one is silent", addrs: "1.1.1.1 2.2.2.2",
			script: script{outcomes: map[string]outcome{"2.2.2.2": {after: time.Millisecond}}},
			tried:  []string{"1.1.1.1 after 0s", "2.2.2.2 after 250ms"}, won: "2.2.2.2", took: 251 * time.Millisecond,
		},
		{
			name: "the next address is tried at once after a refusal, and the delay counts from there", addrs: "1.1.1.1 2.2.2.2 3.3.3.3",
			script: script{outcomes: map[string]outcome{
				"1.1.1.1": {after: 200 * time.Millisecond, err: refused}, "3.3.3.3": {},
			}},
			tried: []string{"1.1.1.1 after 0s", "2.2.2.2 after 200ms", "3.3.3.3 after 450ms"}, won: "3.3.3.3", took: 450 * time.Millisecond,
		},
		{
			name: "the slow first address may still win", addrs: "1.1.1.1 2.2.2.2 3.3.3.3",
			script: script{outcomes: map[string]outcome{"1.1.1.1": {after: 300 * time.Millisecond}, "2.2.2.2": {after: time.Second}}},
			tried:  []string{"1.1.1.1 after 0s", "2.2.2.2 after 250ms"}, won: "1.1.1.1", took: 300 * time.Millisecond,
		},
		{
			name: "a loser that connects later is closed", addrs: "1.1.1.1 2.2.2.2 3.3.3.3",
			script: script{deaf: true, outcomes: map[string]outcome{
				"1.1.1.1": {after: 400 * time.Millisecond}, "2.2.2.2": {after: 10 * time.Millisecond},
			}},
			tried: []string{"1.1.1.1 after 0s", "2.2.2.2 after 250ms"}, won: "2.2.2.2", took: 400 * time.Millisecond,
		},
		{
			name: "an address that is named twice is tried once", addrs: "1.1.1.1 1.1.1.1 ::ffff:1.1.1.1 2.2.2.2",
			script: script{outcomes: map[string]outcome{"1.1.1.1": {err: refused}, "2.2.2.2": {err: refused}}},
			tried:  []string{"1.1.1.1 after 0s", "2.2.2.2 after 0s"},
		},
		{
			name: "all refuse", addrs: "1.1.1.1 2.2.2.2 3.3.3.3",
			script: script{outcomes: map[string]outcome{"1.1.1.1": {err: refused}, "2.2.2.2": {err: refused}, "3.3.3.3": {err: refused}}},
			tried:  []string{"1.1.1.1 after 0s", "2.2.2.2 after 0s", "3.3.3.3 after 0s"},
		},
		{
			name: "all are silent until the timeout", addrs: "1.1.1.1 2.2.2.2",
			tried: []string{"1.1.1.1 after 0s", "2.2.2.2 after 250ms"}, took: DefaultTimeout,
		},
	}
	for i := range rows {
		row := &rows[i]
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &row.script
				s.start = time.Now()
				d := newDialer(t, Config{Resolve: answering(addrs(strings.Fields(row.addrs)...), nil)})
				d.connect = s.connect
				res, err := d.Dial(t.Context(), decide(t, "api.example", 443))
				if took := time.Since(s.start); took != row.took || res.Dial != row.took {
					t.Errorf("took %v, reported %v, want %v", took, res.Dial, row.took)
				}
				if !slices.Equal(s.tried, row.tried) {
					t.Errorf("tried %q, want %q", s.tried, row.tried)
				}
				switch {
				case row.won == "" && err == nil:
					t.Errorf("connected to %s", res.Addr)
				case row.won == "":
					if s.open.Load() != 0 {
						t.Errorf("%d connections left open", s.open.Load())
					}
				case err != nil:
					t.Error(err)
				default:
					if got := res.Addr.Addr().String(); got != row.won || s.open.Load() != 1 {
						t.Errorf("connected to %s, %d open; want %s alone", got, s.open.Load(), row.won)
					}
					_ = res.Conn.Close()
				}
			})
		})
	}
}

// TestManySilentAddresses checks that requests for a name with many addresses that never
// answer take one descriptor each, and that their further attempts leave a quarter of the
// descriptors free.
func TestManySilentAddresses(t *testing.T) {
	const most = 40
	synctest.Test(t, func(t *testing.T) {
		descriptors := limit.NewDescriptors(most)
		var silent []netip.Addr
		for i := range 64 {
			silent = append(silent, netip.AddrFrom4([4]byte{8, 8, 8, byte(i)}))
		}
		d := newDialer(t, Config{Resolve: answering(silent, nil), Descriptors: descriptors})
		d.connect = func(ctx context.Context, _ *allowlist.Decision, _ netip.AddrPort) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		var dialling sync.WaitGroup
		for range 3 {
			dialling.Go(func() {
				_, err := d.Dial(t.Context(), decide(t, "api.example", 443))
				wantReason(t, err, allowlist.DialTimeout)
			})
		}
		time.Sleep(DefaultTimeout - time.Second)
		if got := descriptors.Stats(); got.Used != most-most/4 || got.Missed != 0 {
			t.Errorf("%+v, want three quarters of them used", got)
		}
		dialling.Wait()
		if got := descriptors.Stats().Used; got != 0 {
			t.Errorf("%d descriptors are taken in the end", got)
		}
	})
}

// TestTimeoutBoundsLookUpAndDial checks that one time-out bounds the look-up and the dial
// together.
func TestTimeoutBoundsLookUpAndDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer(t, Config{
			Timeout: 3 * time.Second,
			Resolve: func(ctx context.Context, _ *allowlist.Decision) ([]allowlist.Resolved, error) {
				time.Sleep(2 * time.Second)
				return resolved(addrs("1.1.1.1")), ctx.Err()
			},
		})
		d.connect = (&script{}).connect
		res, err := d.Dial(t.Context(), decide(t, "api.example", 443))
		wantReason(t, err, allowlist.DialTimeout)
		if res.Resolve != 2*time.Second || res.Dial != time.Second {
			t.Errorf("resolve %v, dial %v", res.Resolve, res.Dial)
		}
	})
}

// TestAPanicReachesTheCaller checks that a panic in a goroutine of the race is raised in
// the goroutine of the caller, where the door recovers it. It would end the process
// otherwise.
func TestAPanicReachesTheCaller(t *testing.T) {
	var s script
	s.outcomes = map[string]outcome{"2.2.2.2": {}}
	d := newDialer(t, Config{Resolve: answering(addrs("1.1.1.1", "2.2.2.2"), nil), Stagger: time.Millisecond})
	d.connect = func(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
		if addr.Addr().String() == "1.1.1.1" {
			panic("planted")
		}
		return s.connect(ctx, dec, addr)
	}
	defer func() {
		cause := recover()
		if text, ok := cause.(string); !ok || !strings.HasPrefix(text, "planted\n") || !strings.Contains(text, "race_test.go") {
			t.Errorf("recovered %v, want the cause and its stack", cause)
		}
		if n := s.open.Load(); n != 0 {
			t.Errorf("%d connections left open", n)
		}
	}()
	_, err := d.Dial(t.Context(), decide(t, "api.example", 443))
	t.Errorf("Dial returned %v", err)
}

// TestInterleave checks that the addresses of a race take turns between IPv6 and IPv4.
func TestInterleave(t *testing.T) {
	rows := []struct{ in, want string }{
		{"1.1.1.1 2.2.2.2", "1.1.1.1 2.2.2.2"},
		{"1.1.1.1 2.2.2.2 3.3.3.3 a:: b::", "a:: 1.1.1.1 b:: 2.2.2.2 3.3.3.3"},
		{"a:: b:: c:: 1.1.1.1", "a:: 1.1.1.1 b:: c::"},
		{"", ""},
	}
	for _, row := range rows {
		var in []netip.AddrPort
		for _, a := range addrs(strings.Fields(row.in)...) {
			in = append(in, netip.AddrPortFrom(a, 443))
		}
		var got []string
		for _, a := range interleave(in) {
			got = append(got, a.Addr().String())
		}
		if s := strings.Join(got, " "); s != row.want {
			t.Errorf("%q became %q, want %q", row.in, s, row.want)
		}
	}
}
