package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestDeniedRequestsSpendTheBudgetOfTheirIdentity checks that denied requests count too,
// and that other identities are not affected.
func TestDeniedRequestsSpendTheBudgetOfTheirIdentity(t *testing.T) {
	g := newGateway(t, options{limits: limit.Config{Requests: 5}})
	for deadline := time.Now().Add(patience); ; {
		a := g.call(t, "builder").ask(t, connectTo("secret.example:443"))
		r := g.next(t, audit.EventDecision)
		if r.Reason != a.reason() {
			t.Fatalf("answered %s, record %+v", a.phrase, r)
		}
		if a.status == 429 {
			if r.Reason != "rate-limited" || r.Identity != id("builder").String() || a.header.Get("Retry-After") == "" || !a.close {
				t.Errorf("answered %s %v, record %+v", a.phrase, a.header, r)
			}
			break
		}
		if a.reason() != "not-on-allowlist" || time.Now().After(deadline) {
			t.Fatalf("answered %s, and never rate-limited", a.phrase)
		}
	}
	if a := g.call(t, "reporter").ask(t, connectTo("secret.example:443")); a.reason() != "not-on-allowlist" {
		t.Errorf("another identity is answered %s", a.phrase)
	}
	for range 20 { // these are refused before they count
		if a := g.call(t, "legacy").ask(t, connectTo("secret.example:443")); a.reason() != "quarantined" {
			t.Errorf("a quarantined one is answered %s", a.phrase)
		}
	}
	if n := g.names.lookups.Load(); n != 0 {
		t.Errorf("%d lookups", n)
	}
}

// limited puts a policy in force with these limits for builder.
func (g *gateway) limited(t *testing.T, own, shared allowlist.Limits) {
	t.Helper()
	spec := g.policy()
	spec.Entries[0].Limits = own
	all, err := allowlist.ParseIdentityPattern("spiffe://test.example/**")
	if err != nil {
		t.Fatal(err)
	}
	spec.Entries = append(spec.Entries, allowlist.Entry{Pattern: all, SharedLimits: shared})
	g.swap(t, spec)
}

// TestTunnelLimitOfAnIdentity checks that no look-up is made for a tunnel over the limit,
// and that a failed dial and every end of a tunnel give the place back.
func TestTunnelLimitOfAnIdentity(t *testing.T) {
	g := newGateway(t, options{})
	g.limited(t, allowlist.Limits{Tunnels: 1}, allowlist.Limits{})
	for range 3 {
		if a := g.call(t, "builder").ask(t, connectTo(g.at("unknown.example"))); a.reason() != "resolve-failed" {
			t.Fatalf("answered %s", a.phrase)
		}
		g.next(t, audit.EventDecision)
		c, origin := g.open(t)
		before := g.names.lookups.Load()
		a := g.call(t, "builder").ask(t, connectTo(g.at("allowed.example")))
		if a.status != 429 || a.reason() != "tunnel-limit" || a.header.Get("Retry-After") == "" {
			t.Errorf("answered %s %v", a.phrase, a.header)
		}
		if r := g.next(t, audit.EventDecision); r.Reason != "tunnel-limit" || r.Verdict != "deny" || r.Status != 429 {
			t.Errorf("record %+v", r)
		}
		if n := g.names.lookups.Load(); n != before {
			t.Errorf("%d lookups for a tunnel that may not be", n-before)
		}
		other := g.call(t, "reporter")
		if a := other.ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
			t.Errorf("another identity is answered %s", a.phrase)
		}
		g.next(t, audit.EventDecision)
		_ = g.origin.next(t).Close()
		_ = other.Close()
		_ = c.Close()
		_ = origin.Close()
		for range 2 {
			g.next(t, audit.EventTunnelClose)
		}
		g.idle(t)
	}
}

// idle waits until all tunnels have given their places back.
func (g *gateway) idle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		lease, reason, _ := g.budgets.Exchange(g.current.Load().Policy, allowlist.HolderOf(id("builder"), allowlist.ProofX509SVID))
		if reason == allowlist.NoReason {
			lease.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a tunnel that has ended keeps its place")
		}
	}
}

// TestPlainRequestsCountAsOpenTunnels checks that plain requests count as open tunnels
// while they last, whatever they wait for, but not as new tunnels per second. No look-up
// is made for a request over the limit.
func TestPlainRequestsCountAsOpenTunnels(t *testing.T) {
	g := newGateway(t, options{})
	g.limited(t, allowlist.Limits{Tunnels: 1, ConnectsPerSecond: 1}, allowlist.Limits{})
	for range 3 {
		slow := g.call(t, "builder")
		slow.send(t, get("http://"+g.at("allowed.example")+"/"))
		origin := g.origin.next(t)
		if _, err := http.ReadRequest(bufio.NewReader(origin)); err != nil {
			t.Fatal(err)
		}
		before := g.names.lookups.Load()
		for _, another := range []string{get("http://" + g.at("allowed.example") + "/"), connectTo(g.at("allowed.example"))} {
			if a := g.call(t, "builder").ask(t, another); a.status != 429 || a.reason() != "tunnel-limit" || a.header.Get("Retry-After") == "" {
				t.Errorf("answered %s %v", a.phrase, a.header)
			}
			if r := g.next(t, audit.EventDecision); r.Reason != "tunnel-limit" || r.Verdict != "deny" || r.Status != 429 {
				t.Errorf("record %+v", r)
			}
		}
		if n := g.names.lookups.Load(); n != before {
			t.Errorf("%d lookups for what may not be", n-before)
		}
		if _, err := io.WriteString(origin, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(slow.reader, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
		g.idle(t)
	}
}

// TestSharedTunnelLimit checks a limit of one tunnel for all identities of a pattern
// together.
func TestSharedTunnelLimit(t *testing.T) {
	g := newGateway(t, options{})
	g.limited(t, allowlist.Limits{}, allowlist.Limits{Tunnels: 1})
	g.open(t)
	if a := g.call(t, "reporter").ask(t, connectTo(g.at("allowed.example"))); a.reason() != "tunnel-limit" {
		t.Errorf("answered %s", a.phrase)
	}
}

// TestUploadLimitEndsTheTunnel checks that only bytes from the caller count, and that a
// reload does not reset the budget.
func TestUploadLimitEndsTheTunnel(t *testing.T) {
	g := newGateway(t, options{})
	g.limited(t, allowlist.Limits{UploadPerHour: 1000}, allowlist.Limits{})
	c, origin := g.open(t)
	if _, err := io.WriteString(origin, strings.Repeat("d", 5000)); err != nil { // bytes to the client do not count
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c.reader, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	c.send(t, strings.Repeat("u", 900))
	if _, err := io.ReadFull(origin, make([]byte, 900)); err != nil {
		t.Fatal(err)
	}
	g.current.Swap(g.current.Load().Policy, time.Now()) // a reload does not reset the budget
	g.budgets.Apply(g.current.Load().Policy)
	c.send(t, strings.Repeat("u", 500))
	c.ended(t)
	if got := readAll(t, origin); got != "" {
		t.Errorf("the origin got %d bytes more", len(got))
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "limit" || r.Reason != "upload-limit" || r.Up != 900 {
		t.Errorf("record %+v, want the limit after 900 bytes", r)
	}
}

// TestSourceFarOverItsBudgetGetsNoHandshake checks that connections of a source address
// far over its budget are closed without a handshake, and recorded.
func TestSourceFarOverItsBudgetGetsNoHandshake(t *testing.T) {
	g := newGateway(t, options{limits: limit.Config{Connections: 8}})
	for range 9 { // the last one may be answered
		g.callPlain(t)
	}
	for _, addr := range []string{g.secure.String(), g.plain.String()} {
		for deadline := time.Now().Add(patience); ; { // the nine connections count only when they are served
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				break // the connection was closed
			}
			if time.Now().After(deadline) {
				t.Fatal("a connection too many is served")
			}
		}
		if r := g.next(t, audit.EventHandshake); r.Reason != "rate-limited" || r.ID == "" {
			t.Errorf("record %+v", r)
		}
	}
}

// TestBodiesOfPlainRequestsCountAsUpload checks that the body of a request counts like the
// upload of a tunnel.
func TestBodiesOfPlainRequestsCountAsUpload(t *testing.T) {
	g := newGateway(t, options{})
	g.limited(t, allowlist.Limits{UploadPerHour: 2000}, allowlist.Limits{})
	for _, row := range []struct {
		body int
		want string
	}{{900, ""}, {1101, "cut-off"}} {
		c := g.call(t, "builder")
		c.send(t, fmt.Sprintf("POST http://%s/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s",
			g.at("allowed.example"), row.body, strings.Repeat("b", row.body)))
		if row.want == "" {
			origin := g.origin.next(t)
			req, err := http.ReadRequest(bufio.NewReader(origin))
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, req.Body); n != int64(row.body) || err != nil {
				t.Fatalf("the origin got %d bytes, %v", n, err)
			}
			if _, err := io.WriteString(origin, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.ReadResponse(c.reader, nil)
		if err != nil {
			t.Fatalf("%d bytes: %v", row.body, err)
		}
		a := answer{header: resp.Header}
		if a.reason() != row.want || row.want != "" && resp.StatusCode != http.StatusBadGateway {
			t.Errorf("%d bytes: answered %s (%s), want %q", row.body, resp.Status, a.reason(), row.want)
		}
		if r := g.next(t, audit.EventDecision); r.Reason != row.want {
			t.Errorf("record %+v", r)
		}
		_ = c.Close()
		if r := g.next(t, audit.EventTunnelClose); (r.CloseReason == "limit") != (row.want != "") {
			t.Errorf("record %+v", r)
		}
	}
}

// TestHeadsAndTrailersCountAsUpload checks that a query, a field and a trailer count like
// a body, since they can upload as much.
func TestHeadsAndTrailersCountAsUpload(t *testing.T) {
	for _, row := range []struct {
		name, request string
		out           bool // the head goes out
		status        int
		reason        string
	}{
		{"a query", "GET http://%s/?%s HTTP/1.1\r\nHost: x\r\n\r\n", false, 429, "upload-limit"},
		{"a field", "GET http://%s/ HTTP/1.1\r\nHost: x\r\nX-Out: %s\r\n\r\n", false, 429, "upload-limit"},
		{"a trailer", "POST http://%s/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Out\r\n\r\n1\r\nb\r\n0\r\nX-Out: %s\r\n\r\n", true, 502, "cut-off"},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{})
			g.limited(t, allowlist.Limits{UploadPerHour: 1000}, allowlist.Limits{})
			secret := strings.Repeat("s", 1001)
			c := g.call(t, "builder")
			c.send(t, fmt.Sprintf(row.request, g.at("allowed.example"), secret))
			if got := readAll(t, g.origin.next(t)); strings.Contains(got, secret) || row.out == (got == "") {
				t.Errorf("the origin got %d bytes", len(got))
			}
			a := c.answer(t)
			if r := g.next(t, audit.EventDecision); a.status != row.status || a.reason() != row.reason || r.Reason != row.reason {
				t.Errorf("answered %s, record %+v", a.phrase, r)
			}
			if row.out {
				if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "limit" {
					t.Errorf("record %+v", r)
				}
			}
		})
	}
}

// TestPlainRequestIsRefusedWhereTLSIsRequired checks that plain http to a host whose rule
// requires TLS is refused before the look-up.
func TestPlainRequestIsRefusedWhereTLSIsRequired(t *testing.T) {
	g := newGateway(t, options{})
	g.checked(t)
	for host, want := range map[string]string{"strict.example": "not-tls", "127.0.0.1": "not-tls"} {
		c := g.call(t, "builder")
		c.send(t, "GET http://"+g.at(host)+"/ HTTP/1.1\r\nHost: x\r\n\r\n")
		if a := c.answer(t); a.status != 403 || a.reason() != want {
			t.Errorf("%s: answered %s", host, a.phrase)
		}
		if r := g.next(t, audit.EventDecision); r.Reason != want || r.Verdict != "deny" {
			t.Errorf("record %+v", r)
		}
		_ = c.Close()
	}
	if g.names.lookups.Load() != 0 || g.origin.accepted.Load() != 0 {
		t.Error("it came further than the decision")
	}
}
