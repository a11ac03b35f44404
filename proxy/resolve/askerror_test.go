package resolve

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// logged is a log that a test reads.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// lines returns the lines of the log, without times and with N for ports.
func (l *logged) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := regexp.MustCompile(`time=\S+ `).ReplaceAllString(l.buf.String(), "")
	return strings.Split(strings.TrimSuffix(anyPort(text), "\n"), "\n")
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// anyPort replaces the port of each server by N.
func anyPort(text string) string {
	return regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(text, "127.0.0.1:N")
}

// TestTextOfAFailure checks that a failure names the server, its protocol and
// what it did.
func TestTextOfAFailure(t *testing.T) {
	cert, ca := selfSigned(t)
	ede := func(code uint16, text string) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: code, ExtraText: text}}
		}
	}
	closed := func() netip.AddrPort { // an address on which nothing listens any more
		udp, tcp := listenBoth(t)
		addr := netip.MustParseAddrPort(udp.LocalAddr().String())
		_, _ = udp.Close(), tcp.Close()
		return addr
	}
	for name, row := range map[string]struct {
		server answer
		asks   Server
		cause  Cause
		want   Failure
	}{
		"SERVFAIL": {server: answer{code: 2}, cause: CauseServFail, want: Failure{Detail: "server 127.0.0.1:N (udp): SERVFAIL", RCode: "SERVFAIL"}},
		"REFUSED over TCP": {
			server: answer{code: 5, change: ede(18, "")}, asks: Server{Protocol: TCP}, cause: CauseRefused,
			want: Failure{Detail: "server 127.0.0.1:N (tcp): REFUSED, Prohibited (EDE 18)", RCode: "REFUSED"},
		},
		"bogus": {
			server: answer{code: 2, change: ede(6, "no\x1b[31m proof")}, cause: CauseBogus,
			want: Failure{Detail: `server 127.0.0.1:N (udp): SERVFAIL, DNSSEC Bogus (EDE 6): "no\\u001b[31m proof"`, RCode: "SERVFAIL", Extended: 6, HasExtended: true},
		},
		"an expired signature": {
			server: answer{code: 2, change: ede(7, "")}, cause: CauseBogus,
			want: Failure{Detail: "server 127.0.0.1:N (udp): SERVFAIL, Signature Expired (EDE 7)", RCode: "SERVFAIL", Extended: 7, HasExtended: true},
		},
		"NOTAUTH":                 {server: answer{code: 9}, cause: CauseCode, want: Failure{Detail: "server 127.0.0.1:N (udp): NOTAUTH", RCode: "NOTAUTH"}},
		"a referral":              {server: answer{records: []string{"--", "example. 60 IN NS ns.example."}}, cause: CauseNotRecursive, want: Failure{Detail: "server 127.0.0.1:N (udp): a referral to other servers, and no answer"}},
		"a circle":                {server: answer{records: []string{"api.example. 60 IN CNAME api.example."}}, cause: CauseMalformed, want: Failure{Detail: "server 127.0.0.1:N (udp): aliases do not lead to a name: back to api.example"}},
		"truncated over TCP, too": {server: answer{truncated: true}, cause: CauseMalformed, want: Failure{Detail: "server 127.0.0.1:N (tcp): truncated answer"}},
		"silence":                 {server: answer{silent: true}, cause: CauseTimeout, want: Failure{Detail: "server 127.0.0.1:N (udp): no answer in time"}},
		"a closed connection":     {server: answer{hangup: true}, asks: Server{Protocol: TCP}, cause: CauseClosed, want: Failure{Detail: "server 127.0.0.1:N (tcp): the connection ended before the answer"}},
		"a closed port":           {asks: Server{Addr: closed()}, cause: CauseUnreachable, want: Failure{Detail: "server 127.0.0.1:N (udp): connection refused"}},
		"a closed port over TCP":  {asks: Server{Protocol: TCP, Addr: closed()}, cause: CauseUnreachable, want: Failure{Detail: "server 127.0.0.1:N (tcp): connection refused"}},
		"another name's certificate": {
			asks: Server{Protocol: DoT, Name: "ns.example", CA: ca}, cause: CauseCertificate,
			want: Failure{Detail: "server 127.0.0.1:N (dot, ns.example): certificate: x509: certificate is valid for dns.example, not ns.example"},
		},
		"an authority that is not trusted": {
			asks: Server{Protocol: DoT, Name: "dns.example"}, cause: CauseCertificate,
			want: Failure{Detail: "server 127.0.0.1:N (dot, dns.example): certificate: x509: certificate signed by unknown authority"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log logged
			cfg := Config{Log: log.logger()}
			if row.asks.Addr.IsValid() {
				cfg.Servers = []Server{row.asks}
			} else {
				var secure *tls.Config
				if row.asks.Protocol == DoT {
					secure = &tls.Config{Certificates: []tls.Certificate{cert}}
				}
				row.asks.Addr = newTLSServer(t, secure, always(row.server)).addr
				cfg.Servers = []Server{row.asks}
			}
			r := newResolver(t, cfg).impatient(patience)
			if row.cause == CauseTimeout {
				r.impatient(20 * time.Millisecond)
			}
			q := question(t, "api.example", dns.TypeA)
			for range 2 { // first from the server, then from the remembered failure
				_, err := r.Lookup(t.Context(), Asker{}, q)
				got := FailureOf(err)
				if got.Detail = anyPort(got.Detail); got != row.want {
					t.Errorf("got %+v, want %+v", got, row.want)
				}
				if _, err := r.Resolve(t.Context(), decide(t, "api.example", []string{"api.example"}, nil)); anyPort(FailureOf(err).Detail) != row.want.Detail {
					t.Errorf("for a connection: %+v", FailureOf(err))
				}
				r.failures.put(q, r.failures.get(q, time.Time{}), time.Now()) // so that it is not forgotten on a slow machine
			}
			for cause, n := range r.Stats()[0].Errors {
				if (n > 0) != (cause == row.cause) {
					t.Errorf("%d errors of the cause %s", n, cause)
				}
			}
		})
	}
}

// TestTextOfFailuresOfManyServers checks that a failure contains the last try of at most
// three servers, and passes on the answer with the most information.
func TestTextOfFailuresOfManyServers(t *testing.T) {
	bogus := func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: 6, ExtraText: strings.Repeat("\x01", 300)}}
	}
	var servers []*server
	for _, a := range []answer{{code: 5}, {code: 2, change: bogus}, {code: 4}, {code: 5}} {
		servers = append(servers, newServer(t, always(a)))
	}
	r := newResolver(t, Config{}, servers...)
	_, err := r.Lookup(t.Context(), Asker{}, question(t, "api.example", dns.TypeA))
	got := FailureOf(err)
	if strings.Count(got.Detail, "server ") != maxTries || !strings.HasSuffix(anyPort(got.Detail), "; server 127.0.0.1:N (udp): NOTIMP; server 127.0.0.1:N (udp): REFUSED") || len(got.Detail) > 450 {
		t.Errorf("%q", got.Detail)
	}
	if got.RCode != "SERVFAIL" || got.Extended != 6 || !got.HasExtended {
		t.Errorf("%+v", got)
	}
}

// TestFailuresOfTheGatewayNameNoServer checks that failures of the gateway itself name no server.
func TestFailuresOfTheGatewayNameNoServer(t *testing.T) {
	for want, err := range map[string]error{
		"":                                    nil,
		"the name does not exist":             &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: errNoHost},
		"the resolver is closed":              &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: errClosed},
		errNames.Error():                      &allowlist.ReasonError{Reason: allowlist.NameBudget, Err: errNames},
		"too many questions are with servers": errors.Join(errors.New("x"), errBusy),
	} {
		if got := FailureOf(err).Detail; got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	if got := FailureOf(errors.New("dialling 192.0.2.1")); got != (Failure{}) {
		t.Errorf("%+v", got)
	}
}

// TestLogOfFailingServers checks that the log says once that a server fails, and once
// that it answers again.
func TestLogOfFailingServers(t *testing.T) {
	var log logged
	var refuses atomic.Bool
	s := newServer(t, func(q asked) answer {
		if strings.HasPrefix(q.name, "bad") {
			return answer{silent: !refuses.Load(), code: dns.RcodeRefused}
		}
		return answer{records: addressRecords(q, "192.0.2.1")}
	})
	r := newResolver(t, Config{Log: log.logger()}, s).impatient(20 * time.Millisecond)
	u := r.upstreams[0]
	for _, name := range []string{"bad1.example", "bad2.example"} {
		check(t, lookup(t, r, name, dns.TypeA), "resolve-timeout")
	}
	r.impatient(patience)
	check(t, lookup(t, r, "good1.example", dns.TypeA), "192.0.2.1 from upstream")
	check(t, lookup(t, r, "good2.example", dns.TypeA), "192.0.2.1 from upstream")
	const failing = `level=WARN msg="a name server fails" server="127.0.0.1:N (udp)" cause=timeout error="no answer in time"`
	const again = `level=INFO msg="a name server answers again" server="127.0.0.1:N (udp)"`
	if diff := cmp.Diff([]string{failing, again}, log.lines()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	refuses.Store(true)
	for _, name := range []string{"bad3.example", "bad4.example", "bad5.example"} { // each asks two questions
		check(t, lookup(t, r, name, dns.TypeA), "resolve-failed")
	}
	if got := log.lines(); len(got) != 2 {
		t.Errorf("the log is told twice within a minute: %q", got[2:])
	}
	u.lastLogged = u.lastLogged.Add(-logInterval)
	check(t, lookup(t, r, "bad6.example", dns.TypeA), "resolve-failed")
	check(t, lookup(t, r, "good3.example", dns.TypeA), "192.0.2.1 from upstream")
	want := []string{failing, again, `level=WARN msg="a name server fails" server="127.0.0.1:N (udp)" cause=refused error=REFUSED`, again}
	if diff := cmp.Diff(want, log.lines()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestErrorsAboutOneNameDoNotMarkItsServer checks that error responses count as being about the
// name, unless there are many in a row.
func TestErrorsAboutOneNameDoNotMarkItsServer(t *testing.T) {
	now := time.Now()
	var h health
	refused := wireRefused()
	for range 3 {
		for range errorsBeforeLog - 1 {
			if fails, again := h.update(refused, now); fails || again {
				t.Fatal("the log is told")
			}
		}
		h.update(nil, now)
	}
	for i := range errorsBeforeLog {
		if fails, _ := h.update(refused, now); fails != (i == errorsBeforeLog-1) {
			t.Errorf("after %d: %v", i+1, fails)
		}
	}
	if !h.isHealthy(now) {
		t.Error("a server that answers rests")
	}
	if _, again := h.update(context.DeadlineExceeded, now); again || h.isHealthy(now) {
		t.Error("a server that is silent does not rest")
	}
	if _, again := h.update(nil, now); !again {
		t.Error("the log is not told that it answers again")
	}
}

// TestStatsNameEachServerOnce checks that the statistics name a server once that is in
// several groups.
func TestStatsNameEachServerOnce(t *testing.T) {
	a, b := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[::1]:1")
	r := newResolver(t, Config{
		Servers: []Server{{Addr: a}, {Addr: b}},
		Groups:  []Group{{Suffixes: []allowlist.Host{host(t, "x.example")}, Servers: []Server{{Addr: a}, {Addr: a, Protocol: TCP}}}},
	})
	r.upstreams[0].counts[CauseTimeout].Add(2)
	r.upstreams[2].counts[CauseTimeout].Add(3)
	var names []string
	for _, s := range r.Stats() {
		if names = append(names, s.Server); len(s.Errors) != int(causeCount) {
			t.Errorf("%d causes", len(s.Errors))
		}
	}
	want := []string{"127.0.0.1:1 (udp)", "[::1]:1 (udp)", "127.0.0.1:1 (tcp)"}
	if diff := cmp.Diff(want, names); diff != "" || r.Stats()[0].Errors[CauseTimeout] != 5 {
		t.Errorf("%v\n%s", r.Stats()[0], diff)
	}
}

func wireRefused() error { return &wire.ServerError{Code: dns.RcodeRefused} }
