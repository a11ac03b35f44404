package live

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// endsAt waits for the end of a tunnel, in a bubble, and returns when it came.
func (f *flow) endsAt(t *testing.T) (at time.Time, why ending) {
	t.Helper()
	select {
	case why = <-f.told:
		return time.Now(), why
	case <-time.After(1000 * time.Hour):
		t.Fatal("the tunnel was not told to end")
		return time.Time{}, ending{}
	}
}

func TestDatesEndTunnels(t *testing.T) {
	const day = 24 * time.Hour
	for _, row := range []struct {
		name   string
		policy func(now time.Time) *allowlist.Policy
		after  time.Duration
		why    allowlist.Reason
	}{
		{"a rule expires", func(now time.Time) *allowlist.Policy {
			return policy(entry("a", until(to("x.example"), now.Add(90*time.Second))))
		}, 90 * time.Second, allowlist.RuleExpired},
		{"the second of two dates", func(now time.Time) *allowlist.Policy {
			return policy(entry("a", until(to("x.example"), now.Add(30*day)), until(to("y.example"), now.Add(day))))
		}, 30 * day, allowlist.RuleExpired},
		{"the later of two rules that both allow it", func(now time.Time) *allowlist.Policy {
			return policy(entry("a", until(to("x.example"), now.Add(day)), until(to("*.example"), now.Add(2*day))))
		}, 2 * day, allowlist.RuleExpired},
		{"observing ends", func(now time.Time) *allowlist.Policy {
			return policy(observing(entry("a"), now.Add(3*time.Millisecond)))
		}, 3 * time.Millisecond, allowlist.NotOnAllowlist},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, start := newRig(t, nil), time.Now()
				r.run(t)
				r.put(t.Context(), row.policy(start))
				f := newFlow("a", "x.example")
				r.open(f)
				decided := r.current.Load()
				at, why := f.endsAt(t)
				if want := (ending{tunnel.Revoked, row.why}); at.Sub(start) != row.after || why != want {
					t.Errorf("ended after %v by %v, want %v and %v", at.Sub(start), why, row.after, want)
				}
				synctest.Wait()
				if now := r.current.Load(); now == decided || now.Generation != decided.Generation || now.Loaded != decided.Loaded {
					t.Errorf("state %+v, want another one that equals %+v: whoever decided before the date must see that it has passed", now, decided)
				}
			})
		})
	}
}

// TestADateBeforeRun passes after the policy was put in force and before
// anybody looks at dates.
func TestADateBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start := newRig(t, nil), time.Now()
		r.put(t.Context(), policy(entry("a", until(to("x.example"), start.Add(time.Second)))))
		f := newFlow("a", "x.example")
		r.open(f)
		<-time.After(time.Minute)
		r.run(t)
		if f.ended() == (ending{}) {
			t.Error("the tunnel is open")
		}
	})
}

// TestADateOfThePolicyBefore does not count any more, and one that has passed
// before the policy came is no news.
func TestADateOfThePolicyBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start := newRig(t, nil), time.Now()
		r.run(t)
		f := newFlow("a", "x.example")
		r.put(t.Context(), policy(entry("a", until(to("x.example"), start.Add(time.Hour)))))
		r.open(f)
		<-time.After(30*time.Minute + 30*time.Second) // half way between two looks at the clock
		r.put(t.Context(), policy(entry("a", to("x.example"), until(to("old.example"), time.Now().Add(-time.Second)))))
		<-time.After(24 * time.Hour)
		if f.ended() != (ending{}) {
			t.Error("the tunnel ended at a date that is no longer in force")
		}
		if len(r.did) != 2 {
			t.Errorf("%d enforcements, want the two of Put", len(r.did))
		}
	})
}

func TestNoDateNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(cfg *EnforcerConfig) { cfg.CloseAtExpiry = true })
		r.run(t)
		<-time.After(time.Hour) // without any state
		r.put(t.Context(), policy(entry("a", to("x.example"))))
		state := r.current.Load()
		f := newFlow("a", "x.example")
		f.NotAfter = time.Now().Add(1000 * time.Hour)
		r.open(f, newFlow("a", "x.example"))
		<-time.After(100 * time.Hour)
		if len(r.did) != 1 || r.current.Load() != state {
			t.Errorf("%d enforcements, want the one of Put", len(r.did))
		}
	})
}

func TestAnIdentityThatExpires(t *testing.T) {
	for n := range 4 {
		closing, source := n%2 > 0, []allowlist.Proof{allowlist.ProofX509SVID, allowlist.ProofListener}[n/2]
		synctest.Test(t, func(t *testing.T) {
			r, start := newRig(t, func(cfg *EnforcerConfig) { cfg.CloseAtExpiry = closing }), time.Now()
			r.run(t)
			r.put(t.Context(), policy(entry("a", to("x.example"))))
			f, forever := newFlow("a", "x.example"), newFlow("a", "x.example")
			f.NotAfter, f.Decided.Request.Proof = start.Add(time.Hour), source
			r.open(f, forever)
			if closing {
				at, why := f.endsAt(t)
				late := at.Sub(f.NotAfter)
				if want := (ending{tunnel.Revoked, allowlist.IdentityExpired}); late <= 0 || late > time.Second || why != want {
					t.Errorf("ended %v after the SVID by %v, want within a second by %v", late, why, want)
				}
			}
			<-time.After(3 * time.Hour)
			r.put(t.Context(), policy(entry("a", to("x.example"))))
			if f.ended() != (ending{}) || forever.ended() != (ending{}) {
				t.Errorf("closing at expiry: %v: a tunnel ended", closing)
			}
			want := 2
			if closing {
				want = 3 // and not once a second while the tunnel is on its way
			}
			if len(r.did) != want {
				t.Errorf("%d enforcements, want %d", len(r.did), want)
			}
		})
	}
}

func TestRunReturns(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	r := newRig(t, nil)
	stop()
	r.Run(ctx) // or the test does not end
}

// TestADateThatPassedUnseenIsObeyedBeforeWhatComesNext: a further policy, in which the
// rule had expired before it came, does not hold what the date has ended.
func TestADateThatPassedUnseenIsObeyedBeforeWhatComesNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start := newRig(t, holding), time.Now() // and nobody looks at dates
		two := func(version string) Change {
			return another(named(version, entry("*", until(to("x.example"), start.Add(time.Hour)))))
		}
		r.Confirm(t.Context(), together(another(named("one", entry("*", to("*.example")))), cutting()))
		dated := newFlow("a", "x.example")
		r.open(dated, newFlow("b", "y.example"), newFlow("c", "y.example"))
		if got := r.Apply(t.Context(), two("two")); got != Held {
			t.Fatalf("effect %d", got)
		}
		time.Sleep(2 * time.Hour)
		if got := r.Apply(t.Context(), two("three")); got != Held || r.Held().Entries != 2 {
			t.Errorf("effect %d, held %+v", got, r.Held())
		}
		if got := dated.ended(); got != (ending{tunnel.Revoked, allowlist.RuleExpired}) {
			t.Errorf("ended by %v", got)
		}
	})
}
