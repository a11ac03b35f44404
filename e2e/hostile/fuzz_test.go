package hostile

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// fuzzPolicy allows loopback addresses only, so that no fault which the fuzzer finds can
// send a packet to another machine.
const fuzzPolicy = `version: 1
identities:
  - id: spiffe://test.example/sidecar
    allow:
      - {host: allowed.example, ports: [PORT], addresses: 127.0.0.1/32}
      - {host: "**.wild.example", ports: [PORT], addresses: 127.0.0.1/32}
      - {host: read-only.example, ports: [PORT], methods: [GET], addresses: 127.0.0.1/32}
      - {cidr: 127.0.0.1/32, ports: [PORT]}
    deny:
      - {host: denied.wild.example}
`

// permitted reports whether fuzzPolicy allows a request. It is independent of the
// gateway.
func permitted(r record, port uint16) bool {
	name := r.Host == "allowed.example" || r.Host == "127.0.0.1" ||
		strings.HasSuffix(r.Host, ".wild.example") && r.Host != "denied.wild.example"
	name = name || r.Host == "read-only.example" && r.Protocol == "http" && r.Method == "GET"
	return name && strings.ToLower(r.Host) == r.Host && r.Port == port && r.Address == netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String()
}

// seeds returns requests of every kind.
func seeds() []string {
	good, labels := connectTo("allowed.example:PORT"), strings.Repeat(strings.Repeat("a", 60)+".", 3)
	all := []string{
		// The shortest heads that reach an origin, with a long free part of the name.
		"CONNECT " + labels + "wild.example:PORT HTTP/1.0\r\n\r\n", "GET http://" + labels + "wild.example:PORT/ HTTP/1.0\r\n\r\n",
		good, good + "early bytes", connectTo("a.wild.example:PORT"), connectTo("denied.wild.example:PORT"), connectTo("127.0.0.1:PORT"), connectTo("[::ffff:127.0.0.1]:PORT"),
		connectTo("evil.test:443") + good, connectTo("allowed.example:0") + good, "CONNECT allowed.example:PORT HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n" + good,
		line + host + "Transfer-Encoding: chunked\r\n\r\n", line + host + "Content-Length: 4\r\n\r\nbody" + good, line + "Host: other.example\r\n\r\n", line + host + host + "\r\n",
		line + host + "X: a\r\n b\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", get("http://allowed.example:PORT/"),
		get("http://allowed.example:PORT/a?b") + get("http://evil.test/") + get("http://a.wild.example:PORT/"), get("http://read-only.example:PORT/"), getLine + "Host: evil.test\r\n\r\n",
		post + "Content-Length: 4\r\n\r\nbody" + good, post + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + get("http://allowed.example:PORT/"),
		post + "Transfer-Encoding: chunked\r\n\r\n\n\n\n", // found by the fuzzer: it was recorded as denied after its head had been sent
		post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", get("http://allowed.example:PORT/", "Connection: Upgrade", "Upgrade: x"), get("http://u@allowed.example:PORT/"),
	}
	for _, target := range []string{
		"ALLOWED.example.:PORT", "allowed.example..:PORT", "x.wild.example.evil.test:PORT", "wild.example:PORT", "0x7f.1:PORT", "127.0.0.2:PORT", "[::1]:PORT", "[127.0.0.1]:PORT",
		"allowed.example@evil.test:PORT", "allowed.example:PORT/", "allowed.example%00.evil.test:PORT", "xn--a.wild.example:PORT", "a b:PORT", "allowed.example:0PORT", "127.0.0.1:LISTENER",
	} {
		all = append(all, connectTo(target))
	}
	return all
}

// FuzzConnection checks a property for any bytes on a connection and any answer of the
// resolver: bytes reach an origin only at an address that passes the check of a decision,
// and the decision allows the very host that was looked up and recorded.
func FuzzConnection(f *testing.F) {
	for i, raw := range seeds() {
		f.Add([]byte(raw), byte(i))
	}
	w := newWatched(f)
	f.Fuzz(func(t *testing.T, raw []byte, answer byte) {
		if len(raw) > 96<<10 { // more than a head may have; longer inputs are only slower
			return
		}
		w.begin(answer)
		w.send(t, w.fill(string(raw)))
		decisions := w.records(t)
		w.await(t, decisions)
		w.check(t, decisions)
	})
}

// watched is a gateway whose lookups and connections to origins are all noted.
type watched struct {
	*gateway
	taken uint64 // number of records that were read

	mu    sync.Mutex
	asked []string            // names that the resolver was asked for
	got   map[string][]string // what each connection received, by the origin's address
}

func newWatched(tb testing.TB) *watched {
	tb.Helper()
	w := &watched{gateway: newGateway(tb, options{})}
	w.put(tb, w.fill(fuzzPolicy))
	w.taken = w.recorder.Stats().Sinks[0].Made
	w.names.asking = func(name string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked = append(w.asked, name)
	}
	ctx, stop := context.WithCancel(context.Background())
	var answering sync.WaitGroup
	for _, o := range w.origins() {
		answering.Go(func() { w.answer(ctx, o) })
	}
	tb.Cleanup(func() {
		stop()
		answering.Wait()
	})
	return w
}

// answer serves every connection to an origin and notes what it received.
func (w *watched) answer(ctx context.Context, o *origin) {
	for {
		select {
		case conn := <-o.conns:
			got := serve(conn)
			w.mu.Lock()
			w.got[o.addr.String()] = append(w.got[o.addr.String()], got)
			w.mu.Unlock()
			_ = conn.Close()
		case <-ctx.Done():
			return
		}
	}
}

// serve reads a connection to its end, and answers once if a head has come.
func serve(conn *net.TCPConn) string {
	_ = conn.SetDeadline(time.Now().Add(patience))
	var got []byte
	answered := false
	for buf := make([]byte, 4<<10); ; {
		n, err := conn.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return string(got)
		}
		if !answered && bytes.Contains(got, []byte("\r\n\r\n")) {
			answered = true
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			_ = conn.CloseWrite()
		}
	}
}

// begin forgets the connection before, and sets the addresses to which all names resolve.
func (w *watched) begin(answer byte) {
	sets := []answerSet{
		answers("127.0.0.1"), answers("127.0.0.2"), answers("127.0.0.2", "127.0.0.1"), answers("::1", "127.0.0.1"), answers("::ffff:127.0.0.1"), answers(),
	}
	w.names.fallback(sets[int(answer)%len(sets)])
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked, w.got = nil, map[string][]string{}
}

// send sends bytes on a new connection, and reads it to its end.
func (w *watched) send(t *testing.T, raw string) {
	t.Helper()
	conn, err := net.Dial("tcp", w.plain.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, raw); err == nil {
		_ = conn.(*net.TCPConn).CloseWrite()
	}
	if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
		t.Fatalf("the connection does not end: %v", err)
	}
}

// records returns the decisions of the connection. All its records are made before it
// ends, except the end of a tunnel, for which it waits.
func (w *watched) records(t *testing.T) (decisions []record) {
	t.Helper()
	open := 0
	late := time.After(patience)
	for open > 0 || w.taken < w.recorder.Stats().Sinks[0].Made {
		select {
		case r := <-w.evidence.records:
			w.taken++
			switch r.Event {
			case string(audit.EventDecision):
				decisions = append(decisions, r)
				if wentOut(r) {
					open++
				}
			case string(audit.EventTunnelClose):
				open--
			}
		case <-late:
			t.Fatalf("%d tunnels have no end, %d records of %d", open, w.taken, w.recorder.Stats().Sinks[0].Made)
		}
	}
	return decisions
}

// wentOut reports whether a connection to an origin was made and used. If so, another
// record tells of its end; for a refused request it comes after the end of the request.
func wentOut(r record) bool {
	switch r.Reason {
	case "malformed-header", "client-gone", "response-failed", "response-timeout":
		return r.Protocol == "http" && r.Verdict == "fail" && r.Address != "" // not for a head that was incomplete
	}
	return r.Status == 200
}

// await waits until the origins have noted the connections of all tunnels and exchanges.
// An origin may read the end of a connection a moment after the gateway has recorded it.
func (w *watched) await(t *testing.T, decisions []record) {
	t.Helper()
	want := 0
	for _, r := range decisions {
		if wentOut(r) {
			want++
		}
	}
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		w.mu.Lock()
		seen := 0
		for _, conns := range w.got {
			seen += len(conns)
		}
		w.mu.Unlock()
		switch {
		case seen >= want:
			return
		case time.Now().After(end):
			t.Fatalf("the origins saw %d connections, want %d", seen, want)
		}
	}
}

// check checks the property of FuzzConnection.
func (w *watched) check(t *testing.T, decisions []record) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	dialled := map[string]int{}
	for _, r := range decisions {
		allowed := r.Verdict == "allow" || r.Verdict == "observe"
		if allowed && !permitted(r, w.origin.addr.Port()) {
			t.Errorf("allowed: %s", r.Line)
		}
		if allowed != (r.Status == 200) || (r.Reason == "") != allowed {
			t.Errorf("a verdict that is not the answer: %s", r.Line)
		}
		if allowed {
			dialled[r.Address]++
			w.checkDecision(t, r)
		}
		switch failed := r.Verdict == "fail" || r.Reason == "resolved-address-denied"; {
		case !allowed && !failed || r.Host == "127.0.0.1":
		case len(asked) > 0 && asked[0] == r.Host:
			asked = asked[1:]
		case allowed:
			t.Errorf("allowed and not looked up: %s", r.Line)
		}
		if r.Verdict == "fail" && r.Address != "" { // the address may have been reached before the request failed
			dialled[r.Address]++
		}
	}
	if len(asked) > 0 {
		t.Errorf("looked up and not recorded: %q of %q", asked, w.asked)
	}
	for addr, conns := range w.got {
		if len(conns) > dialled[addr] {
			t.Errorf("%d connections to %s, which %d decisions have led to: %q", len(conns), addr, dialled[addr], conns)
		}
	}
	if n := w.forbidden.accepted.Load(); n > 0 {
		t.Errorf("%d connections to an address that no rule opens", n)
	}
}

// checkDecision decides a recorded request again, and checks its address.
func (w *watched) checkDecision(t *testing.T, r record) {
	t.Helper()
	req := allowlist.Request{
		ID: spiffeid.RequireFromString(r.Identity), Proof: allowlist.ProofListener, Time: time.Now(),
		Dest: allowlist.Destination{Host: mustHost(r.Host), Port: r.Port},
	}
	if r.Protocol == "http" {
		req.Method, req.Path = r.Method, "/"
	}
	d := w.running.State().Decide(req)
	addr, err := netip.ParseAddrPort(r.Address)
	if err != nil || !d.Allowed() || d.CheckAddr(addr) != nil {
		t.Errorf("the decision is %v, the address check %v: %s", d.Reason, d.CheckAddr(addr), r.Line)
	}
}
