package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestNewRequiresItsParts(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no sink":   {Tracer: noTracer()},
		"no tracer": {Sink: io.Discard},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestARecordIsWrittenOnce(t *testing.T) {
	var out sink
	r := newRecorder(t, Config{Sink: &out})
	o := r.Begin(t.Context(), Start{Listener: "main", Protocol: "connect", Wire: "h1"})
	o.Verdict, o.Status = allowlist.Allow, 200
	if o.Ended() {
		t.Error("ended before End")
	}
	o.End()
	o.Status = 500 // too late
	o.End()
	if !o.Ended() {
		t.Error("not ended after End")
	}
	closeNow(t, r)
	lines := out.lines(t)
	if len(lines) != 1 || lines[0]["status"] != 200.0 || lines[0]["id"] != o.ID {
		t.Errorf("got %v", lines)
	}
	if got, want := r.Stats(), (Stats{Written: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTheRecordsOfATunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		r := newRecorder(t, Config{Sink: &out})
		o := r.Begin(t.Context(), Start{Protocol: "connect"})
		o.Verdict, o.Status, o.Dest = allowlist.Allow, 200, destination(t, "api.example:443")
		o.Resolve, o.Dial, o.Decide = time.Second, time.Second, time.Second
		o.End()
		tunnel := o.Tunnel()
		time.Sleep(time.Minute)
		tunnel.Progress(1, 2)
		time.Sleep(time.Second)
		tunnel.Close(t.Context(), 3, 4, "idle", allowlist.NoReason)
		closeNow(t, r)
		lines := out.lines(t)
		if len(lines) != 3 {
			t.Fatalf("%d lines", len(lines))
		}
		for i, want := range []struct {
			event    string
			up, down any
			ms       any
			reason   any
		}{{"decision", nil, nil, nil, nil}, {"tunnel.progress", 1.0, 2.0, 60000.0, nil}, {"tunnel.close", 3.0, 4.0, 61000.0, "idle"}} {
			l := lines[i]
			if l["event"] != want.event || l["up"] != want.up || l["down"] != want.down || l["duration_ms"] != want.ms || l["close_reason"] != want.reason {
				t.Errorf("line %d: got %v, want %+v", i, l, want)
			}
			if l["id"] != o.ID || l["host"] != "api.example" {
				t.Errorf("line %d is not of the decision: %v", i, l)
			}
			if _, ok := l["resolve_ms"]; ok != (i == 0) {
				t.Errorf("line %d: resolve_ms is there: %v", i, ok)
			}
		}
	})
}

func TestAnEventGetsATimeAndAnID(t *testing.T) {
	var out sink
	r := newRecorder(t, Config{Sink: &out})
	r.Event(Record{Event: EventPolicyReload, Policy: "v1"})
	r.Event(Record{Event: EventHandshake, ID: "mine", Time: time.Unix(0, 0)})
	closeNow(t, r)
	lines := out.lines(t)
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	id, ok := lines[0]["id"].(string)
	if !ok {
		t.Fatalf("no id: %v", lines[0])
	}
	at, _ := decodeID(t, id)
	written, err := time.Parse(time.RFC3339Nano, lines[0]["time"].(string))
	if err != nil || !written.Truncate(time.Millisecond).Equal(at) {
		t.Errorf("time %v, id of %v, error %v", written, at, err)
	}
	if lines[1]["id"] != "mine" || lines[1]["time"] != "1970-01-01T00:00:00.000000000Z" {
		t.Errorf("the event's own id and time are gone: %v", lines[1])
	}
}

// TestABlockedSinkBlocksNobody fills the queue behind a Write that does not
// return: whoever records goes on, and every loss is counted.
func TestABlockedSinkBlocksNobody(t *testing.T) {
	out := newGate()
	r := newRecorder(t, Config{Sink: out, Queue: 4})
	r.Event(Record{})
	<-out.entered // one record is being written, the queue is empty
	for range 10 {
		r.Event(Record{})
	}
	if got, want := r.Stats(), (Stats{Dropped: 6}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	if err := r.Close(ctx); !errors.Is(err, gaveUp) {
		t.Errorf("Close returned %v", err)
	}
	close(out.open)
	closeNow(t, r)
	r.Event(Record{}) // after Close
	if got, want := r.Stats(), (Stats{Written: 5, Dropped: 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	var out sink
	r := newRecorder(t, Config{Sink: &out})
	const n = 1000
	for range n {
		r.Event(Record{})
	}
	closeNow(t, r)
	closeNow(t, r) // a second one does nothing
	if got := len(out.lines(t)); got != n {
		t.Errorf("%d lines, want %d", got, n)
	}
	if out.writes > n/10 {
		t.Logf("%d writes for %d lines", out.writes, n) // depends on the scheduler
	}
}

// TestSinkErrorsAreToldOnce lets the sink fail, twice, and recover.
func TestSinkErrorsAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		var told []error
		r := newRecorder(t, Config{Sink: &out, SinkError: func(err error) { told = append(told, err) }})
		record := func() {
			r.Event(Record{})
			synctest.Wait()
		}
		full := errors.New("disk full")
		record()
		out.fail(full)
		record()
		record()
		out.fail(nil)
		record()
		record()
		out.fail(full)
		record()
		closeNow(t, r)
		if want := []error{full, nil, full}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
		if got, want := r.Stats(), (Stats{Written: 3, Failed: 3}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got := len(out.lines(t)); got != 3 {
			t.Errorf("%d lines, want 3", got)
		}
	})
}

// disk takes so many bytes and no more, until it is emptied.
type disk struct {
	sink
	room int
}

func (d *disk) Write(p []byte) (int, error) {
	n, err := d.sink.Write(p[:min(len(p), d.room)])
	d.room -= n
	if n < len(p) {
		return n, errors.New("disk full")
	}
	return n, err
}

// TestATornLineSpoilsNoOther cuts a line at every place: the ones before and
// after it can be read.
func TestATornLineSpoilsNoOther(t *testing.T) {
	line, err := (&Record{Event: EventHandshake, ID: "x"}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	size := len(line) + 1
	for cut := range size - 1 { // with all but its newline it is whole after all
		synctest.Test(t, func(t *testing.T) {
			out := &disk{room: size + cut}
			r := newRecorder(t, Config{Sink: out})
			record := func() {
				r.Event(Record{Event: EventHandshake, ID: "x", Time: time.Time{}.Add(1)})
				synctest.Wait()
			}
			record()
			record() // torn
			record() // nothing of it gets through
			out.room = 10 * size
			record()
			record()
			closeNow(t, r)
			if got, want := r.Stats(), (Stats{Written: 3, Failed: 2}); got != want {
				t.Fatalf("cut at %d: got %+v, want %+v", cut, got, want)
			}
			whole := 0
			for l := range bytes.Lines(out.written.Bytes()) {
				if len(l) == size && json.Valid(l) {
					whole++
				} else if len(l) != cut+1 {
					t.Errorf("cut at %d: a line that was neither written nor torn: %q", cut, l)
				}
			}
			if whole != 3 {
				t.Errorf("cut at %d: %d whole lines in %q", cut, whole, out.written.Bytes())
			}
		})
	}
}

func TestAShortWriteIsAnError(t *testing.T) {
	var told error
	r := newRecorder(t, Config{Sink: short{}, SinkError: func(err error) { told = err }})
	r.Event(Record{})
	closeNow(t, r)
	if got, want := r.Stats(), (Stats{Failed: 1}); got != want || !errors.Is(told, io.ErrShortWrite) {
		t.Errorf("got %+v, told %v", got, told)
	}
}

// short takes one byte and says that all is well.
type short struct{}

func (short) Write(p []byte) (int, error) { return min(1, len(p)), nil }

// TestEveryRecordIsCounted records from many goroutines over a small queue and
// a failing sink, and closes in their midst.
func TestEveryRecordIsCounted(t *testing.T) {
	out := &flaky{}
	r := newRecorder(t, Config{Sink: out, Queue: 8})
	const workers, each = 8, 500
	var running sync.WaitGroup
	half := make(chan struct{}, workers)
	for range workers {
		running.Go(func() {
			for i := range each {
				if i == each/2 {
					half <- struct{}{}
				}
				o := r.Begin(t.Context(), Start{Protocol: "connect"})
				o.End()
				o.Tunnel().Close(t.Context(), 1, 1, "client", allowlist.NoReason)
			}
		})
	}
	for range workers / 2 {
		<-half
	}
	closeNow(t, r)
	running.Wait()
	s := r.Stats()
	if got, want := s.Written+s.Dropped+s.Failed, uint64(2*workers*each); got != want {
		t.Errorf("%+v makes %d, want %d", s, got, want)
	}
	if s.Written != out.lines {
		t.Errorf("%d written, the sink has %d", s.Written, out.lines)
	}
}

// flaky fails every third Write and counts the lines of the others.
type flaky struct{ writes, lines uint64 }

func (f *flaky) Write(p []byte) (int, error) {
	f.writes++
	if f.writes%3 == 0 {
		return 0, errors.New("flaky")
	}
	for _, b := range p {
		if b == '\n' {
			f.lines++
		}
	}
	return len(p), nil
}

// discard is an exporter that throws spans away.
type discard struct{}

func (discard) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (discard) Shutdown(context.Context) error                             { return nil }

func BenchmarkDecision(b *testing.B) {
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithBatcher(discard{}))
	b.Cleanup(func() { _ = provider.Shutdown(context.WithoutCancel(b.Context())) })
	dest, err := allowlist.ParseDestination("api.example:443")
	if err != nil {
		b.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")
	run := func(b *testing.B, cfg Config) {
		b.Helper()
		cfg.Sink = io.Discard
		r, err := New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		client, address := addrPort("10.1.2.3:40000"), addrPort("203.0.113.7:443")
		b.ReportAllocs()
		for b.Loop() {
			o := r.Begin(b.Context(), Start{Listener: "main", Protocol: "connect", Wire: "h1"})
			o.Identity, o.Source, o.Client, o.Dest, o.Method = id, allowlist.SourceX509SVID, client, dest, "CONNECT"
			o.Verdict, o.Mode, o.Policy, o.Generation = allowlist.Allow, allowlist.ModeEnforce, "0123456789ab", 1
			o.Rule, o.RuleAt, o.Address, o.Status = "0123456789", "policy.yaml:12", address, 200
			o.Resolve, o.Dial, o.Decide = time.Millisecond, time.Millisecond, time.Microsecond
			o.End()
		}
		if err := r.Close(context.WithoutCancel(b.Context())); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("record", func(b *testing.B) { run(b, Config{Tracer: noTracer()}) })
	b.Run("record-and-span", func(b *testing.B) { run(b, Config{Tracer: provider.Tracer("")}) })
}
