package telemetry

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	errAway  = &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	errOther = errors.New("503 Service Unavailable")
)

// exports is a collector that answers each export with the next error, and every further
// one with the last.
type exports struct {
	answers []error
	calls   int
}

func (e *exports) export(context.Context) error {
	answer := e.answers[min(e.calls, len(e.answers)-1)]
	e.calls++
	return answer
}

// TestExportIsTriedAgain checks when an export is tried again, and for how long.
func TestExportIsTriedAgain(t *testing.T) {
	for _, row := range []struct {
		name    string
		answers []error
		want    error
		calls   int
		took    time.Duration
	}{
		{"an export that succeeds is not repeated", []error{nil}, nil, 1, 0},
		{"an export is repeated while the collector is not there", []error{errAway, errAway, errAway, nil}, nil, 4, 3 * pause},
		{"an export that may have arrived is not repeated", []error{errOther, nil}, errOther, 1, 0},
		{"an export that may have arrived after repetitions is not repeated", []error{errAway, errOther, nil}, errOther, 2, pause},
		{"an export is given up after the patience", []error{errAway}, errAway, int(patience / pause), patience},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &exports{answers: row.answers}
				start := time.Now()
				err := newDelivery("x", func(string, error) {}).run(t.Context(), e.export)
				if !errors.Is(err, row.want) {
					t.Errorf("got %v, want %v", err, row.want)
				}
				// If both timers are due at the same time, either may win.
				if e.calls < row.calls || e.calls > row.calls+1 || time.Since(start) != row.took {
					t.Errorf("%d calls in %v, want %d in %v", e.calls, time.Since(start), row.calls, row.took)
				}
			})
		})
	}
}

// TestAbsentCollectorDelaysExportsOnce checks that only the first export waits for a
// collector that stays away, and that its absence and return are reported once.
func TestAbsentCollectorDelaysExportsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		d := newDelivery("x", func(signal string, err error) {
			if err == nil {
				told = append(told, signal+" works")
				return
			}
			told = append(told, signal+" "+err.Error())
		})
		start := time.Now()
		for _, answer := range []error{errAway, errAway, errOther, nil, nil, errOther} {
			_ = d.run(t.Context(), (&exports{answers: []error{answer}}).export)
		}
		if took := time.Since(start); took != patience {
			t.Errorf("took %v, want %v", took, patience)
		}
		want := []string{"x dial: connection refused", "x works", "x 503 Service Unavailable"}
		if diff := cmp.Diff(told, want); diff != "" {
			t.Errorf("told (-got +want):\n%s", diff)
		}
	})
}

// TestKilledCollectorLosesOneExport checks that a collector which is killed loses the
// export that was on its way, and no later one.
func TestKilledCollectorLosesOneExport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDelivery("x", func(string, error) {})
		if err := d.run(t.Context(), (&exports{answers: []error{errOther}}).export); !errors.Is(err, errOther) {
			t.Errorf("the first: %v", err)
		}
		if err := d.run(t.Context(), (&exports{answers: []error{errAway, errAway, nil}}).export); err != nil {
			t.Errorf("the next: %v", err)
		}
	})
}

// TestPatienceEndsWithTheProcess checks that an export is given up before the patience
// is over if its context is done or the process is about to end.
func TestPatienceEndsWithTheProcess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	hurried := newDelivery("x", func(string, error) {})
	hurried.hurry()
	hurried.hurry() // a second call does nothing
	for name, try := range map[string]func() error{
		"when the context is done": func() error {
			return newDelivery("x", func(string, error) {}).run(ctx, (&exports{answers: []error{errAway}}).export)
		},
		"when there is a hurry": func() error {
			return hurried.run(t.Context(), (&exports{answers: []error{errAway}}).export)
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			if err := try(); !errors.Is(err, errAway) || time.Since(start) >= patience {
				t.Errorf("%s: got %v after %v", name, err, time.Since(start))
			}
		})
	}
}
