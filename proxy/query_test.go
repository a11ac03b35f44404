package proxy_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/live"
)

// TestPanicInAQueryEndsItsConnection checks that a panic of the function for queries is
// counted and closes the connection without an answer, and that nothing else is lost: the
// refusal of a caller that is over a limit is recorded.
func TestPanicInAQueryEndsItsConnection(t *testing.T) {
	dialer, err := dial.New(dial.Config{Resolve: func(context.Context, *allowlist.Decision) ([]allowlist.Resolved, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	var records bytes.Buffer
	recorder, err := audit.New(t.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "test", Sink: audit.NewLines(&records, native.Render)}}, Tracer: noop.NewTracerProvider().Tracer(""),
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{
		Current: &live.Current{}, Registry: &live.Registry{}, Dialer: dialer, Recorder: recorder, Log: slog.New(slog.DiscardHandler),
		Query: func(context.Context, listen.Verified, *front.Request) front.Answer {
			panic("the function for queries of this test panics")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	near, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.ServeWithDoH(t.Context(), &listen.Conn{Conn: theirs, Caller: listen.Caller{Limited: true}}, func(authority string) bool { return authority == "gateway.example" })
		_ = theirs.Close()
	}()
	if err := near.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	query := "GET /dns-query HTTP/1.1\r\nHost: gateway.example\r\n\r\n"
	if _, err := io.Copy(near, strings.NewReader(query)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(near); err != nil || len(got) > 0 {
		t.Errorf("answered %q, %v", got, err)
	}
	<-served
	if n := p.Panics(); n != 1 {
		t.Errorf("%d panics, want one", n)
	}
	if err := recorder.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := records.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"reason":"rate-limited"`) {
		t.Errorf("records %s", got)
	}
}
