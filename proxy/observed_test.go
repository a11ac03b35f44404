package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// observedAt is the address that every name has in these tests: observe mode lets requests
// through to public addresses only.
func observedAt() netip.AddrPort { return netip.MustParseAddrPort("8.8.8.8:80") }

// observing is a proxy on loopback whose caller, builder, is observed. Each connection to
// observedAt is one to a server of the test.
type observing struct {
	*Proxy
	server string // address of the server
	listen net.Listener
	ids    chan string // ids of the decisions
}

func newObserving(t *testing.T, disclosure refusal.Disclosure, server http.HandlerFunc) *observing {
	t.Helper()
	o := &observing{ids: make(chan string, 100)}
	var err error
	if o.listen, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	origin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.server = origin.Addr().String()
	var serving sync.WaitGroup
	srv := &http.Server{Handler: server, ReadHeaderTimeout: time.Minute}
	serving.Go(func() { _ = srv.Serve(origin) })
	recorder, err := audit.New(t.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "none", Sink: new(kept), Keep: func(*audit.Record) bool { return false }}}, Tracer: noop.NewTracerProvider().Tracer(""),
		Measure: func(r *audit.Record) {
			if r.Event == audit.EventDecision {
				o.ids <- r.ID
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	dialer, err := dial.New(dial.Config{Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	current := new(live.Current)
	current.Swap(observingPolicy(t), time.Now())
	o.Proxy, err = New(Config{
		Current: current, Registry: new(live.Registry), Dialer: dialer, Recorder: recorder, Log: slog.New(slog.DiscardHandler),
		Front: front.Config{Disclosure: disclosure},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.forwarder, err = forward.New(forward.Config{Dial: func(ctx context.Context, _ *allowlist.Decision) (dial.Result, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", o.server)
		return dial.Result{Conn: conn, Addr: observedAt()}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	serving.Go(func() {
		for {
			conn, err := o.listen.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { o.serve(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		stop()
		_ = o.listen.Close()
		o.CloseIdle()
		_ = srv.Close()
		serving.Wait()
		_ = recorder.Close(context.WithoutCancel(t.Context()))
	})
	return o
}

// observingPolicy observes builder, whom it allows only a.example.
func observingPolicy(t *testing.T) *allowlist.Policy {
	t.Helper()
	only, err := allowlist.ParseIdentityPattern("spiffe://test.example/builder")
	if err != nil {
		t.Fatal(err)
	}
	host, err := allowlist.ParseHostPattern("a.example")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{
		Pattern: only, Owner: "team-ci", Mode: allowlist.ModeObserve, ObserveUntil: time.Now().Add(time.Hour),
		Allow: []allowlist.Rule{{Host: host, Ports: []allowlist.PortRange{{First: 80, Last: 80}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

// serve serves one connection, as a listener does.
func (o *observing) serve(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	cut := func() { _ = conn.Close() }
	if run := o.h1.Serve(ctx, front.Conn{Conn: conn, Cut: cut, Abort: cut}, o); run != nil {
		run()
	}
}

// Handle implements front.Handler. It does what session.handle does, but the look-up and the
// dial of a tunnel, which lead to the server.
func (o *observing) Handle(ctx context.Context, read *front.Request) front.Answer {
	caller := listen.Caller{ID: spiffeid.RequireFromString("spiffe://test.example/builder"), Proof: allowlist.ProofListener}
	s := &session{ctx: context.WithoutCancel(ctx), proxy: o.Proxy, conn: &listen.Conn{Caller: caller}}
	x := &request{session: s, read: read, asked: read.Asked, detail: read.Detail, cause: read.Cause, place: s.takePlace(false)}
	x.begin(ctx)
	if read.IsPlain() {
		return x.answer(ctx)
	}
	if reason := x.admit(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	if reason := x.reserve(); reason != allowlist.NoReason {
		return x.refuse(ctx, reason)
	}
	defer x.release()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", o.server)
	if err != nil {
		return x.refuse(ctx, allowlist.DialFailed)
	}
	register(ctx, x, nil)
	return open(ctx, x, opening{conn: conn, upstream: resolvedAddr{addr: observedAt()}, status: http.StatusOK})
}

// dial connects to the proxy.
func (o *observing) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", o.listen.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// noted returns the value that Proxy-Status must have for a request that would be denied;
// "" without a reason.
func (o *observing) noted(t *testing.T, reason, host string) string {
	t.Helper()
	id := <-o.ids
	if reason == "" {
		return ""
	}
	text := allowlist.NotOnAllowlist.Info().Text
	if reason == allowlist.UpgradeNotAllowed.String() {
		text = allowlist.UpgradeNotAllowed.Info().Text
	}
	return fmt.Sprintf(`exeat; reason=%s; details="egress let through in observe mode, would be denied: %s:80 %s builder; id %s; ask team-ci"`,
		reason, host, text, id)
}

// TestObservedRequestsSaySo asks for a host that is allowed and for one that only observe
// mode lets through, with every disclosure, over both wires: by CONNECT, by a plain
// request, by one that the gateway itself answers, and by an upgrade.
func TestObservedRequestsSaySo(t *testing.T) {
	for _, disclosure := range []refusal.Disclosure{refusal.Full, refusal.ID, refusal.None} {
		o := newObserving(t, disclosure, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Proxy-Status", "forged")
			if r.Header.Get("Upgrade") != "" {
				w.Header()["Connection"], w.Header()["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
				w.WriteHeader(http.StatusSwitchingProtocols)
			}
		})
		for _, row := range []struct{ name, host, head, reason string }{
			{"an allowed tunnel", "a.example", "CONNECT HOST:80 HTTP/1.1\r\nHost: HOST:80\r\n\r\n", ""},
			{"a tunnel", "b.example", "CONNECT HOST:80 HTTP/1.1\r\nHost: HOST:80\r\n\r\n", "not-on-allowlist"},
			{"an allowed request", "a.example", "GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\n\r\n", ""},
			{"a request", "b.example", "GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\n\r\n", "not-on-allowlist"},
			{"the gateway's own answer", "b.example", "OPTIONS http://HOST/ HTTP/1.1\r\nHost: HOST\r\nMax-Forwards: 0\r\n\r\n", "not-on-allowlist"},
			{"the gateway's own allowed answer", "a.example", "OPTIONS http://HOST/ HTTP/1.1\r\nHost: HOST\r\nMax-Forwards: 0\r\n\r\n", ""},
			{"an upgrade", "a.example", "GET http://HOST/ HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "upgrade-not-allowed"},
		} {
			if disclosure != refusal.Full {
				row.reason = ""
			}
			c := o.dial(t)
			if _, err := io.WriteString(c, strings.ReplaceAll(row.head, "HOST", row.host)); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(c)
			status, err := reader.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var fields []string
			for line, err := reader.ReadString('\n'); line != "\r\n"; line, err = reader.ReadString('\n') {
				if err != nil {
					t.Fatal(err)
				}
				if value, ok := strings.CutPrefix(line, "Proxy-Status: "); ok {
					fields = append(fields, strings.TrimSuffix(value, "\r\n"))
				} else if strings.HasPrefix(row.head, "CONNECT") {
					t.Errorf("%s: the head has a line %q", row.name, line)
				}
			}
			want := "HTTP/1.1 200 OK\r\n"
			if row.name == "an upgrade" {
				want = "HTTP/1.1 101 Switching Protocols\r\n"
			}
			if status != want {
				t.Errorf("%s: answered %q", row.name, status)
			}
			_ = c.Close()
			if got, want := strings.Join(fields, " + "), o.noted(t, row.reason, row.host); got != want {
				t.Errorf("%s with disclosure %d: Proxy-Status\n %q, want\n %q", row.name, disclosure, got, want)
			}
		}
		p := h2test.NewPeer(t, o.dial(t))
		for i, row := range []struct{ host, reason string }{{"a.example", ""}, {"b.example", "not-on-allowlist"}} {
			if disclosure != refusal.Full {
				row.reason = ""
			}
			for j, head := range [][]string{
				{":method", "CONNECT", ":authority", row.host + ":80"},
				{":method", "GET", ":scheme", "http", ":authority", row.host, ":path", "/"},
				{":method", "OPTIONS", ":scheme", "http", ":authority", row.host, ":path", "/", "max-forwards", "0"},
			} {
				id := uint32(1 + 2*(3*i+j))
				p.Open(t, id, true, head...)
				answer := p.On(t, id)
				if answer.Status() != "200" {
					t.Errorf("%v: answered %v", head, answer.Fields)
				}
				if got, want := answer.Field("proxy-status"), o.noted(t, row.reason, row.host); got != want {
					t.Errorf("%v over HTTP/2 with disclosure %d: proxy-status\n %q, want\n %q", head, disclosure, got, want)
				}
			}
		}
	}
}

// TestObservedLoginSaysBoth asks over HTTP/2 for a login that needs HTTP/1.1, at a host that
// only observe mode lets through. Proxy-Status is a list, which says both.
func TestObservedLoginSaysBoth(t *testing.T) {
	o := newObserving(t, refusal.Full, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "NTLM")
		w.WriteHeader(http.StatusUnauthorized)
	})
	p := h2test.NewPeer(t, o.dial(t))
	p.Open(t, 1, true, ":method", "GET", ":scheme", "http", ":authority", "b.example", ":path", "/")
	answer := p.On(t, 1)
	var got []string
	for _, f := range answer.Fields {
		if f.Name == "proxy-status" {
			got = append(got, f.Value)
		}
	}
	if len(got) != 2 || got[0] != o.noted(t, "not-on-allowlist", "b.example") || !strings.Contains(got[1], "use HTTP/1.1") {
		t.Errorf("proxy-status is %q", got)
	}
}
