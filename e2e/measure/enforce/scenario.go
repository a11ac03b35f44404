package enforce

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// scenario is a way in which tunnels become forbidden.
type scenario struct {
	name   string
	reason string // reason in the records of their ends
	dated  bool   // says that they end at a date, and not after a rename
	// victim reports whether the scenario ends a tunnel.
	victim func(caller, destination int) bool
	// forbid forbids the tunnels. It returns the time from which they are forbidden.
	forbid func(ctx context.Context) (time.Time, error)
	// restore allows the tunnels again.
	restore func() (time.Time, error)
}

func (w *world) scenarios() []scenario {
	restorePolicy := func() (time.Time, error) { return w.Replace("policy.yaml", w.policy(everything)) }
	return []scenario{
		{
			name: "a destination leaves the policy", reason: "not-on-allowlist",
			victim: func(_, destination int) bool { return destination == removed },
			forbid: func(context.Context) (time.Time, error) {
				return w.Replace("policy.yaml", w.policy(func(d int, rule string) string {
					if d == removed {
						return ""
					}
					return rule
				}))
			},
			restore: restorePolicy,
		},
		{
			name: "an authority leaves the bundle", reason: "identity-untrusted",
			victim:  func(caller, _ int) bool { return caller >= identities-leaving },
			forbid:  func(context.Context) (time.Time, error) { return w.Replace("gateway/bundle.pem", w.bundle(false)) },
			restore: func() (time.Time, error) { return w.Replace("gateway/bundle.pem", w.bundle(true)) },
		},
		{
			name: "a date passes", reason: "rule-expired", dated: true,
			victim:  func(_, destination int) bool { return destination == expired },
			forbid:  w.expire,
			restore: restorePolicy,
		},
		w.aliasDenied(),
	}
}

// expire gives the rules of a destination a date a few seconds ahead. It returns the date
// when the policy is in force.
func (w *world) expire(ctx context.Context) (time.Time, error) {
	at := time.Now().Add(3 * time.Second).Truncate(time.Second)
	dated := w.policy(func(d int, rule string) string {
		if d == expired {
			rule += fmt.Sprintf(", expires: %q", at.UTC().Format(time.RFC3339))
		}
		return rule
	})
	since, err := w.Replace("policy.yaml", dated)
	if err != nil {
		return at, err
	}
	all, err := w.records.until(ctx, "the policy with dates", func(all []site.Record) bool {
		_, ok := reloaded(all, since)
		return ok
	})
	if err != nil {
		return at, err
	}
	if r, _ := reloaded(all, since); !strings.HasPrefix(r.Detail, "closed 0 of ") || !r.Time.Before(at) {
		return at, fmt.Errorf("the policy with dates: %s at %s, the date is %s", r.Detail, r.Time, at)
	}
	return at, nil
}
