package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a writer that keeps what is written. It can be made to fail or to block.
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

// gate is a writer that reports each Write on entered, and blocks it until open is
// closed.
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

// memory is a sink that keeps copies of the records, after a delay. It can be made to
// fail.
type memory struct {
	delay time.Duration // of each Write, for synctest bubbles

	mu      sync.Mutex
	err     error
	records []Record
	writes  int
}

func (m *memory) Write(_ context.Context, records []*Record) error {
	time.Sleep(m.delay)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	if m.err != nil {
		return m.err
	}
	for _, r := range records {
		m.records = append(m.records, *r)
	}
	return nil
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// taken returns the records written so far.
func (m *memory) taken() []Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.records)
}

// of returns the records of one event written so far.
func (m *memory) of(event Event) []Record {
	return slices.DeleteFunc(m.taken(), func(r Record) bool { return r.Event != event })
}

// slow is a memory that blocks each Write until let is closed.
type slow struct {
	memory
	entered chan struct{} // receives when a Write has begun
	let     chan struct{} // closed to let every Write continue
}

func newSlow() *slow { return &slow{entered: make(chan struct{}, 1), let: make(chan struct{})} }

func (s *slow) Write(ctx context.Context, records []*Record) error {
	select {
	case s.entered <- struct{}{}:
	default:
	}
	<-s.let
	return s.memory.Write(ctx, records)
}

// to returns sinks for a configuration, named a, b, c.
func to(sinks ...Sink) []SinkConfig {
	all := make([]SinkConfig, len(sinks))
	for i, s := range sinks {
		all[i] = SinkConfig{Name: string(rune('a' + i)), Sink: s}
	}
	return all
}

// decide begins a decision about an identity of td.example.
func decide(t *testing.T, r *Recorder, path string, verdict allowlist.Verdict, reason allowlist.Reason) *Pending {
	t.Helper()
	o := r.Begin(t.Context(), Start{Listener: "main", Protocol: "connect"})
	o.Identity = spiffeid.RequireFromString("spiffe://td.example/" + path)
	o.Verdict, o.Reason = verdict, reason
	return o
}

// checkSums checks that the counts of every sink add up.
func checkSums(t *testing.T, r *Recorder) {
	t.Helper()
	for _, s := range r.Stats().Sinks {
		if sum := s.Written + s.Dropped + s.Failed + s.Summarised; sum != s.Made || s.Waiting != 0 {
			t.Errorf("%+v adds up to %d", s, sum)
		}
	}
}

// lineSink returns a configuration's only sink, which writes lines to a writer.
func lineSink(w io.Writer) []SinkConfig {
	return []SinkConfig{{Name: "test", Sink: NewLines(w, render)}}
}

// render is a Render whose line names the event, the id and the status.
func render(dst []byte, r *Record) ([]byte, error) {
	return fmt.Appendf(dst, `{"event":%q,"id":%q,"status":%d}`, r.Event, r.ID, r.Status), nil
}

func noTracer() trace.Tracer { return noop.NewTracerProvider().Tracer("") }

// newRecorder returns a recorder that is closed when the test ends.
func newRecorder(t *testing.T, cfg Config) *Recorder {
	t.Helper()
	if cfg.Tracer == nil {
		cfg.Tracer = noTracer()
	}
	r, err := New(t.Context(), cfg)
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
