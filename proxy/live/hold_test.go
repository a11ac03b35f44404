package live

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// connection turns a flow into a connection for queries.
func connection(f *flow) *flow {
	f.Decided.Request.Dest, f.Decided.Addr = allowlist.Destination{}, netip.AddrPort{}
	return f
}

// dialling turns a flow into a request whose connection is still being opened.
func dialling(f *flow) *flow {
	f.Decided.Addr = netip.AddrPort{}
	return f
}

// TestMaxRevoke checks that a policy is held if it ends tunnels of more identities than
// MaxRevoke allows. The number of tunnels of an identity does not matter: caller n has
// n+1 tunnels to a host that stays allowed, and two more if it loses something.
func TestMaxRevoke(t *testing.T) {
	for _, row := range []struct {
		name       string
		bound      MaxRevoke
		all, going int // identities
		held       bool
	}{
		{name: "no bound", all: 50, going: 50},
		{name: "a number without a share is no bound", bound: MaxRevoke{AtLeast: 1}, all: 50, going: 50},
		{name: "nothing closes", bound: MaxRevoke{Share: 0.01}, all: 50},
		{name: "nothing is open", bound: MaxRevoke{Share: 0.01}},
		{name: "a share without a number does not hold for twenty identities", bound: MaxRevoke{Share: 0.01}, all: 20, going: 20},
		{name: "a share without a number holds for twenty-one identities", bound: MaxRevoke{Share: 0.01}, all: 21, going: 21, held: true},
		{name: "exactly the share", bound: MaxRevoke{Share: 0.3, AtLeast: 1}, all: 10, going: 3},
		{name: "one more than the share", bound: MaxRevoke{Share: 0.3, AtLeast: 1}, all: 10, going: 4, held: true},
		{name: "exactly a share that has no binary form", bound: MaxRevoke{Share: 0.29, AtLeast: 1}, all: 100, going: 29},
		{name: "one more than a share that has no binary form", bound: MaxRevoke{Share: 0.29, AtLeast: 1}, all: 100, going: 30, held: true},
		{name: "more than the share, but not than the number", bound: MaxRevoke{Share: 0.3, AtLeast: 4}, all: 10, going: 4},
		{name: "more than the number, but not than the share", bound: MaxRevoke{Share: 0.5, AtLeast: 4}, all: 10, going: 5},
		{name: "all, with a share of one", bound: MaxRevoke{Share: 1, AtLeast: 1}, all: 10, going: 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, func(cfg *EnforcerConfig) { cfg.MaxRevoke = row.bound })
			r.Confirm(t.Context(), together(another(named("one", entry("*", to("*.example")))), cutting()))
			var going, staying []*flow
			for n := range row.all {
				name := fmt.Sprintf("caller-%d", n)
				staying = append(staying, newFlow(name, "stays.example"))
				for range n {
					staying = append(staying, newFlow(name, "stays.example"))
				}
				if n < row.going {
					going = append(going, newFlow(name, "goes.example"), newFlow(name, "goes.example"))
				}
			}
			r.open(staying...)
			r.open(going...)
			r.Apply(t.Context(), another(named("two", entry("*", to("stays.example")))))
			want := Enforcement{Open: len(going) + len(staying), Closed: len(going)}
			if row.held {
				want.Closed, want.Held = 0, Hold{Entries: len(going), Identities: row.going, OfIdentities: row.all}
			}
			did := r.did[len(r.did)-1]
			if did.Open != want.Open || did.Closed != want.Closed || did.Held != want.Held || r.inForce() != "two" {
				t.Errorf("%+v, want %+v", did, want)
			}
			for _, f := range going {
				if ended := f.ended() != (ending{}); ended == row.held {
					t.Errorf("a tunnel that is forbidden was ended: %v", ended)
				}
			}
			for _, f := range staying {
				if got := f.ended(); got != (ending{}) {
					t.Errorf("a tunnel that is allowed was ended by %v", got)
				}
			}
		})
	}
}

// TestOneIdentityCannotCauseAHold checks that an identity counts once however much it
// has open, so that it cannot get the policy held which forbids its tunnels.
func TestOneIdentityCannotCauseAHold(t *testing.T) {
	r := newRig(t, holding)
	r.Confirm(t.Context(), together(another(named("one", entry("*", to("*.example")))), cutting()))
	var hostile []*flow
	for range 31 {
		hostile = append(hostile, newFlow("hostile", "x.example"), dialling(newFlow("hostile", "x.example")), connection(newFlow("hostile", "x.example")))
	}
	others := []*flow{newFlow("a", "x.example"), newFlow("b", "x.example"), newFlow("c", "x.example"), newFlow("d", "x.example")}
	r.open(hostile...)
	r.open(others...)
	if got := r.Apply(t.Context(), another(named("two", denying(entry("hostile"), to("**.example"), to("x.example")), entry("*", to("*.example"))))); got != InForce {
		t.Errorf("effect %d, want it enforced", got)
	}
	for _, f := range hostile {
		if isConnection := f.Decided.isConnection(); (f.ended() != (ending{})) == isConnection {
			t.Errorf("connection: %v, and it was ended: %v", isConnection, !isConnection)
		}
	}
	for _, f := range others {
		if f.ended() != (ending{}) {
			t.Error("a tunnel of another one was ended")
		}
	}
}

// TestOnlyTunnelsCountForAHold checks that dials and connections for queries do not
// cause a policy to be held. While a policy is held, forbidden dials end and connections
// stay.
func TestOnlyTunnelsCountForAHold(t *testing.T) {
	for _, row := range []struct {
		name    string
		tunnels int // number of tunnels, each of another identity
		held    bool
	}{{"without tunnels nothing is held", 0, false}, {"connections are held beside tunnels", 2, true}} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, holding)
			r.Confirm(t.Context(), together(another(named("one", entry("*", to("*.example")))), cutting()))
			var dials, connections []*flow
			for n := range 30 {
				name := fmt.Sprintf("caller-%d", n)
				dials, connections = append(dials, dialling(newFlow(name, "x.example"))), append(connections, connection(newFlow(name, "x.example")))
				if n < row.tunnels {
					r.open(newFlow(name, "x.example"))
				}
			}
			r.open(dials...)
			r.open(connections...)
			r.Apply(t.Context(), another(named("two", entry("nobody"))))
			if got := !r.Held().IsZero(); got != row.held {
				t.Errorf("held: %+v", r.Held())
			}
			if row.held && r.Held() != (Hold{Entries: len(connections) + row.tunnels, Identities: row.tunnels, OfIdentities: row.tunnels}) {
				t.Errorf("held: %+v", r.Held())
			}
			for i := range dials {
				if dials[i].ended() == (ending{}) {
					t.Error("a dial goes on")
				}
				if ended := connections[i].ended() != (ending{}); ended == row.held {
					t.Errorf("a connection was ended: %v", ended)
				}
			}
		})
	}
}

// TestHeldEntriesAreJudgedAgain checks that what is held is judged again when entries
// leave, at most every 100 ms, and is ended when it is no longer too much.
func TestHeldEntriesAreJudgedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		r := newRig(t, func(cfg *EnforcerConfig) {
			cfg.MaxRevoke = MaxRevoke{Share: 0.3, AtLeast: 10}
			cfg.Trusts = func([]*x509.Certificate) bool { asked.Add(1); return true }
		})
		r.run(t)
		r.Confirm(t.Context(), together(another(named("one", entry("*", to("x.example")))), cutting()))
		flows := make([]*flow, 60)
		for i := range flows {
			flows[i] = newFlow(fmt.Sprintf("caller-%d", i), "x.example")
		}
		r.open(flows...)
		if got := r.Apply(t.Context(), another(named("two", entry("*", to("y.example"))))); got != Held {
			t.Fatalf("effect %d", got)
		}
		synctest.Wait()
		start := time.Now()
		asked.Store(0)
		for i := range 50 { // one every 10 ms
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if got := r.Held(); got.IsZero() || len(r.did) != 2 {
				t.Fatalf("after %d have left: held %+v, told %d times", i, got, len(r.did))
			}
			r.registry.Remove(flows[i].Entry)
		}
		if n, most := asked.Load(), int64(60*5); n == 0 || n > most {
			t.Errorf("%d were judged in half a second, want at most %d", n, most)
		}
		for _, f := range flows[50:] {
			if at, why := f.endsAt(t); at.Sub(start) > 500*time.Millisecond+heldInterval || why != (ending{tunnel.Revoked, allowlist.NotOnAllowlist}) {
				t.Errorf("ended after %v by %v", at.Sub(start), why)
			}
		}
		synctest.Wait()
		if !r.Held().IsZero() || len(r.did) != 3 || r.did[2].Closed != 10 || !r.did[2].Held.IsZero() || r.did[2].State != r.current.Load() {
			t.Errorf("held %+v, told of %+v", r.Held(), r.did)
		}
		asked.Store(0)
		r.registry.Remove(flows[50].Entry)
		time.Sleep(time.Hour)
		if asked.Load() > 0 {
			t.Error("judged again though nothing is held")
		}
	})
}

// TestPassedDateIsNotHeld checks that a date which passes ends tunnels while a policy is
// held, if it is a date of the policy in force or of the previous one, which still
// decides what stays open. A rule that had expired before the policy came is held like
// any other.
func TestPassedDateIsNotHeld(t *testing.T) {
	const day = 24 * time.Hour
	for _, row := range []struct {
		name     string
		one, two func(now time.Time) allowlist.Rule // rule of the first and of the second policy
		ends     time.Duration                      // when the tunnel ends; zero if it stays
		why      allowlist.Reason
	}{
		{
			"a rule of the previous policy expires",
			func(now time.Time) allowlist.Rule { return until(to("x.example"), now.Add(day)) },
			func(time.Time) allowlist.Rule { return to("y.example") },
			day, allowlist.NotOnAllowlist,
		},
		{
			"a rule of the policy in force expires",
			func(time.Time) allowlist.Rule { return to("x.example") },
			func(now time.Time) allowlist.Rule { return until(to("x.example"), now.Add(day)) },
			day, allowlist.RuleExpired,
		},
		{
			"a rule of the policy in force had expired before it came",
			func(time.Time) allowlist.Rule { return to("x.example") },
			func(now time.Time) allowlist.Rule { return until(to("x.example"), now.Add(-day)) },
			0, allowlist.NoReason,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, start := newRig(t, holding), time.Now()
				r.run(t)
				r.Confirm(t.Context(), together(another(named("one", entry("*", row.one(start), to("held.example")))), cutting()))
				r.open(newFlow("a", "held.example"), newFlow("b", "held.example"), newFlow("c", "held.example"))
				f := newFlow("d", "x.example")
				r.open(f)
				if got := r.Apply(t.Context(), another(named("two", entry("*", row.two(start))))); got != Held {
					t.Fatalf("effect %d", got)
				}
				if row.ends == 0 {
					time.Sleep(10 * day)
					if got := f.ended(); got != (ending{}) || r.Held().IsZero() {
						t.Errorf("ended by %v, held %+v", got, r.Held())
					}
					return
				}
				if at, why := f.endsAt(t); at.Sub(start) != row.ends || why.Why != row.why {
					t.Errorf("ended after %v by %v, want %v and %v", at.Sub(start), why, row.ends, row.why)
				}
				synctest.Wait()
				if r.Held().IsZero() {
					t.Error("the others are held no more")
				}
			})
		})
	}
}

// TestExpiredIdentityIsNotHeld checks that the expiry of an identity ends its tunnels
// while a policy is held.
func TestExpiredIdentityIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start := newRig(t, func(cfg *EnforcerConfig) {
			holding(cfg)
			cfg.CloseAtExpiry = true
		}), time.Now()
		r.run(t)
		r.Confirm(t.Context(), together(another(named("one", entry("*", to("x.example")))), cutting()))
		expiring := newFlow("a", "x.example")
		expiring.NotAfter = start.Add(time.Hour)
		r.open(expiring, newFlow("b", "x.example"), newFlow("c", "x.example"))
		if got := r.Apply(t.Context(), another(named("two", entry("*", to("y.example"))))); got != Held {
			t.Fatalf("effect %d", got)
		}
		if at, why := expiring.endsAt(t); at.Sub(start) > time.Hour+expiryInterval || why.Why != allowlist.IdentityExpired {
			t.Errorf("ended after %v by %v", at.Sub(start), why)
		}
	})
}

// TestRandomSequences puts random policies, quarantine lists, addresses and trust in
// force over random entries, which come, leave and are promoted while dates pass. After
// each step it compares what is open with what a second, independent decision allows.
func TestRandomSequences(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSequence(t, rand.New(rand.NewPCG(seed, 7)))
				for range 60 {
					s.step()
					time.Sleep(time.Minute) // in this time held entries are judged again, and dates pass
					synctest.Wait()
					s.check()
				}
			})
		})
	}
}

// sequence is a run of random steps. It keeps its own account of what was loaded, and of
// the policy that was enforced last.
type sequence struct {
	t *testing.T
	*rand.Rand
	*rig
	bound MaxRevoke

	newest, enforced *allowlist.Policy
	since            time.Time
	quarantine       *allowlist.QuarantineList
	classifier       *allowlist.Classifier
	untrusted        string
	flows            []*flow
}

func newSequence(t *testing.T, r *rand.Rand) *sequence {
	t.Helper()
	s := &sequence{t: t, Rand: r, bound: MaxRevoke{Share: 0.1 + r.Float64()/2, AtLeast: 1 + r.IntN(2)}}
	s.rig = newRig(t, func(cfg *EnforcerConfig) {
		cfg.MaxRevoke, cfg.Trusts = s.bound, func(certs []*x509.Certificate) bool { return string(certs[0].Raw) != s.untrusted }
	})
	s.run(t)
	s.load(true, together(another(s.policy()), cutting()))
	return s
}

func (s *sequence) name() string { return string(rune('a' + s.IntN(6))) }
func (s *sequence) host() string { return string(rune('u'+s.IntN(4))) + ".example" }

// policy allows some identities some hosts, a few of them until a date.
func (s *sequence) policy() *allowlist.Policy {
	var entries []allowlist.Entry
	for n := range 6 {
		if s.IntN(5) == 0 {
			continue
		}
		e := entry(string(rune('a' + n)))
		for _, host := range []string{"u.example", "v.example", "w.example", "x.example"} {
			switch s.IntN(6) {
			case 0:
			case 1:
				e.Allow = append(e.Allow, until(to(host), time.Now().Add(time.Duration(s.IntN(20)-5)*time.Minute+time.Second)))
			case 2:
				e.Allow = append(e.Allow, onlyAt(to(host), "8.8.8.8/32"))
			default:
				e.Allow = append(e.Allow, to(host))
			}
			if n := len(e.Allow); n > 0 && s.IntN(3) == 0 {
				e.Allow[n-1].TLS = []allowlist.TLSMode{allowlist.TLSOff, allowlist.TLSAuto, allowlist.TLSRequire}[s.IntN(3)]
				if e.Allow[n-1].TLS != allowlist.TLSOff && s.IntN(2) == 0 {
					e.Allow[n-1].ECH = allowlist.ECHRefuse
				}
			}
		}
		if s.IntN(3) == 0 {
			e.Deny = append(e.Deny, to([]string{"alias.example", "edge.example", "u.example"}[s.IntN(3)]))
		}
		entries = append(entries, e)
	}
	spec := allowlist.Spec{Version: fmt.Sprint(s.Int()), Entries: entries}
	if s.IntN(8) == 0 {
		spec.Quarantine = []allowlist.Quarantined{{Pattern: must(allowlist.ParseIdentityPattern(spiffe(s.name())))}}
	}
	return must(allowlist.Compile(spec))
}

func (s *sequence) step() {
	switch n := s.IntN(12); {
	case n < 2:
		s.load(false, another(s.policy()))
	case n == 2:
		s.load(true, Change{})
	case n == 3:
		s.load(false, cutting(s.name()))
	case n == 4:
		s.load(s.IntN(2) == 0, together(another(s.policy()), cutting(s.name())))
	case n == 5:
		s.load(false, hostAt([]string{"8.8.8.8", "8.8.4.4"}[s.IntN(2)]))
	case n == 6:
		s.untrusted = s.name()
		s.TrustChanged(s.t.Context())
	default:
		for range s.IntN(5) {
			s.come()
		}
		for range s.IntN(4) {
			s.leave()
		}
	}
}

func (s *sequence) load(sure bool, c Change) {
	if c.Policy != nil {
		s.newest, s.since = c.Policy, time.Now()
	}
	if c.Quarantine != nil {
		s.quarantine = c.Quarantine
	}
	if c.Classifier != nil {
		s.classifier = c.Classifier
	}
	if sure {
		s.Confirm(s.t.Context(), c)
		return
	}
	s.Apply(s.t.Context(), c)
}

// come opens a random entry if a new request for it would be allowed.
func (s *sequence) come() {
	f := newFlow(s.name(), s.host())
	switch s.IntN(6) {
	case 0:
		connection(f)
	case 1:
		dialling(f).Decided.FirstBytes = FirstBytesToCome
	default:
		f.Decided.FirstBytes = FirstBytes(s.IntN(5))
		f.Decided.ECH = f.Decided.FirstBytes >= FirstBytesNoName && s.IntN(2) == 0
		for _, alias := range []string{"alias.example", "edge.example", "x.example"} {
			if s.IntN(3) == 0 {
				f.Decided.Way.Via = append(f.Decided.Way.Via, must(allowlist.ParseHost(alias)))
			}
		}
		f.Decided.Way.Inspect = s.IntN(4) == 0
	}
	if s.refuses(s.newest, f, time.Now()) != allowlist.NoReason || s.untrusted == string(f.Certificates[0].Raw) {
		return
	}
	s.open(f)
	s.flows = append(s.flows, f)
}

func (s *sequence) leave() {
	if len(s.flows) > 0 {
		i := s.IntN(len(s.flows))
		s.registry.Remove(s.flows[i].Entry)
		s.flows = slices.Delete(s.flows, i, i+1)
	}
}

// refuses is the second decision. It returns the reason for which a policy refuses an
// entry.
func (s *sequence) refuses(p *allowlist.Policy, f *flow, at time.Time) allowlist.Reason {
	p = p.WithQuarantine(s.quarantine).WithClassifier(s.classifier)
	req := f.Decided.Request
	if req.Dest.Host.IsZero() {
		return p.Knows(req.ID, req.Proof)
	}
	req.Time = at
	d := p.Decide(req)
	switch {
	case !d.Allowed():
		return d.Reason
	case f.Decided.Addr.IsValid() && d.CheckAddr(f.Decided.Addr) != nil:
		return allowlist.ResolvedAddressDenied
	}
	for _, alias := range f.Decided.Way.Via {
		req.Dest.Host = alias
		if a := p.Decide(req); a.Reason == allowlist.DeniedByRule || f.Decided.Way.Inspect && !a.Allowed() {
			return a.Reason
		}
	}
	return bytesRefused(&d, f.Decided.FirstBytes, f.Decided.ECH)
}

// bytesRefused returns the reason for which a rule's TLS mode refuses first bytes at
// port 443, where require is the default.
func bytesRefused(d *allowlist.Decision, seen FirstBytes, ech bool) allowlist.Reason {
	if d.Rule == nil {
		panic("the policies of this test observe nothing")
	}
	mode, refuse := d.Rule.TLS, d.Rule.ECH == allowlist.ECHRefuse
	require := mode == allowlist.TLSRequire || mode == allowlist.TLSDefault
	switch {
	case mode == allowlist.TLSOff, seen == FirstBytesToCome:
		return allowlist.NoReason
	case refuse && (ech || seen == FirstBytesUnseen):
		return allowlist.ECHRefused
	case seen == FirstBytesUnseen && require:
		return allowlist.SNIMismatch
	case seen == FirstBytesNotTLS && require:
		return allowlist.NotTLS
	case seen == FirstBytesNoName:
		return allowlist.SNIMissing
	}
	return allowlist.NoReason
}

// check checks every entry that was open before the last step.
func (s *sequence) check() {
	s.t.Helper()
	now := time.Now()
	held := s.Held()
	losing, all := map[spiffeid.ID]bool{}, map[spiffeid.ID]bool{}
	s.flows = slices.DeleteFunc(s.flows, func(f *flow) bool {
		if end := f.ended(); end != (ending{}) {
			s.registry.Remove(f.Entry)
			return true
		}
		why := s.refuses(s.newest, f, now)
		isOpen := f.Decided.Request.Dest.Host.IsZero() || f.Decided.Addr.IsValid()
		if isOpen && !f.Decided.Request.Dest.Host.IsZero() {
			all[f.Decided.Request.ID] = true
		}
		switch {
		case string(f.Certificates[0].Raw) == s.untrusted:
			s.t.Errorf("%s is not trusted and goes on", f.Decided.Request.ID)
		case why == allowlist.NoReason:
		case held.IsZero():
			s.t.Errorf("%s to %s is open, nothing is held, and a new one is refused as %s", f.Decided.Request.ID, f.Decided.Request.Dest, why)
		case !isOpen, why == allowlist.QuarantinedIdentity:
			s.t.Errorf("%s to %s is held though it is not open, or in quarantine: %s", f.Decided.Request.ID, f.Decided.Request.Dest, why)
		case s.refuses(s.newest, f, s.since) == allowlist.NoReason:
			s.t.Errorf("%s to %s is held though a date has passed", f.Decided.Request.ID, f.Decided.Request.Dest)
		case s.refuses(s.enforced, f, now) != allowlist.NoReason:
			s.t.Errorf("%s to %s is held though both policies forbid it", f.Decided.Request.ID, f.Decided.Request.Dest)
		case !f.Decided.Request.Dest.Host.IsZero():
			losing[f.Decided.Request.ID] = true
		}
		return false
	})
	if held.IsZero() {
		s.enforced = s.newest
		return
	}
	if len(losing) != held.Identities || len(losing) <= s.bound.AtLeast || float64(len(losing)) <= s.bound.Share*float64(held.OfIdentities) || held.OfIdentities > len(all) {
		s.t.Errorf("held: %+v, but %d of %d lose something by %+v", held, len(losing), len(all), s.bound)
	}
}

// TestEntryThatLeavesWhileJudgedIsNotMissed checks that an entry which leaves while a
// policy is judged either does not count, or makes the enforcer judge again.
func TestEntryThatLeavesWhileJudgedIsNotMissed(t *testing.T) {
	for range 5_000 {
		r := newRig(t, holding)
		r.Confirm(t.Context(), together(another(named("one", entry("*", to("*.example")))), cutting()))
		a, b := newFlow("a", "x.example"), newFlow("b", "x.example")
		r.open(a, b)
		two := another(named("two", entry("nobody")))
		gone := make(chan struct{})
		go func() {
			r.registry.Remove(b.Entry)
			close(gone)
		}()
		r.Apply(t.Context(), two)
		<-gone
		if held := r.Held(); !held.IsZero() && len(r.entryLeft) == 0 {
			t.Fatalf("held: %+v, and nobody looks again", held)
		}
	}
}
