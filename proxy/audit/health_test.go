package audit

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
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
