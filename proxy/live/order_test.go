package live

import (
	"context"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestEnforcedIsCalledInOrder checks that concurrent changes are reported in the order
// of their generations.
func TestEnforcedIsCalledInOrder(t *testing.T) {
	r := newRig(t, nil)
	var putting sync.WaitGroup
	for range 4 {
		putting.Go(func() {
			for range 25 {
				r.put(t.Context(), policy())
				r.TrustChanged(t.Context())
			}
		})
	}
	putting.Wait()
	for i, did := range r.did {
		if want := uint64(i) + 1; did.State.Generation != want {
			t.Fatalf("told of generation %d, want %d", did.State.Generation, want)
		}
	}
	if len(r.did) != 200 {
		t.Errorf("told %d times, want 200", len(r.did))
	}
}

// TestNoTunnelEscapesAState opens tunnels in the way of the doors while two policies
// take turns, and checks that the last one allows every tunnel that is still open.
func TestNoTunnelEscapesAState(t *testing.T) {
	const callers, tunnels, flips = 8, 200, 100
	states := []*allowlist.Policy{policy(entry("a", to("x.example"))), policy(entry("a", to("y.example")))}
	var current Current
	var registry Registry
	enforcer := must(NewEnforcer(EnforcerConfig{Current: &current, Registry: &registry, Trusts: trustAll}))
	putBy(t.Context(), enforcer, states[0])

	var opening sync.WaitGroup
	for range callers {
		opening.Go(func() {
			for i := range tunnels {
				openTunnel(&current, &registry, []string{"x.example", "y.example"}[i%2])
			}
		})
	}
	opening.Go(func() {
		for n := range flips {
			putBy(t.Context(), enforcer, states[n%2])
		}
	})
	opening.Wait()
	last := current.Load()
	if registry.Len() == 0 {
		t.Log("no tunnel is open at the end: nothing was shown this time")
	}
	for _, tun := range registry.notEnded() {
		if !last.Decide(tun.Decided.Request).Allowed() {
			t.Errorf("a tunnel to %s is open, which generation %d forbids", tun.Decided.Request.Dest, last.Generation)
		}
	}
}

// openTunnel decides, registers, and then decides again if the state has changed; see
// [Registry.Add].
func openTunnel(current *Current, registry *Registry, host string) {
	f := newFlow("a", host)
	state := current.Load()
	if !state.Decide(f.Decided.Request).Allowed() {
		return
	}
	f.End = func(tunnel.Reason, allowlist.Reason) { registry.Remove(f.Entry) }
	registry.Add(f.Entry)
	if now := current.Load(); now != state && !now.Decide(f.Decided.Request).Allowed() {
		registry.Remove(f.Entry)
	}
}

// TestEnforcedMayBeNil checks that an enforcer needs no Enforced, and that a tunnel may
// leave while it is ended.
func TestEnforcedMayBeNil(t *testing.T) {
	var registry Registry
	e := must(NewEnforcer(EnforcerConfig{Current: &Current{}, Registry: &registry}))
	f := newFlow("a", "x.example")
	f.End = func(tunnel.Reason, allowlist.Reason) { registry.Remove(f.Entry) }
	registry.Add(f.Entry)
	if did := putBy(context.WithoutCancel(t.Context()), e, nil); did.Closed != 1 || registry.Len() != 0 {
		t.Errorf("%+v, %d registered", did, registry.Len())
	}
}

// TestATunnelThatChangesIsNotMissed checks that a tunnel which changes while it is
// judged, as it does with its first bytes, is ended for what it is then.
func TestATunnelThatChangesIsNotMissed(t *testing.T) {
	for _, row := range []struct {
		name string
		host string // its destination after the change
		want ending
	}{
		{"its new destination is allowed, and its authority is not trusted", "y.example", ending{tunnel.Revoked, allowlist.IdentityUntrusted}},
		{"its new destination is forbidden", "z.example", ending{tunnel.Revoked, allowlist.NotOnAllowlist}},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFlow("a", "x.example")
			var r *rig
			become := sync.OnceFunc(func() {
				f.Change(func(d *Decided) { d.Request.Dest.Host = must(allowlist.ParseHost(row.host)) })
			})
			r = newRig(t, func(cfg *EnforcerConfig) {
				cfg.Trusts = func([]*x509.Certificate) bool {
					become()
					return false
				}
			})
			r.current.Swap(policy(entry("a", to("x.example"), to("y.example"))), time.Now())
			r.registry.Add(f.Entry)
			e := r.TrustChanged(t.Context())
			if diff := cmp.Diff(row.want, f.ended()); diff != "" {
				t.Errorf("what it was told (-want +got):\n%s", diff)
			}
			if e.Open != 1 || e.Closed != 1 {
				t.Errorf("%d of %d ended, want 1 of 1", e.Closed, e.Open)
			}
		})
	}
}
