package hostile

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// world is the resolver and the origins of a gateway.
type world struct {
	names *names

	// The policy allows the addresses of origin and six. forbidden has the same port on
	// an address that it does not allow.
	origin, forbidden *origin
	six               *origin // nil if there is no IPv6
}

func newWorld(tb testing.TB) world {
	tb.Helper()
	addrs := []string{"127.0.0.1", "127.0.0.2"}
	if hasIPv6() {
		addrs = append(addrs, "::1")
	}
	all := newOrigins(tb, addrs...)
	w := world{names: newNames(), origin: all[0], forbidden: all[1]}
	if len(all) > 2 {
		w.six = all[2]
	}
	return w
}

// hasIPv6 reports whether this machine has the loopback address of IPv6.
func hasIPv6() bool {
	data, err := os.ReadFile("/proc/net/if_inet6")
	return err == nil && strings.Contains(string(data), "00000000000000000000000000000001")
}

// origins returns all origins.
func (w world) origins() []*origin {
	all := []*origin{w.origin, w.forbidden}
	if w.six != nil {
		all = append(all, w.six)
	}
	return all
}

// counts are the numbers of lookups and of connections to origins.
type counts struct{ lookups, dials int64 }

func (w world) counts() counts {
	n := counts{lookups: w.names.lookups.Load()}
	for _, o := range w.origins() {
		n.dials += o.accepted.Load()
	}
	return n
}

// names is the resolver. It has a script for each name, and counts lookups.
type names struct {
	lookups atomic.Int64

	mu     sync.Mutex
	script map[string][]answerSet // answers by name, used in turn; the last one is repeated
	other  answerSet              // answer for every other name
	asking func(name string)      // called with the name of every lookup; may be nil
	// asked and answer let a test stop the lookup of held.example: resolve sends to asked
	// and then receives from answer.
	asked, answer chan struct{}
}

// answerSet is one answer of the resolver.
type answerSet struct {
	addrs []netip.Addr
	err   error
	stall bool // says that there is no answer
}

// answers returns an answer with these addresses.
func answers(texts ...string) answerSet {
	var set answerSet
	for _, text := range texts {
		set.addrs = append(set.addrs, netip.MustParseAddr(text))
	}
	return set
}

func newNames() *names {
	return &names{script: map[string][]answerSet{}, other: answers("127.0.0.1"), asked: make(chan struct{}), answer: make(chan struct{})}
}

// dns returns a resolver of queries that counts lookups and finds nothing.
func (n *names) dns() dns.Resolver {
	return dns.Resolver{
		Cached: func(resolve.Question, time.Time) (resolve.Answer, bool) { return resolve.Answer{}, false },
		Lookup: func(context.Context, resolve.Asker, resolve.Question) (resolve.Answer, error) {
			n.lookups.Add(1)
			return resolve.Answer{}, &allowlist.ReasonError{Reason: allowlist.ResolveFailed}
		},
		Bind: func(allowlist.Holder, resolve.Answer, time.Time, resolve.Filter) {},
	}
}

// say sets the answers for a name, which are used in turn.
func (n *names) say(name string, sets ...answerSet) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.script[name] = sets
}

// fallback sets the answer for every name without a script.
func (n *names) fallback(set answerSet) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.other = set
}

// resolve returns the next answer in the script of a name, or else the fallback, which is
// 127.0.0.1 at first.
func (n *names) resolve(ctx context.Context, d *allowlist.Decision) ([]netip.Addr, error) {
	host := d.Dest.Host
	if host.IsAddr() {
		return []netip.Addr{host.Addr()}, nil
	}
	n.lookups.Add(1)
	if n.asking != nil {
		n.asking(host.String())
	}
	if host.String() == "held.example" {
		n.asked <- struct{}{}
		<-n.answer
	}
	set := n.next(host.String())
	if set.stall {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return set.addrs, set.err
}

func (n *names) next(name string) answerSet {
	n.mu.Lock()
	defer n.mu.Unlock()
	sets := n.script[name]
	if len(sets) == 0 {
		return n.other
	}
	if len(sets) > 1 {
		n.script[name] = sets[1:]
	}
	return sets[0]
}

// origin accepts connections, counts them and passes them to the test.
type origin struct {
	addr     netip.AddrPort
	accepted atomic.Int64
	conns    chan *net.TCPConn
}

// newOrigins starts one origin for each address, all on the same port.
func newOrigins(tb testing.TB, addrs ...string) []*origin {
	tb.Helper()
	for range 20 {
		if all := tryOrigins(tb, addrs); all != nil {
			return all
		}
	}
	tb.Fatalf("no port is free on all of %v", addrs)
	return nil
}

// tryOrigins returns nil if the port of the first origin is not free on another address.
func tryOrigins(tb testing.TB, addrs []string) []*origin {
	tb.Helper()
	port := "0"
	var listeners []net.Listener
	for _, addr := range addrs {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, port))
		if err != nil {
			tb.Log(err)
			for _, l := range listeners {
				_ = l.Close()
			}
			return nil
		}
		listeners = append(listeners, l)
		_, port, _ = net.SplitHostPort(l.Addr().String())
	}
	all := make([]*origin, 0, len(listeners))
	for _, l := range listeners {
		all = append(all, newOrigin(tb, l))
	}
	return all
}

func newOrigin(tb testing.TB, l net.Listener) *origin {
	tb.Helper()
	o := &origin{addr: netip.MustParseAddrPort(l.Addr().String()), conns: make(chan *net.TCPConn, 1024)}
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			o.accepted.Add(1)
			o.conns <- conn.(*net.TCPConn)
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		accepting.Wait()
		for len(o.conns) > 0 {
			_ = (<-o.conns).Close()
		}
	})
	return o
}

// next returns the next connection from the gateway.
func (o *origin) next(tb testing.TB) *net.TCPConn {
	tb.Helper()
	select {
	case conn := <-o.conns:
		tb.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			tb.Fatal(err)
		}
		return conn
	case <-time.After(patience):
		tb.Fatal("the gateway made no connection to the origin")
		return nil
	}
}

// rest returns the connections that next has not returned, also those that are not
// accepted yet: it makes a connection itself, and waits for that one.
func (o *origin) rest(tb testing.TB) (conns []*net.TCPConn) {
	tb.Helper()
	last, err := net.Dial("tcp", o.addr.String())
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = last.Close() }()
	for {
		conn := o.next(tb)
		if conn.RemoteAddr().String() == last.LocalAddr().String() {
			o.accepted.Add(-1)
			return conns
		}
		conns = append(conns, conn)
	}
}

// sawNothing checks that the origin received no bytes on any connection.
func (o *origin) sawNothing(t *testing.T) {
	t.Helper()
	for _, conn := range o.rest(t) {
		if got := readAll(t, conn); got != "" {
			t.Errorf("the origin got %q", got)
		}
		_ = conn.Close()
	}
}

// brief shortens a text to its first line and 60 bytes, for the name of a case.
func brief(text string) string {
	line, _, _ := strings.Cut(text, "\r\n")
	return line[:min(len(line), 60)]
}
