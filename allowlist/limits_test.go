package allowlist

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func limits(l Limits) func(*Entry) { return func(e *Entry) { e.Limits = l } }

func shared(l Limits) func(*Entry) { return func(e *Entry) { e.SharedLimits = l } }

func limited(t *testing.T) *Policy {
	t.Helper()
	return policyOf(
		t,
		entryOf("everyone of prod.example", limits(Limits{Tunnels: 1, UploadPerHour: 1 << 30})),
		entryOf("spiffe://prod.example/**", limits(Limits{Tunnels: 2, ConnectsPerSecond: 20}), shared(Limits{Tunnels: 1000})),
		entryOf("spiffe://prod.example/ns/ci/sa/*", limits(Limits{Tunnels: 3}), shared(Limits{Tunnels: 100, UploadPerHour: 5})),
		entryOf(builder, limits(Limits{ConnectsPerSecond: 4})),
		entryOf(checkout),
	)
}

// TestLimitsMergeKeyByKey checks that each limit of an identity comes from the most
// specific entry that sets it.
func TestLimitsMergeKeyByKey(t *testing.T) {
	p := limited(t)
	for _, row := range []struct {
		id   string
		want Limits
	}{
		{builder, Limits{Tunnels: 3, ConnectsPerSecond: 4, UploadPerHour: 1 << 30}},
		{"spiffe://prod.example/ns/ci/sa/other", Limits{Tunnels: 3, ConnectsPerSecond: 20, UploadPerHour: 1 << 30}},
		{checkout, Limits{Tunnels: 2, ConnectsPerSecond: 20, UploadPerHour: 1 << 30}},
		{"spiffe://dev.example/x", Limits{}},
	} {
		if diff := cmp.Diff(p.Limits(spiffeid.RequireFromString(row.id)), row.want); diff != "" {
			t.Errorf("%s: got -, want +\n%s", row.id, diff)
		}
	}
	if got := (*Policy)(nil).Limits(spiffeid.RequireFromString(builder)); got != (Limits{}) {
		t.Errorf("no policy: %+v", got)
	}
}

// TestSharedLimits checks which patterns with shared limits apply to an identity.
func TestSharedLimits(t *testing.T) {
	const quarantined = "spiffe://prod.example/ns/ci/sa/cut"
	p := limited(t).WithQuarantine(NewQuarantineList([]Quarantined{{Pattern: must(ParseIdentityPattern(quarantined))}}))
	for _, row := range []struct {
		id   string
		want map[string]Limits
	}{
		{builder, map[string]Limits{
			"spiffe://prod.example/ns/ci/sa/*": {Tunnels: 100, UploadPerHour: 5}, "spiffe://prod.example/**": {Tunnels: 1000},
		}},
		{checkout, map[string]Limits{"spiffe://prod.example/**": {Tunnels: 1000}}},
		{"spiffe://dev.example/x", map[string]Limits{}},
		{quarantined, map[string]Limits{}},
	} {
		got := map[string]Limits{}
		p.EachShared(spiffeid.RequireFromString(row.id), func(pattern IdentityPattern, l Limits) {
			got[pattern.String()] = l
			if p.Shared(pattern) != l {
				t.Errorf("%s: %+v, and %+v by itself", pattern, l, p.Shared(pattern))
			}
		})
		if diff := cmp.Diff(got, row.want); diff != "" {
			t.Errorf("%s: got -, want +\n%s", row.id, diff)
		}
	}
	for _, pattern := range []string{checkout, builder, "spiffe://prod.example/ns/*", "spiffe://dev.example/**"} {
		if got := p.Shared(must(ParseIdentityPattern(pattern))); got != (Limits{}) {
			t.Errorf("%s shares %+v", pattern, got)
		}
	}
}

func TestLimitsAllocateNothing(t *testing.T) {
	p := limited(t)
	id := spiffeid.RequireFromString(builder)
	tunnels := 0
	if n := testing.AllocsPerRun(100, func() {
		tunnels += p.Limits(id).Tunnels
		p.EachShared(id, func(_ IdentityPattern, l Limits) { tunnels += l.Tunnels })
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestTLSOfADecision checks which TLS and ECH modes a decision has.
func TestTLSOfADecision(t *testing.T) {
	off := func(r *Rule) { r.TLS = TLSOff }
	p := policyOf(t, entryOf(
		checkout,
		allow(
			rule("api.example port 443,8443"), rule("db.example port 443,5432", off),
			rule("strict.example port 443,8443", func(r *Rule) { r.TLS, r.ECH = TLSRequire, ECHRefuse }),
			rule("mail.example port 443", func(r *Rule) { r.TLS = TLSAuto }),
		),
	), entryOf(builder, observe(now().AddDate(1, 0, 0))))
	for _, row := range []struct {
		id, dest string
		mode     TLSMode
		ech      ECHMode
	}{
		{checkout, "api.example:443", TLSRequire, ECHRecord},
		{checkout, "api.example:8443", TLSAuto, ECHRecord},
		{checkout, "db.example:443", TLSOff, ECHRecord},
		{checkout, "db.example:5432", TLSOff, ECHRecord},
		{checkout, "strict.example:8443", TLSRequire, ECHRefuse},
		{checkout, "mail.example:443", TLSAuto, ECHRecord},
		{builder, "seen.example:443", TLSRequire, ECHRecord}, // observed, without a rule
		{builder, "seen.example:25", TLSAuto, ECHRecord},
	} {
		d := p.Decide(tunnel(row.id, row.dest))
		if mode, ech := d.TLS(); !d.Allowed() || mode != row.mode || ech != row.ech {
			t.Errorf("%s to %s: %s, TLS %d, ECH %d, want %d, %d", row.id, row.dest, answer(d), mode, ech, row.mode, row.ech)
		}
		d = p.Decide(plain(row.id, "GET", row.dest, "/"))
		if want := row.mode == TLSRequire; (d.Reason == NotTLS) != want || d.Allowed() == want {
			t.Errorf("%s to %s in clear: %s", row.id, row.dest, answer(d))
		}
	}
}
