package live

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// endsAt waits, in a synctest bubble, until a tunnel is ended, and returns when and how.
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

// TestDatesEndTunnels checks that a tunnel ends at the date from which nothing allows it
// any more, and that requests which were decided before that date see another state.
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

// TestDateThatPassedBeforeRun checks that Run enforces a date that passed after the
// policy came in force and before Run began.
func TestDateThatPassedBeforeRun(t *testing.T) {
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

// TestDatesOfThePreviousPolicyDoNotCount checks that a date of the previous policy ends
// nothing, and that a date which passed before the policy came causes no enforcement.
func TestDatesOfThePreviousPolicyDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start := newRig(t, nil), time.Now()
		r.run(t)
		f := newFlow("a", "x.example")
		r.put(t.Context(), policy(entry("a", until(to("x.example"), start.Add(time.Hour)))))
		r.open(f)
		<-time.After(30*time.Minute + 30*time.Second) // half way between two checks of the dates
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

// TestWithoutADateNothingIsEnforcedAgain checks that time alone causes no enforcement if
// the policy has no date.
func TestWithoutADateNothingIsEnforcedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(cfg *EnforcerConfig) { cfg.CloseAtExpiry = true })
		r.run(t)
		<-time.After(time.Hour) // no state is in force yet
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

// TestAnIdentityThatExpires checks that tunnels end within a second of the expiry of
// their identity, if CloseAtExpiry is set, and never otherwise.
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
				want = 3 // the expiry is enforced once, and not every second until the tunnel has left
			}
			if len(r.did) != want {
				t.Errorf("%d enforcements, want %d", len(r.did), want)
			}
		})
	}
}

// TestRunReturns checks that Run returns when its context is done.
func TestRunReturns(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	r := newRig(t, nil)
	stop()
	r.Run(ctx) // the test would not end if this did not return
}

// TestPassedDateIsEnforcedBeforeTheNextPolicy checks that a date which passed while
// nothing enforced dates ends its tunnels before the next policy is judged. That policy,
// in which the rule had expired before it came, would hold them.
func TestPassedDateIsEnforcedBeforeTheNextPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start := newRig(t, holding), time.Now() // Run is not called, so that dates are not enforced
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
