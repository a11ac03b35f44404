package resolve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func host(t *testing.T, s string) allowlist.Host {
	t.Helper()
	h, err := allowlist.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// always answers every question with the same.
func always(a answer) func(dnsmessage.Question, string) answer {
	return func(dnsmessage.Question, string) answer { return a }
}

// want resolves a host and compares its addresses, in any order.
func want(t *testing.T, r *Resolver, name string, want ...string) {
	t.Helper()
	got, err := r.Resolve(t.Context(), host(t, name))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, netip.Addr.Compare)
	if !slices.Equal(got, addrs(want...)) {
		t.Errorf("%s: got %v, want %v", name, got, want)
	}
}

func TestWithoutAServer(t *testing.T) {
	hosts := map[allowlist.Host][]netip.Addr{
		host(t, "db.internal.example"): addrs("::ffff:10.0.0.1", "2001:db8::1"),
		host(t, "empty.example"):       nil,
	}
	s := newServer(t, always(answer{code: dnsmessage.RCodeNameError}))
	r := New(Config{Servers: []netip.AddrPort{s.addr}, Hosts: hosts})
	hosts[host(t, "late.example")] = addrs("10.0.0.2") // not the resolver's any more
	want(t, r, "db.internal.example", "10.0.0.1", "2001:db8::1")
	want(t, r, "db.internal.example", "10.0.0.1", "2001:db8::1")
	want(t, r, "empty.example")
	want(t, r, "192.0.2.1", "192.0.2.1")
	want(t, r, "::ffff:192.0.2.1", "192.0.2.1")
	want(t, r, "2001:db8::1", "2001:db8::1")
	if q := s.questions(); len(q) != 0 {
		t.Errorf("a server was asked: %q", q)
	}
	if _, err := r.Resolve(t.Context(), host(t, "late.example")); err == nil {
		t.Error("a name that was added later has an address")
	}
}

// TestOnlyTheNameIsAsked: also a single label, and a name that does not exist,
// is asked as it is and with nothing behind it.
func TestOnlyTheNameIsAsked(t *testing.T) {
	for _, name := range []string{"api.example", "single-label", "_svc._tcp.wild.example"} {
		s := newServer(t, always(answer{code: dnsmessage.RCodeNameError}))
		_, err := New(Config{Servers: []netip.AddrPort{s.addr}}).Resolve(t.Context(), host(t, name))
		var dns *net.DNSError
		if !errors.As(err, &dns) || !dns.IsNotFound || dns.IsTimeout {
			t.Errorf("%s: %v, want not found", name, err)
		}
		got := s.questions()
		slices.Sort(got)
		if want := []string{"udp A " + name + ".", "udp AAAA " + name + "."}; !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := newServer(t, func(q dnsmessage.Question, _ string) answer {
		switch q.Name.String() {
		case "both.example.":
			return answer{addrs: addrs("192.0.2.1", "192.0.2.2", "2001:db8::1")}
		case "mapped.example.":
			return answer{addrs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.7")}}
		case "half.example.": // one family fails, the other answers
			if q.Type == dnsmessage.TypeAAAA {
				return answer{code: dnsmessage.RCodeServerFailure}
			}
			return answer{addrs: addrs("192.0.2.3")}
		}
		return answer{code: dnsmessage.RCodeNameError}
	})
	r := New(Config{Servers: []netip.AddrPort{s.addr}})
	want(t, r, "both.example", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	want(t, r, "mapped.example", "192.0.2.7")
	want(t, r, "half.example", "192.0.2.3")
}

// TestATruncatedAnswerIsAskedAgainOverTCP, of the server that gave it.
func TestATruncatedAnswerIsAskedAgainOverTCP(t *testing.T) {
	script := func(_ dnsmessage.Question, network string) answer {
		return answer{truncated: network == "udp", addrs: addrs("192.0.2.1")}
	}
	s, other := newServer(t, script), newServer(t, script)
	want(t, New(Config{Servers: []netip.AddrPort{s.addr, other.addr}}), "api.example", "192.0.2.1")
	got := s.questions()
	slices.Sort(got)
	if want := []string{"tcp A api.example.", "tcp AAAA api.example.", "udp A api.example.", "udp AAAA api.example."}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	if q := other.questions(); len(q) != 0 {
		t.Errorf("the other server was asked: %q", q)
	}
}

func TestFailover(t *testing.T) {
	good := always(answer{addrs: addrs("192.0.2.1")})
	closed := func(t *testing.T) netip.AddrPort {
		t.Helper()
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return netip.MustParseAddrPort(conn.LocalAddr().String())
	}
	for name, first := range map[string]netip.AddrPort{
		"a silent server":    newServer(t, always(answer{silent: true})).addr,
		"a failing server":   newServer(t, always(answer{code: dnsmessage.RCodeServerFailure})).addr,
		"a refusing server":  newServer(t, always(answer{code: dnsmessage.RCodeRefused})).addr,
		"nobody on the port": closed(t),
	} {
		t.Run(name, func(t *testing.T) {
			r := New(Config{Servers: []netip.AddrPort{first, newServer(t, good).addr}})
			r.try = 300 * time.Millisecond
			want(t, r, "api.example", "192.0.2.1")
		})
	}
}

// TestAnAnswerEndsTheSearch: that a name does not exist is an answer, the next
// server is not asked for a better one.
func TestAnAnswerEndsTheSearch(t *testing.T) {
	no, yes := newServer(t, always(answer{code: dnsmessage.RCodeNameError})), newServer(t, always(answer{addrs: addrs("192.0.2.1")}))
	empty := newServer(t, always(answer{}))
	for _, first := range []*server{no, empty} {
		got, err := New(Config{Servers: []netip.AddrPort{first.addr, yes.addr}}).Resolve(t.Context(), host(t, "api.example"))
		if err == nil {
			t.Errorf("got %v", got)
		}
	}
	if q := yes.questions(); len(q) != 0 {
		t.Errorf("the second server was asked: %q", q)
	}
}

// TestAllServersFail tries each twice, and says what the last one did.
func TestAllServersFail(t *testing.T) {
	var servers []*server
	var cfg Config
	for range 2 {
		s := newServer(t, always(answer{silent: true}))
		servers = append(servers, s)
		cfg.Servers = append(cfg.Servers, s.addr)
	}
	r := New(cfg)
	r.try = 150 * time.Millisecond
	_, err := r.Resolve(t.Context(), host(t, "api.example"))
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsTimeout {
		t.Errorf("%v, want a timeout", err)
	}
	for i, s := range servers {
		n := 0
		for _, q := range s.questions() {
			if strings.Contains(q, " A ") {
				n++
			}
		}
		if n != rounds {
			t.Errorf("server %d was asked %d times, want %d", i, n, rounds)
		}
	}
}

func TestTheCallersTimeIsKept(t *testing.T) {
	s := newServer(t, always(answer{silent: true}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := New(Config{Servers: []netip.AddrPort{s.addr}}).Resolve(ctx, host(t, "api.example"))
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsTimeout {
		t.Errorf("%v, want a timeout", err)
	}
	if n := len(s.questions()); n > 2 {
		t.Errorf("asked %d times after the time was over", n)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := newServer(t, func(q dnsmessage.Question, _ string) answer {
		if q.Name.String() == "a.example." {
			return answer{addrs: addrs("192.0.2.1")}
		}
		return answer{addrs: addrs("192.0.2.2")}
	})
	r := New(Config{Servers: []netip.AddrPort{s.addr}})
	var running sync.WaitGroup
	for i := range 40 {
		running.Go(func() {
			name, addr := "a.example", "192.0.2.1"
			if i%2 == 1 {
				name, addr = "b.example", "192.0.2.2"
			}
			got, err := r.Resolve(t.Context(), host(t, name))
			if err != nil || !slices.Equal(got, addrs(addr)) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		})
	}
	running.Wait()
}
