package telemetry

// Metric describes one metric of this package, as documents list it.
type Metric struct {
	Name        string // name in OpenTelemetry
	Prometheus  string // name on the admin listener; for a histogram the base name
	Unit        string // UCUM; "" for a plain count
	Labels      []string
	Description string

	buckets []float64 // upper bounds of a histogram's buckets, in the unit
}

// Result labels.
const (
	handshakeOK = "ok"
	// handshakeUnused is the result of a handshake that was not followed by a request.
	handshakeUnused = "unused"
	otherLabel      = "_other"
)

// Catalogue returns every metric of the gateway itself, in the order of the documents.
// Metrics of the Go runtime (go_*) and of the process (process_*) come from the
// Prometheus client library.
func Catalogue() []Metric {
	return []Metric{
		{
			Name: "egress.decisions", Prometheus: "egress_decisions_total",
			Labels:      []string{"verdict", "reason", "protocol", "mode"},
			Description: "Decisions. The reason of an observed denial is the one that it would have had.",
		},
		{
			Name: "egress.decisions.by_identity", Prometheus: "egress_decisions_by_identity_total",
			Labels:      []string{"identity", "identity_source", "verdict"},
			Description: "Decisions of the first identities seen, as many as the configured cap; the others share _other. Those shown by source-map have a cap of their own.",
		},
		{
			Name: "egress.dns.queries", Prometheus: "egress_dns_queries_total",
			Labels:      []string{"qtype", "rcode", "source"},
			Description: "DNS queries by type, code and source of the answer. Types that no policy can allow are _other; the code of what was dropped is empty.",
		},
		{
			Name: "egress.dns.unanswered", Prometheus: "egress_dns_unanswered_total",
			Labels:      []string{"cause"},
			Description: "What got no answer over DNS: no-query, packets that were none; over-limit, datagrams that were dropped, and connections over HTTP that were closed because of what was no request.",
		},
		{
			Name: "egress.resolver.errors", Prometheus: "egress_resolver_errors_total",
			Labels:      []string{"server", "cause"},
			Description: "What went wrong with each configured name server: timeout, unreachable, certificate, tls, closed, servfail, bogus (SERVFAIL because of DNSSEC), refused, code (another one), not-recursive, malformed, other.",
		},
		{
			Name: "egress.authorize.duration", Prometheus: "egress_authorize_duration_seconds", Unit: "s",
			Description: "Time that the policy took to decide.",
			buckets:     []float64{1e-7, 2.5e-7, 5e-7, 1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 1e-4, 1e-3, 1e-2},
		},
		{
			Name: "egress.resolve.duration", Prometheus: "egress_resolve_duration_seconds", Unit: "s",
			Description: "Time that the name of an allowed destination took to resolve.",
			buckets:     networkBuckets(),
		},
		{
			Name: "egress.dial.duration", Prometheus: "egress_dial_duration_seconds", Unit: "s",
			Description: "Time that the connection to an allowed destination took.",
			buckets:     networkBuckets(),
		},
		{
			Name: "egress.tunnels.active", Prometheus: "egress_tunnels_active",
			Description: "Open tunnels.",
		},
		{
			Name: "egress.descriptors.used", Prometheus: "egress_descriptors_used",
			Labels:      []string{"purpose"},
			Description: "File descriptors that callers make the gateway use: accepted, for their connections; opened, for those to origins, questions to name servers, and pipes.",
		},
		{
			Name: "egress.descriptors.limit", Prometheus: "egress_descriptors_limit",
			Labels:      []string{"purpose"},
			Description: "How many of these there may be; the rest of the process's limit is kept for policy, identity, records and probes.",
		},
		{
			Name: "egress.descriptors.missing", Prometheus: "egress_descriptors_missing_total",
			Labels:      []string{"purpose"},
			Description: "How often there was none left: what needed it was refused as busy, or closed.",
		},
		{
			Name: "egress.tunnel.duration", Prometheus: "egress_tunnel_duration_seconds", Unit: "s",
			Description: "Time from the request of a tunnel to its end.",
			buckets:     []float64{0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600},
		},
		{
			Name: "egress.io", Prometheus: "egress_io_bytes_total", Unit: "By",
			Labels:      []string{"direction"},
			Description: "Bytes through tunnels, up from and down to the callers, counted when a tunnel reports or ends.",
		},
		{
			Name: "egress.tls.handshakes", Prometheus: "egress_tls_handshakes_total",
			Labels:      []string{"result"},
			Description: "TLS handshakes with callers: ok, or why there is no identity; unused if nothing was asked after it, or the client left within it and had shown no certificate, as health checks do; and connections that were closed before anything was said: rate-limited or malformed-header.",
		},
		{
			Name: "egress.connections.cut", Prometheus: "egress_connections_cut_total",
			Labels:      []string{"listener", "cause"},
			Description: "Connections that were closed for want of a slot, by the share that was full: source, unidentified, caller or all; or of a file descriptor: descriptors.",
		},
		{
			Name: "egress.policy.info", Prometheus: "egress_policy_info",
			Labels:      []string{"version", "quarantine", "generation"},
			Description: "1 for the policy in force: its version, and that of who is in quarantine, which is empty if nobody is.",
		},
		{
			Name: "egress.policy.reloads", Prometheus: "egress_policy_reloads_total",
			Labels:      []string{"result"},
			Description: "Policies that were loaded: in-force, refused, or held, which is in force for everything new. Another quarantine list and another address of the host are none.",
		},
		{
			Name: "egress.policy.held", Prometheus: "egress_policy_held",
			Description: "Identities with something open that the policy in force forbids, because policy.max_revoke holds its end; zero if nothing is held.",
		},
		{
			Name: "egress.policy.age", Prometheus: "egress_policy_age_seconds", Unit: "s",
			Description: "Time since a policy of this version came into force.",
		},
		{
			Name: "egress.revocation.duration", Prometheus: "egress_revocation_duration_seconds", Unit: "s",
			Description: "Time from the swap of a policy to the last tunnel that it ended.",
			buckets:     []float64{1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5},
		},
		{
			Name: "egress.svid.expiry", Prometheus: "egress_svid_expiry_seconds", Unit: "s",
			Description: "Time until the gateway's SVID expires; negative once it has.",
		},
		{
			Name: "egress.identity.reloads", Prometheus: "egress_identity_reloads_total",
			Labels:      []string{"result"},
			Description: "What came of the identities, bundles and web certificates that were read from files or sent by the Workload API: loaded, or refused, each error once.",
		},
		{
			Name: "egress.records", Prometheus: "egress_records_total",
			Labels:      []string{"sink", "result"},
			Description: "Records by sink and by what became of them: written, summarised, dropped or failed.",
		},
		{
			Name: "egress.records.waiting", Prometheus: "egress_records_waiting",
			Labels:      []string{"sink"},
			Description: "Records that wait for a sink, or are on their way to it.",
		},
		{
			Name: "egress.spans", Prometheus: "egress_spans_total",
			Labels:      []string{"result"},
			Description: "Spans by what became of them: exported, dropped or failed.",
		},
	}
}

// networkBuckets returns the buckets for operations over a network, in seconds.
func networkBuckets() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
}
