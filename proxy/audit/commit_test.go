package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// commit does what a door does in required mode: it sets the final status after Commit.
func commit(t *testing.T, o *Pending) error {
	t.Helper()
	o.Verdict, o.Status = allowlist.Allow, 200
	err := o.Commit(t.Context())
	if err != nil {
		o.Verdict, o.Reason, o.Status = allowlist.Fail, allowlist.AuditUnavailable, 503
	}
	o.End()
	return err
}

func statuses(records []Record) []int {
	var all []int
	for _, r := range records {
		all = append(all, r.Status)
	}
	return all
}

func TestACommittedRecordIsWrittenBeforeTheAnswer(t *testing.T) {
	out, denials := &memory{}, newSlow()
	defer close(denials.let)
	sinks := to(out, denials)
	sinks[1].Keep = func(r *Record) bool { return r.Verdict == allowlist.Deny }
	var measured counter
	r := newRecorder(t, Config{Sinks: sinks, Required: true, Measure: measured.count})
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	o.Verdict, o.Status = allowlist.Allow, 200
	if err := o.Commit(t.Context()); err != nil { // the other sink does not keep the record, so Commit does not wait for it
		t.Fatal(err)
	}
	if got := statuses(out.taken()); !cmp.Equal(got, []int{200}) {
		t.Fatalf("statuses %v when Commit returned", got)
	}
	if err := o.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	o.Status = 500 // too late: the record is written already
	o.End()
	o.End()
	if o.Status != 200 || measured.n != 1 {
		t.Errorf("status %d, measured %d times", o.Status, measured.n)
	}
	o.Tunnel().Close(t.Context(), 1, 1, tunnel.Client, allowlist.NoReason)
	if n := len(out.of(EventDecision)); n != 1 {
		t.Errorf("%d records", n)
	}
}

// TestFailingSinkRefusesUntilItRecovers checks a sink that returns errors, as one on a
// full disk does.
func TestFailingSinkRefusesUntilItRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &disk{room: 1 << 20}
		r := newRecorder(t, Config{Sinks: lineSink(out), Required: true})
		decide := func() error { return commit(t, r.Begin(t.Context(), Start{Protocol: "connect"})) }
		if err := decide(); err != nil {
			t.Fatal(err)
		}
		out.room = 0
		for range 2 {
			if err := decide(); err == nil {
				t.Fatal("a decision that was not recorded")
			}
			synctest.Wait() // for the record that End queued
		}
		if f := r.Failing(); len(f) != 1 || f[0].Sink != "test" || f[0].Err == nil {
			t.Errorf("failing: %+v", f)
		}
		out.room = 1 << 20
		if err := decide(); err != nil {
			t.Fatalf("after it recovered: %v", err)
		}
		if f := r.Failing(); f != nil {
			t.Errorf("failing: %+v", f)
		}
		closeNow(t, r)
		checkSums(t, r)
		if got := out.lines(t); len(got) != 2 || got[0]["status"] != 200.0 || got[1]["status"] != 200.0 {
			t.Errorf("lines %v", got)
		}
	})
}

// TestABlockedSinkRefusesInTime checks that records which are not being written are
// withdrawn, so that one record of each decision remains.
func TestABlockedSinkRefusesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSlow()
		r := newRecorder(t, Config{Sinks: to(out), Required: true})
		r.Event(Record{})
		synctest.Wait() // the sink's Write does not return
		begin := time.Now()
		o := r.Begin(t.Context(), Start{Protocol: "connect"})
		if err := commit(t, o); !errors.Is(err, errLate) || time.Since(begin) != commitTimeout {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		if err := o.Commit(t.Context()); !errors.Is(err, errLate) {
			t.Errorf("the second Commit: %v", err)
		}
		close(out.let)
		closeNow(t, r)
		checkSums(t, r)
		if got := statuses(out.of(EventDecision)); !cmp.Equal(got, []int{503}) {
			t.Errorf("statuses %v", got)
		}
		if got := r.Stats(); got.Made != 2 || got.Lost() != 1 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestAFullQueueRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSlow()
		r := newRecorder(t, Config{Sinks: to(out), Required: true, Queue: 2})
		r.Event(Record{})
		synctest.Wait() // the sink's Write does not return
		go func() { _ = commit(t, r.Begin(t.Context(), Start{Protocol: "connect"})) }()
		synctest.Wait()
		begin := time.Now()
		err := commit(t, r.Begin(t.Context(), Start{Protocol: "connect"}))
		if !errors.Is(err, errNoRoom) || time.Since(begin) != 0 {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		close(out.let)
		closeNow(t, r)
		checkSums(t, r)
		if err := commit(t, r.Begin(t.Context(), Start{})); !errors.Is(err, errNoRoom) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestWorkingSinkHasTheOutcomeWhenAnotherFails checks that the sink which works has the
// real outcome as the later of two records, or as the only one.
func TestWorkingSinkHasTheOutcomeWhenAnotherFails(t *testing.T) {
	good, bad := &memory{}, &memory{err: errors.New("disk full")}
	r := newRecorder(t, Config{Sinks: to(good, bad), Required: true})
	o := r.Begin(t.Context(), Start{Protocol: "connect"})
	if err := commit(t, o); err == nil {
		t.Fatal("no error")
	}
	closeNow(t, r)
	checkSums(t, r)
	got := good.taken()
	if n := len(got); n == 0 || n > 2 || got[n-1].Status != 503 || got[0].ID != o.ID || got[n-1].ID != o.ID {
		t.Errorf("statuses %v", statuses(got))
	}
	if n := len(got); !got[n-1].Supersedes || n == 2 && got[0].Supersedes {
		t.Error("two records with one id do not say which is the second")
	}
	if len(bad.taken()) != 0 || r.Stats().Sinks[1].Failed != 2 {
		t.Errorf("the other: %+v", r.Stats().Sinks[1])
	}
}

func TestCallerThatLeavesDoesNotWait(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out), Required: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := r.Begin(t.Context(), Start{})
	if err := o.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	o.End()
	close(out.let)
}

// TestCommitsShareWrites blocks the first Write until all other records wait. A second
// Write must take them all.
func TestCommitsShareWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSlow()
		r := newRecorder(t, Config{Sinks: to(out), Required: true})
		var running sync.WaitGroup
		for i := range 100 {
			running.Go(func() {
				o := decide(t, r, fmt.Sprint(i%2), allowlist.Deny, allowlist.NotOnAllowlist)
				if err := o.Commit(t.Context()); err != nil {
					t.Error(err)
				}
				o.End()
			})
		}
		synctest.Wait()
		close(out.let)
		running.Wait()
		if n := len(out.of(EventDecision)); n != 100 || out.writes > 2 {
			t.Errorf("%d records in %d writes", n, out.writes)
		}
	})
}

// picky is a slow sink that cannot write the records of one identity.
type picky struct{ *slow }

func (p picky) Write(ctx context.Context, records []*Record) error {
	lost := &LostError{Err: errors.New("not this one")}
	var rest []*Record
	for i, rec := range records {
		if rec.Identity.Path() == "/bad" {
			lost.Lost = append(lost.Lost, i)
		} else {
			rest = append(rest, rec)
		}
	}
	if err := p.slow.Write(ctx, rest); err != nil {
		return err
	}
	return lost
}

// TestOnlyTheDecisionWhoseRecordIsLostIsRefused checks that the other decisions in the
// same Write are not refused.
func TestOnlyTheDecisionWhoseRecordIsLostIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := picky{newSlow()}
		r := newRecorder(t, Config{Sinks: to(out), Required: true})
		var running sync.WaitGroup
		for i := range 20 {
			running.Go(func() {
				who := []string{"good", "bad"}[i%2]
				o := decide(t, r, who, allowlist.Allow, allowlist.NoReason)
				if err := o.Commit(t.Context()); (err != nil) != (who == "bad") {
					t.Errorf("%s: %v", who, err)
				}
				if o.Committed() {
					o.End()
				}
			})
		}
		synctest.Wait()
		close(out.let)
		running.Wait()
		closeNow(t, r)
		checkSums(t, r)
		if got := r.Stats().Sinks[0]; got.Written != 10 || got.Failed != 10 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestCommitWaitsOnlyInRequiredMode(t *testing.T) {
	out := newSlow()
	r := newRecorder(t, Config{Sinks: to(out)})
	o := r.Begin(t.Context(), Start{})
	if err := o.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	o.Status = 200 // in time, because the record is not final
	o.End()
	close(out.let)
	closeNow(t, r)
	if got := statuses(out.taken()); !cmp.Equal(got, []int{200}) {
		t.Errorf("statuses %v", got)
	}
}
