package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// world holds a gateway in each condition that has a reason of its own. All share their
// evidence.
type world struct {
	*evidence
	ready, hasty, empty, busy, draining *gateway

	far, crowded, spent *gateway // the limit of connections of a source, of tunnels, of bytes is reached
}

func newWorld(t *testing.T) *world {
	t.Helper()
	e := newEvidence(t)
	w := &world{
		evidence: e,
		ready:    newGateway(t, options{evidence: e}),
		hasty:    newGateway(t, options{evidence: e, headTimeout: 400 * time.Millisecond, dialTimeout: 400 * time.Millisecond, forward: forward.Config{Response: 400 * time.Millisecond}}),
		empty:    newGateway(t, options{evidence: e, noPolicy: true}),
		busy:     newGateway(t, options{evidence: e, slots: 256, headTimeout: time.Hour}),
		draining: newGateway(t, options{evidence: e}),
		far:      newGateway(t, options{evidence: e, headTimeout: time.Hour, limits: limit.Config{Connections: 64}}),
		crowded:  newGateway(t, options{evidence: e, limits: limit.Config{Identity: allowlist.Limits{Tunnels: 1}}}),
		spent:    newGateway(t, options{evidence: e, limits: limit.Config{Identity: allowlist.Limits{UploadPerHour: 1}}}),
	}
	for g, n := range map[*gateway]int{w.crowded: 0, w.spent: 1} {
		lease, _, _ := g.budgets.Open(nil, allowlist.HolderOf(id("builder"), allowlist.ProofX509SVID))
		lease.Spend(n)
		t.Cleanup(lease.Close)
	}
	for range limit.SharesOf(256).PerIdentity { // builder's whole share, each idle after a denial
		w.busy.call(t, "builder").ask(t, "GET http://denied.example/ HTTP/1.1\r\nHost: denied.example\r\n\r\n")
		e.next(t, audit.EventDecision)
	}
	for range 64 {
		w.far.callPlain(t)
	}
	w.draining.proxy.Drain()
	e.spans.Reset()
	return w
}

// wireCase makes one decision over the wire, with additional fields in the head if it has
// one.
type wireCase struct {
	reason allowlist.Reason
	slow   bool // the case waits for a deadline
	plain  bool // it is a plain request that has reached the origin
	cause  allowlist.Cause
	// decide returns the zero answer if there is no answer.
	decide func(t *testing.T, w *world, fields ...string) answer
}

// asked returns the case of a CONNECT to the gateway that is ready.
func asked(reason allowlist.Reason, who, where string) wireCase {
	return wireCase{reason: reason, decide: func(t *testing.T, w *world, fields ...string) answer {
		t.Helper()
		where := strings.ReplaceAll(where, "PORT", strconv.Itoa(int(w.ready.origin.port)))
		return w.ready.call(t, who).askOnce(t, connectTo(where, fields...))
	}}
}

// malformed returns the case of a malformed head from builder.
func malformed(reason allowlist.Reason, raw string) wireCase {
	return wireCase{reason: reason, decide: func(t *testing.T, w *world, fields ...string) answer {
		t.Helper()
		end := strings.LastIndex(raw, "\r\n")
		var more strings.Builder
		for _, f := range fields {
			more.WriteString(f + "\r\n")
		}
		return w.ready.call(t, "builder").askOnce(t, raw[:end]+more.String()+raw[end:])
	}}
}

// shown returns the case of a request with a certificate that is not accepted.
func shown(reason allowlist.Reason, certificate func(t *testing.T, ca *testCA) tls.Certificate) wireCase {
	return wireCase{reason: reason, decide: func(t *testing.T, w *world, fields ...string) answer {
		t.Helper()
		return w.ready.callWith(t, certificate(t, w.ready.ca)).askOnce(t, connectTo("allowed.example:443", fields...))
	}}
}

// of returns the case of a good request to another gateway of the world.
func of(reason allowlist.Reason, state func(*world) *gateway) wireCase {
	return wireCase{reason: reason, decide: func(t *testing.T, w *world, fields ...string) answer {
		t.Helper()
		return state(w).call(t, "builder").askOnce(t, connectTo(state(w).at("allowed.example"), fields...))
	}}
}

// with9209 sets the cause of a case, which has an error type of its own in RFC 9209.
func with9209(c wireCase, cause allowlist.Cause) wireCase {
	c.cause = cause
	return c
}

// askOnce sends a head, reads the answer and closes the connection.
func (c *caller) askOnce(t *testing.T, head string) answer {
	t.Helper()
	a := c.ask(t, head)
	if a.close {
		c.gone(t)
	}
	_ = c.Close()
	return a
}

func wireCases() []wireCase {
	const line = "CONNECT allowed.example:443 HTTP/1.1\r\n"
	return []wireCase{
		{reason: allowlist.NoReason, decide: allowed},

		malformed(allowlist.MalformedRequestLine, "CONNECT  allowed.example:443 HTTP/1.1\r\n\r\n"),
		malformed(allowlist.MalformedTarget, connectTo("user@allowed.example:443")),
		malformed(allowlist.MalformedPort, connectTo("allowed.example:0")),
		malformed(allowlist.MalformedHeader, line+"Host : allowed.example:443\r\n\r\n"),
		malformed(allowlist.MissingHost, line+"\r\n"),
		malformed(allowlist.DuplicateHost, line+"Host: allowed.example\r\nHost: allowed.example\r\n\r\n"),
		malformed(allowlist.AuthorityMismatch, line+"Host: other.example\r\n\r\n"),
		malformed(allowlist.ConnectOnly, "connect allowed.example:443 HTTP/1.1\r\nHost: allowed.example\r\n\r\n"),
		malformed(allowlist.HeadTooLarge, connectTo("allowed.example:443", "X: "+strings.Repeat("a", 65<<10))),
		malformed(allowlist.UnsupportedVersion, "CONNECT allowed.example:443 HTTP/3.0\r\n\r\n"),
		{reason: allowlist.HeadTimeout, slow: true, decide: halfAHead},

		asked(allowlist.IdentityMissing, "", "allowed.example:PORT"),
		shown(allowlist.IdentityInvalid, func(t *testing.T, ca *testCA) tls.Certificate {
			t.Helper()
			return ca.issue(t, id("builder").String(), id("reporter").String())
		}),
		shown(allowlist.IdentityExpired, func(t *testing.T, ca *testCA) tls.Certificate {
			t.Helper()
			return ca.issueUntil(t, time.Now().Add(-time.Minute), id("builder").String())
		}),
		shown(allowlist.IdentityUntrusted, func(t *testing.T, _ *testCA) tls.Certificate {
			t.Helper()
			return newCA(t).issue(t, id("builder").String())
		}),

		asked(allowlist.IdentityUnknown, "stranger", "allowed.example:PORT"),
		{reason: allowlist.IdentitySourceNotAccepted, decide: asSidecar},
		asked(allowlist.QuarantinedIdentity, "legacy", "allowed.example:PORT"),
		asked(allowlist.DeniedByRule, "builder", "denied.wild.example:PORT"),
		asked(allowlist.NotOnAllowlist, "builder", "secret.example:PORT"),
		asked(allowlist.PortNotAllowed, "builder", "allowed.example:22"),
		asked(allowlist.MethodNotAllowed, "builder", "read-only.example:PORT"),
		asked(allowlist.RuleExpired, "builder", "expired.example:PORT"),
		asked(allowlist.IPNotOnAllowlist, "reporter", "8.8.8.8:443"),
		asked(allowlist.ResolvedAddressDenied, "builder", "inner.example:PORT"),

		asked(allowlist.NameBudget, "builder", "many.wild.example:PORT"),
		asked(allowlist.ResolveFailed, "builder", "unknown.example:PORT"),
		asked(allowlist.ResolveFailed, "builder", "empty.example:PORT"),
		asked(allowlist.ResolveTimeout, "builder", "slow.example:PORT"),
		with9209(asked(allowlist.DialFailed, "builder", "unreachable.example:PORT"), allowlist.CauseUnroutable),
		asked(allowlist.DialRefused, "builder", "refused.example:1"),
		{reason: allowlist.DialTimeout, slow: true, decide: late},
		{reason: allowlist.ResponseFailed, plain: true, cause: allowlist.CauseTerminated, decide: noAnswer},
		{reason: allowlist.ResponseTimeout, plain: true, slow: true, decide: lateAnswer},

		of(allowlist.PolicyUnavailable, func(w *world) *gateway { return w.empty }),
		of(allowlist.RateLimited, func(w *world) *gateway { return w.far }),
		of(allowlist.TunnelLimit, func(w *world) *gateway { return w.crowded }),
		of(allowlist.UploadLimit, func(w *world) *gateway { return w.spent }),
		of(allowlist.Busy, func(w *world) *gateway { return w.busy }),
		of(allowlist.Draining, func(w *world) *gateway { return w.draining }),
		asked(allowlist.InternalError, "builder", "panic.example:PORT"),
		{reason: allowlist.TLSHandshakeFailed, decide: noHandshake},
		{reason: allowlist.ClientGone, decide: leave},
	}
}

// elsewhere returns the reasons that no CONNECT can have here, with why or the test that
// covers them.
func elsewhere() map[allowlist.Reason]string {
	return map[allowlist.Reason]string{
		allowlist.PathNotAllowed:    "TestPlainDecisions: only a plain HTTP request has a path",
		allowlist.UpgradeNotAllowed: "TestWebSocketIsRefusedWithoutARuleForUpgrades: only a plain HTTP request asks for one",
		allowlist.TypeNotAllowed:    "only a DNS query has a type",
		allowlist.SpecialName:       "only a DNS query is refused for it",
		allowlist.AuditUnavailable:  "TestRequestIsRefusedIfItCannotBeRecorded: no record says it",
		allowlist.SNIMismatch:       "TestFirstBytes: a tunnel has been answered",
		allowlist.SNIMissing:        "TestFirstBytes",
		allowlist.NotTLS:            "TestFirstBytes",
		allowlist.ECHRefused:        "TestFirstBytes",
		allowlist.CutOff:            "TestRequestCutOffAtTheOriginIsNotRecordedAsDenied: a CONNECT sends nothing on before it is answered",
	}
}

// saysAll returns the reasons, other than denials, whose records need no detail, and why.
func saysAll() map[allowlist.Reason]string {
	return map[allowlist.Reason]string{
		allowlist.PolicyUnavailable: "none was loaded since the start",
		allowlist.Draining:          "the process was told to end",
		allowlist.NameBudget:        "the error of the resolver of these tests says no more",
	}
}

func allowed(t *testing.T, w *world, fields ...string) answer {
	t.Helper()
	c := w.ready.call(t, "builder")
	a := c.ask(t, connectTo(w.ready.at("allowed.example"), fields...))
	_ = w.ready.origin.next(t).Close()
	c.ended(t)
	return a
}

func halfAHead(t *testing.T, w *world, _ ...string) answer {
	t.Helper()
	return w.hasty.call(t, "builder").askOnce(t, "CONNECT allowed.example:443 HTTP/1.1\r\nHost: ")
}

func late(t *testing.T, w *world, fields ...string) answer {
	t.Helper()
	return w.hasty.call(t, "builder").askOnce(t, connectTo("late.example:443", fields...))
}

// In noAnswer, the origin closes its connection without an answer; in lateAnswer it sends
// nothing.
func noAnswer(t *testing.T, w *world, fields ...string) answer {
	t.Helper()
	c := w.ready.call(t, "builder")
	c.send(t, get("http://"+w.ready.at("allowed.example")+"/", fields...))
	_ = w.ready.origin.next(t).Close()
	return c.answer(t)
}

func lateAnswer(t *testing.T, w *world, fields ...string) answer {
	t.Helper()
	return w.hasty.call(t, "builder").askOnce(t, get("http://"+w.hasty.at("allowed.example")+"/", fields...))
}

func asSidecar(t *testing.T, w *world, fields ...string) answer {
	t.Helper()
	return w.ready.callPlain(t).askOnce(t, connectTo("allowed.example:443", fields...))
}

func noHandshake(t *testing.T, w *world, _ ...string) answer {
	t.Helper()
	conn := w.ready.connect(t, w.ready.secure)
	if _, err := conn.Write([]byte(connectTo("allowed.example:443"))); err != nil {
		t.Fatal(err)
	}
	(&caller{Conn: conn, reader: bufio.NewReader(conn)}).gone(t)
	return answer{}
}

func leave(t *testing.T, w *world, _ ...string) answer {
	t.Helper()
	c := w.ready.call(t, "builder")
	c.send(t, "CONNECT allowed.example:443 HTTP/1.1\r\nHost: ")
	_ = c.Close()
	return answer{}
}

func TestEveryReasonHasACase(t *testing.T) {
	cases := wireCases()
	for _, r := range allowlist.Reasons() {
		why := elsewhere()[r]
		if has := slices.ContainsFunc(cases, func(c wireCase) bool { return c.reason == r }); has == (why != "") {
			t.Errorf("%s: has a case: %v, cannot have one: %q", r, has, why)
		}
	}
}

// TestReasons makes a decision with every reason over the wire, and checks its answer and
// its record.
func TestReasons(t *testing.T) {
	w := newWorld(t)
	for _, c := range wireCases() {
		t.Run(c.reason.String(), func(t *testing.T) {
			a := c.decide(t, w)
			info := c.reason.Info()
			info.ProxyError = c.reason.ProxyError(c.cause)
			switch c.reason { //nolint:exhaustive // all others are answered and decided
			case allowlist.NoReason:
				info.Status = 200
			case allowlist.TLSHandshakeFailed:
				if r := w.next(t, audit.EventHandshake); r.Reason != info.Token || r.ID == "" {
					t.Errorf("record %+v", r)
				}
				return
			}
			r := w.next(t, audit.EventDecision)
			if c.reason == allowlist.NoReason || c.plain {
				w.next(t, audit.EventTunnelClose)
			}
			if r.Reason != info.Token || r.Status != info.Status || r.ID == "" {
				t.Errorf("record %+v, want %s %d", r, info.Token, info.Status)
			}
			if why, known := saysAll()[c.reason]; (r.Detail == "") != known && info.Status != http.StatusOK && (info.Status != http.StatusForbidden || c.reason == allowlist.ResolvedAddressDenied) {
				t.Errorf("detail %q, and the reason says all: %q", r.Detail, why)
			}
			if c.reason == allowlist.ClientGone {
				return // there is no answer
			}
			if a.status != info.Status || a.reason() != info.Token {
				t.Errorf("answered %s (%s), want %d %s", a.phrase, a.reason(), info.Status, info.Token)
			}
			if c.reason != allowlist.NoReason {
				checkRefusal(t, a, r, info)
			}
		})
	}
	if n := w.ready.proxy.Panics(); n != 1 {
		t.Errorf("%d panics, want the one", n)
	}
	if left := w.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}

// checkRefusal checks what all refusals have in common.
func checkRefusal(t *testing.T, a answer, r record, info allowlist.ReasonInfo) {
	t.Helper()
	if want := "exeat; error=" + info.ProxyError + "; reason=" + info.Token + "; "; !strings.HasPrefix(a.header.Get("Proxy-Status"), want) {
		t.Errorf("Proxy-Status %q, want %q", a.header.Get("Proxy-Status"), want)
	}
	if a.id() != r.ID || a.header.Get("X-Exeat-Trace") != r.TraceID {
		t.Errorf("the caller sees decision %s in trace %s, the record is %s in %s", a.id(), a.header.Get("X-Exeat-Trace"), r.ID, r.TraceID)
	}
	if !strings.Contains(a.phrase, "; id "+r.ID) || len(a.phrase) > 204 {
		t.Errorf("phrase %q, want it to name %s in at most 200 bytes", a.phrase, r.ID)
	}
	for _, field := range []struct {
		name   string
		status []int
	}{
		{"Proxy-Authenticate", []int{407}},
		{"Allow", []int{405}},
		{"Retry-After", []int{429, 503}},
	} {
		if has := a.header.Get(field.name) != ""; has != slices.Contains(field.status, a.status) {
			t.Errorf("%d with %s: %v", a.status, field.name, has)
		}
	}
	want := "deny"
	if a.status >= 500 && a.status != 505 || r.Reason == "rate-limited" { // the limit is one of a source address
		want = "fail"
	}
	if r.Verdict != want {
		t.Errorf("verdict %s, want %s", r.Verdict, want)
	}
	for _, secret := range []string{"10.0.0.1", "169.254.169.254", "255.255.255.255"} { // addresses from the resolver's script
		if strings.Contains(a.phrase+a.body+fmt.Sprint(a.header), secret) {
			t.Errorf("the answer tells the resolved address %s", secret)
		}
	}
}

// TestPanicLeavesOtherTunnelsOpen sends a request that makes the resolver panic. A tunnel
// that is open at the same time must go on.
func TestPanicLeavesOtherTunnelsOpen(t *testing.T) {
	g := newGateway(t, options{})
	tunnel, origin := g.open(t)
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("panic.example"))); a.status != 500 || a.reason() != "internal-error" {
		t.Errorf("answered %s", a.phrase)
	}
	c.ended(t)
	if n := g.proxy.Panics(); n != 1 {
		t.Errorf("%d panics", n)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "fail" || r.Reason != "internal-error" || r.Status != 500 {
		t.Errorf("record %+v", r)
	}
	pingPong(t, tunnel, origin)
	if a := g.call(t, "builder").ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
		t.Errorf("the next one is answered %s", a.phrase)
	}
}

// pingPong sends a byte each way.
func pingPong(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := way[0].Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := way[1].Read(make([]byte, 2)); n != 1 || err != nil {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	}
}
