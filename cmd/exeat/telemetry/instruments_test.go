package telemetry

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// scrape returns the samples of the gateway's own metrics, without buckets.
func scrape(t *testing.T, tel *Telemetry) []string {
	t.Helper()
	var samples []string
	for line := range strings.Lines(scrapeAll(t, tel)) {
		if strings.HasPrefix(line, "egress_") && !strings.Contains(line, "_bucket{") {
			samples = append(samples, strings.TrimSuffix(line, "\n"))
		}
	}
	return samples
}

func scrapeAll(t *testing.T, tel *Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	tel.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// expect compares the samples whose names begin with a prefix. It leaves out those that
// have still the zero which they have from the start.
func expect(t *testing.T, tel *Telemetry, prefix string, want ...string) {
	t.Helper()
	var got []string
	atStart := scrape(t, newTelemetry(t, Config{}))
	for _, s := range scrape(t, tel) {
		if strings.HasPrefix(s, prefix) && !slices.Contains(atStart, s) {
			got = append(got, s)
		}
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("%s (-got +want):\n%s", prefix, diff)
	}
}

var builder1 = spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder")

// allowed returns the record of a decision with every duration set.
func allowed() *audit.Record {
	return &audit.Record{
		Event: audit.EventDecision, ID: "1", Protocol: "connect", Identity: builder1, Proof: allowlist.ProofX509SVID, Verdict: allowlist.Allow, Policy: "p1",
		Mode: allowlist.ModeEnforce, Decide: 300 * time.Nanosecond, Resolve: 2 * time.Millisecond, Dial: 20 * time.Millisecond,
	}
}

func TestDecisionsAreCountedByOutcome(t *testing.T) {
	tel := newTelemetry(t, Config{})
	measure := tel.Instruments().Measure
	measure(allowed())
	measure(allowed())
	measure(&audit.Record{
		Event: audit.EventDecision, Protocol: "connect", Identity: builder1, Verdict: allowlist.Observe, Policy: "p1",
		WouldReason: allowlist.NotOnAllowlist, Mode: allowlist.ModeObserve,
	})
	measure(&audit.Record{Event: audit.EventDecision, Protocol: "connect", Reason: allowlist.IdentityMissing})
	measure(&audit.Record{Event: audit.EventSummary, Reason: allowlist.IdentityMissing}) // not counted, because its handshakes were counted one by one
	measure(&audit.Record{Event: audit.EventPolicyReload})
	expect(t, tel, "egress_decisions",
		`egress_decisions_total{mode="",protocol="connect",reason="identity-missing",verdict="deny"} 1`,
		`egress_decisions_total{mode="enforce",protocol="connect",reason="",verdict="allow"} 2`,
		`egress_decisions_total{mode="observe",protocol="connect",reason="not-on-allowlist",verdict="observe"} 1`)
	expect(t, tel, "egress_authorize", `egress_authorize_duration_seconds_sum 6e-07`, `egress_authorize_duration_seconds_count 2`)
	expect(t, tel, "egress_resolve", `egress_resolve_duration_seconds_sum 0.004`, `egress_resolve_duration_seconds_count 2`)
	expect(t, tel, "egress_dial", `egress_dial_duration_seconds_sum 0.04`, `egress_dial_duration_seconds_count 2`)
}

// TestNumberOfIdentitiesIsCapped checks that identities beyond the cap share one series.
func TestNumberOfIdentitiesIsCapped(t *testing.T) {
	tel := newTelemetry(t, Config{IdentityCap: 2})
	for _, path := range []string{"/a", "/b", "/a", "/c", "/d", "/b"} {
		r := allowed()
		r.Identity = spiffeid.RequireFromPath(builder1.TrustDomain(), path)
		tel.Instruments().Measure(r)
	}
	tel.Instruments().Measure(&audit.Record{Event: audit.EventDecision}) // without an identity
	for _, path := range []string{"/x", "/a", "/y"} {                    // identities by source-map, which may be forged, take no series from others
		r := allowed()
		r.Identity, r.Proof = spiffeid.RequireFromPath(builder1.TrustDomain(), path), allowlist.ProofSourceMap
		tel.Instruments().Measure(r)
	}
	expect(t, tel, "egress_decisions_by_identity",
		`egress_decisions_by_identity_total{identity="_other",identity_source="source-map",verdict="allow"} 1`,
		`egress_decisions_by_identity_total{identity="_other",identity_source="x509-svid",verdict="allow"} 2`,
		`egress_decisions_by_identity_total{identity="spiffe://prod.example/a",identity_source="source-map",verdict="allow"} 1`,
		`egress_decisions_by_identity_total{identity="spiffe://prod.example/a",identity_source="x509-svid",verdict="allow"} 2`,
		`egress_decisions_by_identity_total{identity="spiffe://prod.example/b",identity_source="x509-svid",verdict="allow"} 2`,
		`egress_decisions_by_identity_total{identity="spiffe://prod.example/x",identity_source="source-map",verdict="allow"} 1`)
}

// TestMoreSeriesThanTheSDKsLimit checks that there can be more series of a metric than
// the 2,000 to which the SDK limits them by default.
func TestMoreSeriesThanTheSDKsLimit(t *testing.T) {
	const identities = 3000
	tel := newTelemetry(t, Config{IdentityCap: identities})
	for i := range identities {
		r := allowed()
		r.Identity = spiffeid.RequireFromPathf(builder1.TrustDomain(), "/%d", i)
		tel.Instruments().Measure(r)
	}
	if n := strings.Count(scrapeAll(t, tel), `egress_decisions_by_identity_total{identity="spiffe://`); n != identities {
		t.Errorf("%d series, want %d", n, identities)
	}
}

// TestBytesAreCountedAsTunnelsReport checks that the bytes of a tunnel that is still
// open are counted, and none twice.
func TestBytesAreCountedAsTunnelsReport(t *testing.T) {
	tel := newTelemetry(t, Config{})
	tunnel := func(event audit.Event, id string, up, down int64) {
		tel.Instruments().Measure(&audit.Record{Event: event, ID: id, Up: up, Down: down, Duration: 90 * time.Second})
	}
	tunnel(audit.EventTunnelProgress, "long", 100, 1000)
	tunnel(audit.EventTunnelClose, "short", 1, 2)
	tunnel(audit.EventTunnelProgress, "long", 150, 1500)
	expect(t, tel, "egress_io", `egress_io_bytes_total{direction="down"} 1502`, `egress_io_bytes_total{direction="up"} 151`)
	tunnel(audit.EventTunnelClose, "long", 160, 1600)
	expect(t, tel, "egress_io", `egress_io_bytes_total{direction="down"} 1602`, `egress_io_bytes_total{direction="up"} 161`)
	expect(t, tel, "egress_tunnel_d", `egress_tunnel_duration_seconds_sum 180`, `egress_tunnel_duration_seconds_count 2`)
	if left := len(tel.Instruments().progress.counted); left != 0 {
		t.Errorf("%d tunnels are remembered that have ended", left)
	}
}

// TestHandshakesReloadsAndEnforcements checks the metrics of handshakes, reloads and
// enforcements.
func TestHandshakesReloadsAndEnforcements(t *testing.T) {
	tel := newTelemetry(t, Config{})
	i := tel.Instruments()
	i.Handshake(allowlist.NoReason)
	i.Handshake(allowlist.IdentityExpired)
	i.Measure(&audit.Record{Event: audit.EventHandshake, Reason: allowlist.TLSHandshakeFailed})
	i.Unused()
	i.Unused()
	i.Measure(&audit.Record{Event: audit.EventHandshake, Reason: allowlist.IdentityUntrusted}) // not counted, because it is one of the handshakes above
	i.Reload("in-force")
	i.Reload("refused")
	i.Reload("in-force")
	i.Enforced(20 * time.Millisecond)
	expect(t, tel, "egress_tls",
		`egress_tls_handshakes_total{result="identity-expired"} 1`,
		`egress_tls_handshakes_total{result="ok"} 1`,
		`egress_tls_handshakes_total{result="tls-handshake-failed"} 1`,
		`egress_tls_handshakes_total{result="unused"} 2`)
	expect(t, tel, "egress_policy", `egress_policy_reloads_total{result="in-force"} 2`, `egress_policy_reloads_total{result="refused"} 1`)
	expect(t, tel, "egress_revocation", `egress_revocation_duration_seconds_sum 0.02`, `egress_revocation_duration_seconds_count 1`)
}

// query returns the record of a DNS query that a server has answered.
func query(typ allowlist.QueryType) *audit.Record {
	r := allowed()
	r.Protocol, r.DNS = audit.ProtocolDNS, audit.DNS{Type: typ, Code: "NOERROR", Answers: 1, Origin: "upstream"}
	return r
}

// TestQueries checks that values which a caller can choose make no further series of the
// metrics of queries.
func TestQueries(t *testing.T) {
	tel := newTelemetry(t, Config{})
	for _, typ := range []allowlist.QueryType{allowlist.TypeA, allowlist.TypeHTTPS, 255, 65280, 0} {
		tel.Instruments().Measure(query(typ))
	}
	tel.Instruments().Measure(allowed())
	expect(t, tel, "egress_dns",
		`egress_dns_queries_total{qtype="A",rcode="NOERROR",source="upstream"} 1`,
		`egress_dns_queries_total{qtype="HTTPS",rcode="NOERROR",source="upstream"} 1`,
		`egress_dns_queries_total{qtype="_other",rcode="NOERROR",source="upstream"} 3`)
}

// everything returns a Telemetry in which every metric has a value.
func everything(t *testing.T) *Telemetry {
	t.Helper()
	tel := newTelemetry(t, Config{IdentityCap: 1})
	err := tel.Observe(Observed{
		Tunnels:    func() int { return 3 },
		Held:       func() int { return 21 },
		Unanswered: func() Unanswered { return Unanswered{NoQuery: 5, OverLimit: 6} },
		Resolver: func() []ServerErrors {
			return []ServerErrors{{"192.0.2.1:53 (udp)", "timeout", 12}, {"192.0.2.1:53 (udp)", "refused", 0}}
		},
		Policy: func() (Policy, bool) {
			return Policy{Version: "p1", Quarantine: "q1", Generation: 7, Since: time.Now().Add(-time.Hour)}, true
		},
		IdentityReloads: func() (loaded, refused uint64) { return 10, 11 },
		IdentityRefused: func() int { return 2 },
		Refused:         func() bool { return true },

		Expiry:      func() time.Time { return time.Now().Add(time.Hour) },
		Descriptors: func() []Descriptors { return []Descriptors{{Purpose: "opened", Used: 7, Limit: 8, Missing: 9}} },
		Records: func() []audit.SinkStats {
			return []audit.SinkStats{{Name: "all", Made: 15, Written: 1, Summarised: 2, Dropped: 3, Failed: 4, Waiting: 5}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	i := tel.Instruments()
	i.Measure(allowed())
	i.Measure(query(allowlist.TypeA))
	i.Measure(&audit.Record{Event: audit.EventTunnelClose, Up: 1, Down: 1, Duration: time.Second})
	i.Handshake(allowlist.NoReason)
	i.Reload("in-force")
	i.Cut("main", "source", 0)
	i.Cut("main", "all", 2)
	i.Cut("main", "all", 1)
	i.Enforced(time.Millisecond)
	return tel
}

// TestMetricsReadAtEachScrape checks the metrics whose values are read when somebody
// scrapes them.
func TestMetricsReadAtEachScrape(t *testing.T) {
	tel := everything(t)
	expect(t, tel, "egress_tunnels", `egress_tunnels_active 3`)
	expect(t, tel, "egress_descriptors", `egress_descriptors_limit{purpose="opened"} 8`,
		`egress_descriptors_missing_total{purpose="opened"} 9`, `egress_descriptors_used{purpose="opened"} 7`)
	expect(t, tel, "egress_identity_reloads", `egress_identity_reloads_total{result="loaded"} 10`, `egress_identity_reloads_total{result="refused"} 11`)
	expect(t, tel, "egress_identity_refused", `egress_identity_refused 2`)
	expect(t, tel, "egress_policy_refused", `egress_policy_refused 1`)
	expect(t, tel, "egress_policy_held", `egress_policy_held 21`)
	expect(t, tel, "egress_dns_unanswered",
		`egress_dns_unanswered_total{cause="no-query"} 5`, `egress_dns_unanswered_total{cause="over-limit"} 6`)
	expect(t, tel, "egress_resolver",
		`egress_resolver_errors_total{cause="refused",server="192.0.2.1:53 (udp)"} 0`, `egress_resolver_errors_total{cause="timeout",server="192.0.2.1:53 (udp)"} 12`)
	expect(t, tel, "egress_connections", `egress_connections_cut_total{cause="all",listener="main"} 3`, // the other causes are zero:
		`egress_connections_cut_total{cause="source",listener="main"} 0`)
	expect(t, tel, "egress_policy_info", `egress_policy_info{generation="7",quarantine="q1",version="p1"} 1`)
	expect(t, tel, "egress_records",
		`egress_records_total{result="dropped",sink="all"} 3`,
		`egress_records_total{result="failed",sink="all"} 4`,
		`egress_records_total{result="summarised",sink="all"} 2`,
		`egress_records_total{result="written",sink="all"} 1`,
		`egress_records_waiting{sink="all"} 5`)
	expect(t, tel, "egress_spans",
		`egress_spans_total{result="dropped"} 0`, `egress_spans_total{result="exported"} 0`, `egress_spans_total{result="failed"} 0`)
	for _, prefix := range []string{"egress_policy_age_seconds 36", "egress_svid_expiry_seconds 3599."} {
		if !slices.ContainsFunc(scrape(t, tel), func(s string) bool { return strings.HasPrefix(s, prefix) }) {
			t.Errorf("nothing begins with %q", prefix)
		}
	}
}

// TestWithoutAPolicyThereIsNoPolicyMetric checks that there is no age of a policy
// without a policy, because zero would look healthy.
func TestWithoutAPolicyThereIsNoPolicyMetric(t *testing.T) {
	tel := newTelemetry(t, Config{})
	if err := tel.Observe(Observed{Policy: func() (Policy, bool) { return Policy{}, false }}); err != nil {
		t.Fatal(err)
	}
	expect(t, tel, "egress_policy")
	expect(t, tel, "egress_svid")
}

// TestCatalogueOfMetricsEqualsAScrape compares names, suffixes of types, help and labels with
// a scrape.
func TestCatalogueOfMetricsEqualsAScrape(t *testing.T) {
	text := scrapeAll(t, everything(t))
	var want, got []string
	for _, m := range Catalogue() {
		want = append(want, "# HELP "+m.Prometheus+" "+m.Description)
		for _, name := range m.Labels {
			if !strings.Contains(text, name+`="`) {
				t.Errorf("%s: nothing has the label %s", m.Name, name)
			}
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "# HELP egress_") {
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("shown and not listed, or the other way round (-shown +listed):\n%s", diff)
	}
	for _, name := range []string{"go_goroutines ", "process_cpu_seconds_total ", `egress_tunnel_duration_seconds_bucket{le="0.1"}`, `egress_tunnel_duration_seconds_bucket{le="86400"}`} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("%s is not shown", name)
		}
	}
}
