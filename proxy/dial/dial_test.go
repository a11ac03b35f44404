package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/e2e/missing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counting is a listener on loopback that counts the connections it gets, and keeps them
// open until the test ends.
type counting struct {
	addr netip.AddrPort
	got  atomic.Int32
}

func listenOn(t *testing.T, address string) *counting {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		if strings.HasPrefix(address, "[::1]") {
			missing.Skip(t, "there is no IPv6 loopback: "+err.Error())
		}
		t.Fatal(err)
	}
	c := &counting{addr: netip.MustParseAddrPort(l.Addr().String())}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.got.Add(1)
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return c
}

// closedPort returns a port of 127.0.0.1 without a listener. Listeners on other loopback
// addresses may use it.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// decide returns a decision that allows a name on a port and the given address ranges
// for it, or denies it if there are none.
func decide(t *testing.T, host string, port uint16, ranges ...string) *allowlist.Decision {
	t.Helper()
	rule := allowlist.Rule{Ports: []allowlist.PortRange{{First: port, Last: port}}}
	var err error
	if rule.Host, err = allowlist.ParseHostPattern("api.example"); err != nil {
		t.Fatal(err)
	}
	for _, r := range ranges {
		rule.Addresses = append(rule.Addresses, netip.MustParsePrefix(r))
	}
	allow := []allowlist.Rule{rule}
	for _, r := range ranges {
		allow = append(allow, allowlist.Rule{CIDR: netip.MustParsePrefix(r), Ports: rule.Ports})
	}
	pattern, err := allowlist.ParseIdentityPattern("spiffe://td.example/a")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{Pattern: pattern, Allow: allow}}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := allowlist.ParseHost(host)
	if err != nil {
		t.Fatal(err)
	}
	dec := policy.Decide(allowlist.Request{
		ID: spiffeid.RequireFromString("spiffe://td.example/a"), Proof: allowlist.ProofX509SVID,
		Dest: allowlist.Destination{Host: h, Port: port},
	})
	return &dec
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func newDialer(t *testing.T, cfg Config) *Dialer {
	t.Helper()
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// answering returns a resolver with one answer.
func answering(addrs []netip.Addr, err error) func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) {
	return func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) { return resolved(addrs), err }
}

// resolved returns an answer with addresses of the name itself, without aliases.
func resolved(addrs []netip.Addr) (all []allowlist.Resolved) {
	for _, addr := range addrs {
		all = append(all, allowlist.Resolved{Addr: addr})
	}
	return all
}

func wantReason(t *testing.T, err error, want allowlist.Reason) {
	t.Helper()
	var failed *allowlist.ReasonError
	if !errors.As(err, &failed) || failed.Reason != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestNewRequiresAResolver(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no error")
	}
}

// TestAnswerSets dials destinations with many kinds of answers, over listeners on
// loopback that count their connections.
func TestAnswerSets(t *testing.T) {
	good := listenOn(t, "127.0.0.1:0")
	port := good.addr.Port()
	bad := listenOn(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port).String())
	many := make([]string, 65)
	for i := range many {
		many[i] = "127.0.0.2"
	}
	many[64] = "127.0.0.1" // the first address that is ignored
	rows := []struct {
		name    string
		answer  []string
		err     error
		reason  allowlist.Reason // NoReason means that the dial succeeds
		dropped int
		class   allowlist.Class
	}{
		{name: "one permitted address", answer: []string{"127.0.0.1"}},
		{name: "an IPv4-mapped address is the address", answer: []string{"::ffff:127.0.0.1"}},
		{name: "permitted and refused addresses", answer: []string{"127.0.0.2", "127.0.0.1", "10.0.0.1"}, dropped: 2, class: allowlist.Private},
		{name: "every address refused", answer: []string{"127.0.0.2", "169.254.169.254"}, reason: allowlist.ResolvedAddressDenied, dropped: 2, class: allowlist.Metadata},
		{name: "a public address outside of the rule's ranges", answer: []string{"8.8.8.8"}, reason: allowlist.ResolvedAddressDenied, dropped: 1, class: allowlist.OutsideRule},
		{name: "an address with a zone", answer: []string{"fe80::1%eth0"}, reason: allowlist.ResolvedAddressDenied, dropped: 1},
		{name: "no more than 64 addresses", answer: many, reason: allowlist.ResolvedAddressDenied, dropped: 64, class: allowlist.Loopback},
		{name: "an empty answer", reason: allowlist.ResolveFailed},
		{name: "a name that does not exist", err: errors.New("no such host"), reason: allowlist.ResolveFailed},
		{name: "an answer together with an error", answer: []string{"127.0.0.1"}, err: errors.New("broken"), reason: allowlist.ResolveFailed},
		{name: "an error that knows its reason", err: fmt.Errorf("looking up: %w", &allowlist.ReasonError{Reason: allowlist.NameBudget}), reason: allowlist.NameBudget},
		{name: "an error that has lost its reason", err: &allowlist.ReasonError{}, reason: allowlist.InternalError},
		{name: "the dialler's own timeout", err: context.DeadlineExceeded, reason: allowlist.ResolveTimeout},
		{name: "a socket's timeout", err: os.ErrDeadlineExceeded, reason: allowlist.ResolveTimeout},
		{name: "the gateway going down", err: context.Canceled, reason: allowlist.ResolveFailed},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			d := newDialer(t, Config{Resolve: answering(addrs(row.answer...), row.err)})
			res, err := d.Dial(t.Context(), decide(t, "api.example", port, "127.0.0.1/32"))
			if res.Dropped != row.dropped || res.Class != row.class {
				t.Errorf("%d dropped, of class %s; want %d, %s", res.Dropped, res.Class, row.dropped, row.class)
			}
			if row.reason != allowlist.NoReason {
				wantReason(t, err, row.reason)
				if res.Conn != nil || res.Addr.IsValid() {
					t.Errorf("connected to %s all the same", res.Addr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Conn.Close() }()
			if res.Addr != good.addr {
				t.Errorf("connected to %s, want %s", res.Addr, good.addr)
			}
		})
	}
	if n := bad.got.Load(); n != 0 {
		t.Errorf("a refused address got %d connections", n)
	}
}

// TestADeniedDecisionIsNotEvenLookedUp checks that Dial looks nothing up for a decision
// that denies.
func TestADeniedDecisionIsNotEvenLookedUp(t *testing.T) {
	d := newDialer(t, Config{Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) {
		t.Error("looked up")
		return nil, nil
	}})
	for name, dec := range map[string]*allowlist.Decision{
		"the zero decision": {}, "another host": decide(t, "evil.example", 443, "127.0.0.1/32"),
	} {
		res, err := d.Dial(t.Context(), dec)
		if res.Conn != nil {
			t.Errorf("%s: connected", name)
		}
		wantReason(t, err, allowlist.InternalError)
	}
}

// TestALiteralIsDialledAsItIs checks that an address literal is not dialled at another
// address that a resolver returns for it.
func TestALiteralIsDialledAsItIs(t *testing.T) {
	good := listenOn(t, "127.0.0.1:0")
	dec := decide(t, "127.0.0.1", good.addr.Port(), "127.0.0.1/32", "127.0.0.2/32")
	res, err := newDialer(t, Config{Resolve: answering(addrs("127.0.0.1"), nil)}).Dial(t.Context(), dec)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Conn.Close()
	if res.Addr != good.addr {
		t.Errorf("connected to %s", res.Addr)
	}
	res, err = newDialer(t, Config{Resolve: answering(addrs("127.0.0.2"), nil)}).Dial(t.Context(), dec)
	wantReason(t, err, allowlist.ResolvedAddressDenied)
	if res.Class != allowlist.NotDestination {
		t.Errorf("class %s", res.Class)
	}
}

// TestTheSocketIsCheckedAgain simulates DNS rebinding: an address that was not checked
// before reaches the socket, where the decision refuses it before a packet leaves.
func TestTheSocketIsCheckedAgain(t *testing.T) {
	good := listenOn(t, "127.0.0.1:0")
	other := listenOn(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), good.addr.Port()).String())
	dec := decide(t, "api.example", good.addr.Port(), "127.0.0.1/32")
	for _, addr := range []netip.AddrPort{other.addr, netip.AddrPortFrom(good.addr.Addr(), good.addr.Port()+1)} {
		conn, err := connect(t.Context(), dec, addr)
		var refused *allowlist.AddrError
		if conn != nil || !errors.As(err, &refused) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if n := other.got.Load(); n != 0 {
		t.Errorf("a refused address got %d connections", n)
	}

	// Dial returns the same refusal, for one address and in a race.
	dec = decide(t, "api.example", good.addr.Port(), "127.0.0.1/32", "127.0.0.3/32")
	for _, answer := range [][]netip.Addr{addrs("127.0.0.1"), addrs("127.0.0.1", "127.0.0.3")} {
		d := newDialer(t, Config{Resolve: answering(answer, nil)})
		d.connect = func(ctx context.Context, dec *allowlist.Decision, _ netip.AddrPort) (net.Conn, error) {
			return connect(ctx, dec, other.addr)
		}
		res, err := d.Dial(t.Context(), dec)
		wantReason(t, err, allowlist.ResolvedAddressDenied)
		if res.Conn != nil || res.Addr.IsValid() || res.Class != allowlist.Loopback {
			t.Errorf("got %+v", res)
		}
	}
}

// TestConnectFailures checks the reason of a dial if every address refuses the
// connection, and if its context is done.
func TestConnectFailures(t *testing.T) {
	port := closedPort(t)
	ask := func(ctx context.Context, answer ...string) (Result, error) {
		var ranges []string
		for _, a := range answer {
			ranges = append(ranges, a+"/32")
		}
		return newDialer(t, Config{Resolve: answering(addrs(answer...), nil)}).
			Dial(ctx, decide(t, "api.example", port, ranges...))
	}
	res, err := ask(t.Context(), "127.0.0.1")
	wantReason(t, err, allowlist.DialRefused)
	if want := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port); res.Addr != want {
		t.Errorf("the first address tried is %s, want %s", res.Addr, want)
	}
	_, err = ask(t.Context(), "127.0.0.1", "127.0.0.2", "127.0.0.3")
	wantReason(t, err, allowlist.DialRefused)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, answer := range [][]string{{"127.0.0.1"}, {"127.0.0.1", "127.0.0.2"}} {
		res, err := ask(cancelled, answer...)
		wantReason(t, err, allowlist.DialFailed)
		if res.Conn != nil {
			t.Error("a connection after the end")
		}
	}
}

// TestARefusedAddressIsFollowedAtOnce checks that the next address is tried as soon as
// one refuses the connection, and not after the delay between attempts, which is an hour
// here.
func TestARefusedAddressIsFollowedAtOnce(t *testing.T) {
	good := listenOn(t, "127.0.0.2:0") // 127.0.0.1 has no listener on this port
	d := newDialer(t, Config{Resolve: answering(addrs("127.0.0.1", "127.0.0.2"), nil), Stagger: time.Hour})
	res, err := d.Dial(t.Context(), decide(t, "api.example", good.addr.Port(), "127.0.0.1/32", "127.0.0.2/32"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Conn.Close() }()
	if res.Addr != good.addr {
		t.Errorf("connected to %s, want %s", res.Addr, good.addr)
	}
}

// TestIPv6 checks a dial to an IPv6 address.
func TestIPv6(t *testing.T) {
	good := listenOn(t, "[::1]:0")
	d := newDialer(t, Config{Resolve: answering(addrs("127.0.0.1", "::1"), nil)})
	res, err := d.Dial(t.Context(), decide(t, "api.example", good.addr.Port(), "127.0.0.1/32", "::1/128"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Conn.Close() }()
	if res.Addr != good.addr || good.got.Load() > 1 {
		t.Errorf("connected to %s, want %s", res.Addr, good.addr)
	}
}

// TestReasonOfSeveralErrors checks which error decides the reason of a dial with several
// attempts.
func TestReasonOfSeveralErrors(t *testing.T) {
	refused := &allowlist.AddrError{Class: allowlist.Private}
	rows := []struct {
		name string
		errs []error
		want allowlist.Reason
	}{
		{"an address that the decision refuses counts first", []error{syscall.ECONNREFUSED, context.DeadlineExceeded, refused}, allowlist.ResolvedAddressDenied},
		{"a refused connection counts before silence", []error{context.DeadlineExceeded, syscall.ECONNREFUSED}, allowlist.DialRefused},
		{"silence", []error{os.ErrDeadlineExceeded}, allowlist.DialTimeout},
		{"a time-out of the kernel", []error{syscall.ETIMEDOUT}, allowlist.DialTimeout},
		{"no route", []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH}, allowlist.DialFailed},
		{"a cancelled attempt", []error{context.Canceled}, allowlist.DialFailed},
	}
	for _, row := range rows {
		if got := dialReason(errors.Join(row.errs...)); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	}
}

// TestResultHasTheWayOfItsAddress checks that a result has the way of the address that was
// connected to.
func TestResultHasTheWayOfItsAddress(t *testing.T) {
	l := listenOn(t, "127.0.0.1:0")
	over := func(name string) allowlist.Way {
		host, err := allowlist.ParseHost(name)
		if err != nil {
			t.Fatal(err)
		}
		return allowlist.Way{Via: []allowlist.Host{host}, Inspect: true}
	}
	d := newDialer(t, Config{Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) {
		return []allowlist.Resolved{
			{Addr: netip.MustParseAddr("10.0.0.1"), Way: over("refused.example")}, {Addr: netip.MustParseAddr("::ffff:127.0.0.1"), Way: over("edge.example")},
		}, nil
	}})
	res, err := d.Dial(t.Context(), decide(t, "api.example", l.addr.Port(), "127.0.0.1/32"))
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Conn.Close()
	if len(res.Way.Via) != 1 || res.Way.Via[0].String() != "edge.example" || !res.Way.Inspect {
		t.Errorf("led there by %+v", res.Way)
	}
}
