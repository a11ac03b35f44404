package proxy

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/head"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
)

// stream is the client of a request over HTTP/2. The body of the request is a text, and the
// answer is dropped.
type stream struct {
	net.Conn
	body *strings.Reader
}

func (s *stream) Read(p []byte) (int, error)           { return s.body.Read(p) }
func (*stream) Write(p []byte) (int, error)            { return len(p), nil }
func (*stream) SetDeadline(time.Time) error            { return nil }
func (*stream) SetReadDeadline(time.Time) error        { return nil }
func (*stream) SetWriteDeadline(time.Time) error       { return nil }
func (*stream) WriteHead(int, http.Header, bool) error { return nil }
func (*stream) WriteTrailer(http.Header) error         { return nil }

// kept is a sink that keeps the records. They may be read after the recorder was closed.
type kept []audit.Record

// Write implements audit.Sink.
func (k *kept) Write(_ context.Context, records []*audit.Record) error {
	for _, r := range records {
		*k = append(*k, *r)
	}
	return nil
}

// TestPlainRequestOverAStream checks what the front is told to do with a stream after the
// answer, and what the records say.
func TestPlainRequestOverAStream(t *testing.T) {
	const (
		login = "HTTP/2 cannot carry a login that belongs to a connection (Negotiate, NTLM): use HTTP/1.1"
		short = "the body is shorter than Content-Length says"
		long  = "the body is longer than Content-Length says"
	)
	for name, row := range map[string]struct {
		length       int64
		body, origin string
		kind         front.Kind
		end          front.End
		reason       allowlist.Reason
		detail       string // detail of the decision
		endDetail    string // part of the detail of the exchange's end
	}{
		"a whole answer":   {0, "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", front.Forwarded, front.Close, allowlist.NoReason, "", ""},
		"a body":           {head.Chunked, "hello", "HTTP/1.1 204 No Content\r\n\r\n", front.Forwarded, front.Close, allowlist.NoReason, "", ""},
		"half an answer":   {0, "", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", front.Forwarded, front.Abort, allowlist.NoReason, "", "unexpected EOF"},
		"a login":          {0, "", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n", front.Forwarded, front.Close, allowlist.NoReason, login, ""},
		"a body too short": {6, "hello", "", front.Refused, front.Close, allowlist.MalformedHeader, short, short},
		"a body too long":  {4, "hello", "", front.Refused, front.Close, allowlist.MalformedHeader, long, long},
	} {
		t.Run(name, func(t *testing.T) {
			records := new(kept)
			recorder, err := audit.New(t.Context(), audit.Config{Sinks: []audit.SinkConfig{{Name: "test", Sink: records}}, Tracer: noop.NewTracerProvider().Tracer("test")})
			if err != nil {
				t.Fatal(err)
			}
			s, read := sessionTo(t, recorder, row.origin)
			read.Client, read.Body = &stream{body: strings.NewReader(row.body)}, row.length
			answer := s.Handle(t.Context(), read)
			if answer.Kind != row.kind || answer.End != row.end || answer.Refusal.Reason != row.reason && row.kind == front.Refused {
				t.Errorf("answer %+v", answer)
			}
			if answer.Done != nil {
				answer.Done(nil)
			}
			s.proxy.CloseIdle()
			if err := recorder.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(*records) != 2 {
				t.Fatalf("records %+v", *records)
			}
			for _, r := range *records {
				want := row.detail
				if r.Event == audit.EventTunnelClose {
					want = row.endDetail
				}
				if !strings.HasSuffix(r.Detail, want) || want == "" && r.Detail != "" || r.Event == audit.EventDecision && r.Reason != row.reason {
					t.Errorf("record of %s: reason %q, detail %q, want %q", r.Event, r.Reason, r.Detail, want)
				}
			}
		})
	}
}

// sessionTo returns a session whose caller may make the returned request. The origin of the
// request answers with a text, and then closes its connection.
func sessionTo(t *testing.T, recorder *audit.Recorder, origin string) (*session, *front.Request) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-served })
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = io.Copy(io.Discard, req.Body)
			_, _ = io.WriteString(conn, origin)
		}
	}()
	loopback := netip.MustParseAddr("127.0.0.1")
	id := spiffeid.RequireFromString("spiffe://test.example/builder")
	only, err := allowlist.ParseIdentityPattern(id.String())
	if err != nil {
		t.Fatal(err)
	}
	host, err := allowlist.ParseHostPattern("a.example")
	if err != nil {
		t.Fatal(err)
	}
	policy, err := allowlist.Compile(allowlist.Spec{Entries: []allowlist.Entry{{Pattern: only, Allow: []allowlist.Rule{{
		Host: host, Ports: []allowlist.PortRange{{First: 1, Last: 65535}}, Addresses: []netip.Prefix{netip.PrefixFrom(loopback, 32)},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var current live.Current
	current.Swap(policy, time.Now())
	dialer, err := dial.New(dial.Config{Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) {
		return []allowlist.Resolved{{Addr: loopback}}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Current: &current, Registry: new(live.Registry), Dialer: dialer, Recorder: recorder, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	h, err := head.Build("POST", "http://a.example:"+port+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	url, err := allowlist.ParseURL(h.Target)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{proxy: p, conn: &listen.Conn{Caller: listen.Caller{ID: id, Proof: allowlist.ProofListener}}}
	return s, &front.Request{
		Method: h.Method, Target: h.Target, Head: h, URL: url,
		Asked: allowlist.Request{Dest: url.Dest, Method: h.Method, Path: url.Path},
	}
}
