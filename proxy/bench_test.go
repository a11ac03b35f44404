package proxy_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/native"
)

// BenchmarkPlain sends requests on one connection without TLS, with record and span. It
// measures the whole way through the gateway and, if the request is allowed, to an origin
// in this process and back. A denial should take less than 60 µs.
func BenchmarkPlain(b *testing.B) {
	for name, row := range map[string]struct {
		host   string
		status int
	}{
		"Allowed": {"allowed.example", http.StatusOK},
		"Denied":  {"secret.example", http.StatusForbidden},
	} {
		b.Run(name, func(b *testing.B) {
			g := newGateway(b, options{evidence: discarded(b)})
			spec := g.policy()
			spec.Entries[2].Accept = 0 // sidecar, who speaks without TLS
			g.swap(b, spec)
			g.origin.answerAll(b)
			c := g.callPlain(b)
			if err := c.SetDeadline(time.Time{}); err != nil {
				b.Fatal(err)
			}
			head := []byte(get("http://"+g.at(row.host)+"/", "User-Agent: bench", "Accept: */*"))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(head); err != nil {
					b.Fatal(err)
				}
				resp, err := http.ReadResponse(c.reader, nil)
				if err != nil || resp.StatusCode != row.status {
					b.Fatal(resp, err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// discarded returns evidence that is made and then discarded.
func discarded(b *testing.B) *evidence {
	b.Helper()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithSyncer(tracetest.NewNoopExporter()))
	recorder, err := audit.New(context.Background(), audit.Config{
		Sinks:  []audit.SinkConfig{{Name: "test", Sink: audit.NewLines(io.Discard, native.Render)}},
		Tracer: provider.Tracer("test"),
	})
	if err != nil {
		b.Fatal(err)
	}
	e := &evidence{recorder: recorder, lossy: true}
	b.Cleanup(func() { e.rest(b) })
	return e
}

// answerAll answers every head that comes to the origin, at the lowest possible cost.
func (o *origin) answerAll(b *testing.B) {
	b.Helper()
	ended := make(chan struct{})
	stop := make(chan net.Conn, 1)
	go func() {
		defer close(ended)
		select {
		case conn := <-o.conns:
			stop <- conn
			answerHeads(conn)
		case <-b.Context().Done():
		}
	}()
	b.Cleanup(func() {
		select {
		case conn := <-stop:
			_ = conn.Close()
		default:
		}
		<-ended
	})
}

func answerHeads(conn net.Conn) {
	reader := bufio.NewReader(conn)
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return
		}
		if len(line) > len("\r\n") {
			continue
		}
		if _, err := io.WriteString(conn, ok); err != nil {
			return
		}
	}
}
