package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

func TestNewRequiresItsParts(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no sink":                {Tracer: noTracer()},
		"no tracer":              {Sinks: lineSink(io.Discard)},
		"a sink without a place": {Tracer: noTracer(), Sinks: []SinkConfig{{Name: "a"}}},
		"a sink without a name":  {Tracer: noTracer(), Sinks: []SinkConfig{{Sink: &memory{}}}},
		"two sinks of one name":  {Tracer: noTracer(), Sinks: append(to(&memory{}), to(&memory{})...)},
		"required and collapsed": {Tracer: noTracer(), Sinks: to(&memory{}), Required: true, Collapse: 1},
	} {
		if _, err := New(context.Background(), cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestARecordIsWrittenOnce(t *testing.T) {
	out := &memory{}
	r := newRecorder(t, Config{Sinks: to(out)})
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
	if got := out.taken(); len(got) != 1 || got[0].Status != 200 || got[0].ID != o.ID {
		t.Errorf("got %+v", got)
	}
	if got, want := r.Stats().Sinks[0], (SinkStats{Name: "a", Made: 1, Written: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTheRecordsOfATunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{}
		r := newRecorder(t, Config{Sinks: to(out)})
		o := r.Begin(t.Context(), Start{Protocol: "connect"})
		o.Verdict, o.Status, o.Dest = allowlist.Allow, 200, destination(t, "api.example:443")
		o.Resolve, o.Dial, o.Decide = time.Second, time.Second, time.Second
		o.End()
		record := o.Tunnel()
		time.Sleep(time.Minute)
		record.Progress(1, 2)
		time.Sleep(time.Second)
		record.Close(t.Context(), 3, 4, tunnel.Idle, allowlist.NoReason)
		closeNow(t, r)
		got := out.taken()
		if len(got) != 3 {
			t.Fatalf("%d records", len(got))
		}
		for i, want := range []struct {
			event    Event
			up, down int64
			after    time.Duration
			reason   tunnel.Reason
		}{{EventDecision, 0, 0, 0, tunnel.None}, {EventTunnelProgress, 1, 2, time.Minute, tunnel.None}, {EventTunnelClose, 3, 4, 61 * time.Second, tunnel.Idle}} {
			rec := got[i]
			if rec.Event != want.event || rec.Up != want.up || rec.Down != want.down || rec.Duration != want.after || rec.CloseReason != want.reason {
				t.Errorf("record %d: got %+v, want %+v", i, rec, want)
			}
			if rec.ID != o.ID || rec.Dest != o.Dest {
				t.Errorf("record %d is not of the decision: %+v", i, rec)
			}
			if took := rec.Resolve != 0 || rec.Dial != 0 || rec.Decide != 0; took != (i == 0) {
				t.Errorf("record %d: says how long the decision took: %v", i, took)
			}
		}
	})
}

func TestAnEventGetsATimeAndAnID(t *testing.T) {
	out := &memory{}
	r := newRecorder(t, Config{Sinks: to(out)})
	r.Event(Record{Event: EventPolicyReload, Policy: "v1"})
	r.Event(Record{Event: EventHandshake, ID: "mine", Time: time.Unix(0, 0)})
	closeNow(t, r)
	got := out.taken()
	if len(got) != 2 {
		t.Fatalf("%d records", len(got))
	}
	if at, _ := decodeID(t, got[0].ID); !got[0].Time.Truncate(time.Millisecond).Equal(at) {
		t.Errorf("time %v, id of %v", got[0].Time, at)
	}
	if got[1].ID != "mine" || !got[1].Time.Equal(time.Unix(0, 0)) {
		t.Errorf("the event's own id and time are gone: %+v", got[1])
	}
}

// TestABlockedSinkBlocksNobody fills the queue behind a Write that does not return.
// Recording must not block, and every loss must be counted.
func TestABlockedSinkBlocksNobody(t *testing.T) {
	out := newGate()
	r := newRecorder(t, Config{Sinks: lineSink(out), Queue: 4})
	r.Event(Record{})
	<-out.entered // one record is being written, the queue is empty
	for range 10 {
		r.Event(Record{})
	}
	if got, want := r.Stats().Sinks[0], (SinkStats{Name: "test", Made: 11, Dropped: 6, Waiting: 5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	if err := r.Close(ctx); !errors.Is(err, gaveUp) {
		t.Errorf("Close returned %v", err)
	}
	// After Close has given up, the records that wait count as lost.
	if got, want := r.Stats().Sinks[0], (SinkStats{Name: "test", Made: 11, Dropped: 11}); got != want {
		t.Errorf("after Close got %+v, want %+v", got, want)
	}
	close(out.open)
	closeNow(t, r)
	r.Event(Record{}) // after Close
	if got, want := r.Stats().Sinks[0], (SinkStats{Name: "test", Made: 12, Written: 5, Dropped: 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestLongDetailIsCutBeforeItIsKept checks that a detail is cut before its record is
// queued, because it may quote a stranger's certificate of any size.
func TestLongDetailIsCutBeforeItIsKept(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Measure: func(rec *Record) {
		if len(rec.Detail) > maxDetail+len("...") {
			t.Errorf("%d bytes are kept", len(rec.Detail))
		}
	}})
	long := strings.Repeat("\u00e9", 1<<18)
	r.Event(Record{Event: EventHandshake, Detail: long})
	close(out.let)
	closeNow(t, r)
	whole := Record{Event: EventHandshake, Detail: long}
	if got := out.taken()[0]; got.DetailText() != whole.DetailText() {
		t.Errorf("it is written as %q", got.DetailText())
	}
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	var out sink
	r := newRecorder(t, Config{Sinks: lineSink(&out)})
	const n = 1000
	for range n {
		r.Event(Record{})
	}
	closeNow(t, r)
	closeNow(t, r) // a second call does nothing
	if got := len(out.lines(t)); got != n {
		t.Errorf("%d lines, want %d", got, n)
	}
	if out.writes > n/10 {
		t.Logf("%d writes for %d lines", out.writes, n) // depends on the scheduler
	}
}

// TestSinkErrorIsReportedOnce lets the sink fail twice and recover. At each call of
// SinkError the counts must include the records that were lost and written.
func TestSinkErrorIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out sink
		var told []error
		var counts []SinkStats // at the calls of SinkError
		var r *Recorder
		r = newRecorder(t, Config{Sinks: lineSink(&out), SinkError: func(_ string, err error) {
			told, counts = append(told, err), append(counts, r.Stats().Sinks[0])
		}})
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
		if want := []error{full, nil, full}; !slices.EqualFunc(told, want, errors.Is) {
			t.Errorf("told %v, want %v", told, want)
		}
		if want := []SinkStats{
			{Name: "test", Made: 2, Written: 1, Failed: 1}, {Name: "test", Made: 4, Written: 2, Failed: 2}, {Name: "test", Made: 6, Written: 3, Failed: 3},
		}; !slices.Equal(counts, want) {
			t.Errorf("counts %+v, want %+v", counts, want)
		}
		if got, want := r.Stats().Sinks[0], (SinkStats{Name: "test", Made: 6, Written: 3, Failed: 3}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got := len(out.lines(t)); got != 3 {
			t.Errorf("%d lines, want 3", got)
		}
	})
}

// disk accepts a number of bytes, until it is emptied.
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

// TestTornLineSpoilsNoOther ends a line at every byte, and checks that the lines before
// and after it can be read.
func TestTornLineSpoilsNoOther(t *testing.T) {
	line, err := render(nil, &Record{Event: EventHandshake, ID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	size := len(line) + 1
	for cut := range size - 1 { // with all but its newline the line is complete
		synctest.Test(t, func(t *testing.T) {
			out := &disk{room: size + cut}
			r := newRecorder(t, Config{Sinks: lineSink(out)})
			record := func() {
				r.Event(Record{Event: EventHandshake, ID: "x", Time: time.Time{}.Add(1)})
				synctest.Wait()
			}
			record()
			record() // partly written
			record() // not written at all
			out.room = 10 * size
			record()
			record()
			closeNow(t, r)
			if got, want := r.Stats().Sinks[0], (SinkStats{Name: "test", Made: 5, Written: 3, Failed: 2}); got != want {
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
	r := newRecorder(t, Config{Sinks: lineSink(short{}), SinkError: func(_ string, err error) { told = err }})
	r.Event(Record{})
	closeNow(t, r)
	if got, want := r.Stats().Sinks[0], (SinkStats{Name: "test", Made: 1, Failed: 1}); got != want || !errors.Is(told, io.ErrShortWrite) {
		t.Errorf("got %+v, told %v", got, told)
	}
}

// short accepts one byte and returns no error.
type short struct{}

func (short) Write(p []byte) (int, error) { return min(1, len(p)), nil }

// flaky fails every third Write and counts the lines of the others.
type flaky struct {
	writes, lines uint64
	summaries     []string
}

func (f *flaky) Write(p []byte) (int, error) {
	f.writes++
	if f.writes%3 == 0 {
		return 0, errors.New("flaky")
	}
	for line := range bytes.Lines(p) {
		if f.lines++; bytes.Contains(line, []byte(`"event":"summary"`)) {
			f.summaries = append(f.summaries, string(line))
		}
	}
	return len(p), nil
}
