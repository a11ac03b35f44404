package audit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

func TestFailingSaysWhatAndSinceWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad, stuck := &memory{}, &memory{}, newSlow()
		r := newRecorder(t, Config{Sinks: to(good, bad, stuck)})
		if f := r.Failing(); f != nil {
			t.Fatalf("failing at first: %+v", f)
		}
		begin := time.Now()
		record := func() {
			r.Event(Record{Event: EventPolicyReload})
			synctest.Wait()
		}
		record()
		time.Sleep(time.Second)
		full := errors.New("disk full")
		bad.fail(full)
		record()
		time.Sleep(stuckAfter)
		record()
		got := r.Failing()
		if len(got) != 2 {
			t.Fatalf("failing: %+v", got)
		}
		if f := got[0]; f.Sink != "b" || !errors.Is(f.Err, full) || !f.Since.Equal(begin.Add(time.Second)) {
			t.Errorf("got %+v", f)
		}
		if f := got[1]; f.Sink != "c" || !errors.Is(f.Err, errStuck) || !f.Since.Equal(begin) {
			t.Errorf("got %+v", f)
		}
		bad.fail(nil)
		close(stuck.let)
		record()
		if f := r.Failing(); f != nil {
			t.Errorf("failing after all: %+v", f)
		}
	})
}

// TestSinkRecoversWithoutTraffic lets one record fail, after which no further record
// comes. Every kind of failure must end within seconds of its cause, and only the summary
// may be written to find that out.
func TestSinkRecoversWithoutTraffic(t *testing.T) {
	broken := errors.New("broken pipe")
	for name, row := range map[string]struct {
		err  error
		lost uint64
	}{
		"the sink lost all records":                  {broken, 1},
		"the sink lost that record":                  {&LostError{Lost: []int{0}, Err: broken}, 1},
		"the sink lost one of many records":          {&LostError{Unnamed: 1, Err: broken}, 1},
		"the sink lost more records than there were": {&LostError{Unnamed: 7, Err: broken}, 1},
		"the sink lost none, but returned an error":  {&LostError{Err: broken}, 0},
	} {
		for _, required := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, required %t", name, required), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					out := &memory{err: row.err}
					var told []error
					r := newRecorder(t, Config{
						Sinks:    []SinkConfig{{Name: "a", Sink: out, Keep: func(rec *Record) bool { return rec.Event == EventHandshake }}},
						Required: required, SinkError: func(_ string, err error) { told = append(told, err) },
					})
					began := time.Now()
					r.Event(Record{Event: EventHandshake})
					const away = time.Minute
					time.Sleep(away)
					synctest.Wait()
					if f := r.Failing(); len(f) != 1 || !f[0].Since.Equal(began) || !errors.Is(f[0].Err, broken) {
						t.Errorf("while it fails: %+v", f)
					}
					if tries := out.writes - 1; tries < int(away/(10*time.Second)) || tries > int(away/time.Second) {
						t.Errorf("%d tries in %s", tries, away)
					}
					out.fail(nil)
					time.Sleep(10 * time.Second)
					synctest.Wait()
					if f := r.Failing(); f != nil {
						t.Errorf("when it works again: %+v", f)
					}
					if len(told) != 2 || !errors.Is(told[0], broken) || told[1] != nil {
						t.Errorf("told %v", told)
					}
					time.Sleep(time.Hour) // no further record comes
					got := out.taken()
					if len(got) != 1 {
						t.Fatalf("written: %+v", got)
					}
					if s := got[0]; s.Event != EventSummary || s.Merged.Count != row.lost || row.lost > 0 && !s.Merged.First.Equal(began) || s.Detail != "the sink failed: broken pipe" {
						t.Errorf("written: %+v, %+v", s, s.Merged)
					}
					closeNow(t, r)
					checkSums(t, r)
					if s := r.Stats().Sinks[0]; s.Failed != row.lost || row.lost > 0 && s.Made != 2 {
						t.Errorf("counted: %+v", s)
					}
				})
			})
		}
	}
}

// TestSinkThatHasRecoveredWritesNoSummary checks that no summary is written if a record
// that came in time has shown that the sink works.
func TestSinkThatHasRecoveredWritesNoSummary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{err: errors.New("no space")}
		r := newRecorder(t, Config{Sinks: to(out)})
		r.Event(Record{Event: EventHandshake})
		synctest.Wait()
		out.fail(nil)
		r.Event(Record{Event: EventHandshake})
		time.Sleep(time.Minute)
		if got := out.taken(); len(got) != 1 || got[0].Event != EventHandshake || r.Failing() != nil {
			t.Errorf("written: %+v, failing: %+v", got, r.Failing())
		}
		closeNow(t, r) // would block for ever if a summary were still due
	})
}

// TestSinkRecoversFromAWriteThatHangs checks a Write that returns an error after a long
// time, as from a file system that does not answer for a while. If decisions wait for the
// sink, it counts as failing as soon as they are refused.
func TestSinkRecoversFromAWriteThatHangs(t *testing.T) {
	for required, after := range map[bool]time.Duration{false: stuckAfter, true: commitTimeout} {
		t.Run(fmt.Sprintf("required %t", required), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := newSlow()
				out.err = errors.New("input/output error")
				r := newRecorder(t, Config{Sinks: to(out), Required: required})
				r.Event(Record{Event: EventHandshake})
				time.Sleep(after - 1)
				if f := r.Failing(); f != nil {
					t.Errorf("failing too early: %+v", f)
				}
				time.Sleep(time.Nanosecond)
				if f := r.Failing(); len(f) != 1 || !errors.Is(f[0].Err, errStuck) {
					t.Errorf("failing: %+v", f)
				}
				close(out.let)
				synctest.Wait()
				if f := r.Failing(); len(f) != 1 || !errors.Is(f[0].Err, out.err) {
					t.Errorf("failing: %+v", f)
				}
				out.fail(nil)
				time.Sleep(10 * time.Second)
				if f := r.Failing(); f != nil {
					t.Errorf("failing after all: %+v", f)
				}
			})
		})
	}
}

// late is a memory that takes every record, and returns an error for a while.
type late struct{ memory }

func (l *late) Write(ctx context.Context, records []*Record) error {
	l.mu.Lock()
	err := l.err
	l.err = nil
	l.mu.Unlock()
	_ = l.memory.Write(ctx, records) // without an error now
	l.fail(err)
	return err
}

// TestSummaryThatIsTriedAgainKeepsItsID checks that a summary keeps its id when it is
// written again: a collector may have taken one that it did not answer in time, and its
// readers must not count it twice.
func TestSummaryThatIsTriedAgainKeepsItsID(t *testing.T) {
	for name, denials := range map[string]int{"lost": 1, "without room": 100} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := &late{memory{err: errors.New("no answer in time"), delay: time.Millisecond}}
				r := newRecorder(t, Config{Sinks: to(out), Queue: 8})
				for range denials {
					decide(t, r, "a", allowlist.Deny, allowlist.NotOnAllowlist).End()
				}
				time.Sleep(5 * summaryEvery / 2)
				synctest.Wait()
				out.fail(nil)
				time.Sleep(2 * summaryEvery)
				closeNow(t, r)
				sums := out.of(EventSummary)
				if len(sums) < 3 {
					t.Fatalf("%d summaries", len(sums))
				}
				for _, s := range sums {
					if s.ID == "" || s.ID != sums[0].ID || s.Merged.Count != sums[0].Merged.Count {
						t.Errorf("%s of %d, after %s of %d", s.ID, s.Merged.Count, sums[0].ID, sums[0].Merged.Count)
					}
				}
			})
		})
	}
}

// TestCommitFailsIfItsRecordMayBeTheLostOne checks a sink which, like a collector, reports
// how many records it has rejected but not which. Commit must fail for each record of the
// batch.
func TestCommitFailsIfItsRecordMayBeTheLostOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &memory{err: &LostError{Unnamed: 1, Err: errors.New("1 rejected")}, delay: time.Millisecond}
		r := newRecorder(t, Config{Sinks: to(out), Required: true})
		r.Event(Record{Event: EventHandshake})
		synctest.Wait() // so that the three other records are one batch
		results := make(chan error, 3)
		for range cap(results) {
			go func() { results <- r.Begin(t.Context(), Start{Protocol: "connect"}).Commit(t.Context()) }()
		}
		for range cap(results) {
			if err := <-results; err == nil {
				t.Error("the record may be the one that was rejected")
			}
		}
		if s := r.Stats().Sinks[0]; s.Made != 4 || s.Failed != 2 || s.Written != 2 {
			t.Errorf("counted: %+v", s)
		}
	})
}
