package gateway

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/live"
)

// flaky is a sink that fails or hangs when the test sets so.
type flaky struct {
	err  atomic.Pointer[error]
	hang atomic.Pointer[chan struct{}]
}

func (f *flaky) Write(context.Context, []*audit.Record) error {
	if hang := f.hang.Load(); hang != nil {
		<-*hang
	}
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

// TestASinkThatFailsIsAReasonOnlyIfItIsRequired checks that a failing sink makes a
// gateway not ready only if the sink is required. Another replica writes to the same
// collector and would do no better. The gateway recovers within seconds of the end of
// the failure, without a further record.
func TestASinkThatFailsIsAReasonOnlyIfItIsRequired(t *testing.T) {
	full, hang := errors.New("no space left on device"), make(chan struct{})
	for name, row := range map[string]struct {
		begin, end func(*flaky)
		says       string
	}{
		"the sink fails": {
			func(f *flaky) { f.err.Store(&full) }, func(f *flaky) { f.err.Store(nil) }, "no space left on device",
		},
		"the sink hangs": {
			func(f *flaky) { f.hang.Store(&hang) }, func(f *flaky) { f.hang.Store(nil); hang <- struct{}{} }, "a write does not return",
		},
		"the sink hangs, and then fails": {
			func(f *flaky) { f.hang.Store(&hang); f.err.Store(&full) },
			func(f *flaky) { f.hang.Store(nil); hang <- struct{}{}; synctest.Wait(); f.err.Store(nil) },
			"a write does not return",
		},
	} {
		for _, required := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					sink := new(flaky)
					hang = make(chan struct{})
					recorder := must(audit.New(t.Context(), audit.Config{
						Sinks: []audit.SinkConfig{{Name: "collector", Sink: sink}}, Required: required, Tracer: noop.NewTracerProvider().Tracer(""),
					}))
					defer func() { _ = recorder.Close(t.Context()) }()
					p := &probes{
						cfg: &Config{Recorder: recorder}, heldNotes: func() []string { return nil },
						state: func() *live.State { return &live.State{Policy: allowing("one")} },
					}
					well := func() bool { return len(p.notReady())+len(p.notes()) == 0 }
					if !well() {
						t.Errorf("at first: %q, %q", p.notReady(), p.notes())
					}
					row.begin(sink)
					recorder.Event(audit.Record{Event: audit.EventPolicyReload})
					time.Sleep(time.Minute)
					causes, notes := p.notReady(), p.notes()
					if !required {
						causes, notes = notes, causes
					}
					if len(causes) != 1 || len(notes) != 0 || !strings.HasPrefix(causes[0], "records: sink collector loses records since ") || !strings.HasSuffix(causes[0], row.says) {
						t.Errorf("required %t: the wrong place says %q, the right one %q", required, notes, causes)
					}
					row.end(sink)
					time.Sleep(10 * time.Second)
					if !well() {
						t.Errorf("required %t: in the end %q, %q", required, p.notReady(), p.notes())
					}
				})
			})
		}
	}
}
