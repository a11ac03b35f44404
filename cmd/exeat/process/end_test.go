package process

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

// newMuteServer starts a server that accepts connections until the test ends, and never
// sends anything.
func newMuteServer(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				_, _ = io.Copy(io.Discard, conn)
				<-ctx.Done()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		stop()
		serving.Wait()
	})
	return l.Addr().String()
}

// hanging is a log handler that blocks the message about a policy that is not used,
// until the test releases it. It stands for a file system that hangs, because named
// pipes are not read.
type hanging struct {
	slog.Handler

	begun, release chan struct{}
}

func (h *hanging) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "the new policy is not used") {
		close(h.begun)
		<-h.release
	}
	return h.Handler.Handle(ctx, r)
}

// TestShutdownTakesABoundedTime checks that the process ends within drain delay, drain
// timeout and endTimeout, although a record file and the reader of the policy hang, the
// collector accepts spans, metrics and records without an answer, and a tunnel never
// ends.
func TestShutdownTakesABoundedTime(t *testing.T) {
	dir, collector := t.TempDir(), newMuteServer(t)
	stuck := filepath.Join(dir, "records.pipe")
	fill(t, stuck)
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + collector, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
		"OTEL_METRICS_EXPORTER": "otlp",
	} {
		t.Setenv(name, value)
	}
	policy := write(t, "policy.yaml", "version: 1\nidentities: [{id: spiffe://td.example/ns/ci/sa/builder, allow: [{cidr: 127.0.0.1/32, ports: [1-65535]}]}]\n")
	cfg, opts := configured(t, policy), options()
	cfg.Records = []config.RecordSink{{Name: "stuck", File: stuck}, {Name: "mute", OTLP: true}}
	cfg.Gateway.DrainDelay, cfg.Gateway.DrainTimeout = 200*time.Millisecond, 300*time.Millisecond
	var log lines
	hangs := &hanging{slog.NewTextHandler(&log, nil), make(chan struct{}), make(chan struct{})}
	opts.Getenv, opts.Log = os.Getenv, slog.New(hangs)
	p, err := Open(t.Context(), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Serve(ctx, nil)
	}()
	eventually(t, "a policy is in force", func() bool { return p.gateway.State() != nil })
	open := dialTunnel(t, p, newMuteServer(t))
	defer func() { _ = open.Close() }()

	replace(t, policy, "version: 2\n")
	<-hangs.begun
	defer close(hangs.release)
	begin := time.Now()
	stop()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	most := cfg.Gateway.DrainDelay + cfg.Gateway.DrainTimeout + endTimeout
	if took := time.Since(begin); took > most+time.Second { // a busy machine may be late; one step after the other would take 10 s
		t.Errorf("it took %s, and may take %s", took, most)
	}
	for _, want := range []string{"is left behind", "lost=records", "lost=spans", "lost=metrics"} {
		if !log.has(want) {
			t.Errorf("the log does not say %q:\n%s", want, log.text)
		}
	}
}

// dialTunnel opens a tunnel through the first listener.
func dialTunnel(t *testing.T, p *Process, to string) net.Conn {
	t.Helper()
	at := p.Listening()[0].Addr
	conn, err := net.Dial(at.Network(), at.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "CONNECT "+to+" HTTP/1.1\r\nHost: "+to+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("HTTP/1.1 200 "))
	if _, err := io.ReadFull(conn, answer); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Fatalf("answered %q, %v", answer, err)
	}
	return conn
}
