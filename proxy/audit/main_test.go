package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink keeps what is written; it may be made to fail or to block.
type sink struct {
	mu      sync.Mutex
	err     error
	written bytes.Buffer
	writes  int
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.err != nil {
		return 0, s.err
	}
	return s.written.Write(p)
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// lines returns every line written so far, decoded.
func (s *sink) lines(t *testing.T) []map[string]any {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []map[string]any
	for text := range bytes.Lines(s.written.Bytes()) {
		var l map[string]any
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatalf("%v in %q", err, text)
		}
		lines = append(lines, l)
	}
	return lines
}

// gate is a sink that reports each Write on entered and returns when it is
// opened.
type gate struct {
	entered chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan struct{}, 1000), open: make(chan struct{})} }

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	return len(p), nil
}

func noTracer() trace.Tracer { return noop.NewTracerProvider().Tracer("") }

// newRecorder returns a recorder that is closed when the test ends.
func newRecorder(t *testing.T, cfg Config) *Recorder {
	t.Helper()
	if cfg.Tracer == nil {
		cfg.Tracer = noTracer()
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, r) })
	return r
}

func closeNow(t *testing.T, r *Recorder) {
	t.Helper()
	if err := r.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

func destination(t *testing.T, s string) allowlist.Destination {
	t.Helper()
	dest, err := allowlist.ParseDestination(s)
	if err != nil {
		t.Fatal(err)
	}
	return dest
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
