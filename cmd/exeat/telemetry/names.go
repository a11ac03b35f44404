package telemetry

import "github.com/exeat-dev/exeat/allowlist"

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

// handshakeResults returns the results of egress.tls.handshakes.
func handshakeResults() []string {
	all := []string{handshakeOK, handshakeUnused}
	for _, r := range []allowlist.Reason{
		allowlist.IdentityMissing, allowlist.IdentityInvalid, allowlist.IdentityExpired, allowlist.IdentityUntrusted,
		allowlist.TLSHandshakeFailed, allowlist.RateLimited, allowlist.MalformedHeader,
	} {
		all = append(all, r.String())
	}
	return all
}

// reloadResults returns the results of egress.policy.reloads.
func reloadResults() []string { return []string{"in-force", "held", "refused"} }

// Catalogue returns every metric of the gateway itself, in the order of the documents.
// Metrics of the Go runtime (go_*) and of the process (process_*) come from the
// Prometheus client library.
func Catalogue() []Metric {
	return []Metric{
		{
			Name: "egress.decisions", Prometheus: "egress_decisions_total",
			Labels:      []string{"verdict", "reason", "protocol", "mode"},
			Description: "Decisions. With the verdict observe, the reason is the one for which the request would have been denied.",
		},
		{
			Name: "egress.decisions.by_identity", Prometheus: "egress_decisions_by_identity_total",
			Labels:      []string{"identity", "identity_source", "verdict"},
			Description: "Decisions by identity. The first identities seen, up to the configured number, have their own series; all others share _other. Identities proven by source-map count against the number separately.",
		},
		{
			Name: "egress.dns.queries", Prometheus: "egress_dns_queries_total",
			Labels:      []string{"qtype", "rcode", "source"},
			Description: "DNS queries by type, response code and source of the answer. Types that no policy can allow are _other; the code of a dropped query is empty.",
		},
		{
			Name: "egress.dns.unanswered", Prometheus: "egress_dns_unanswered_total",
			Labels:      []string{"cause"},
			Description: "DNS input without an answer. no-query: packets that are not a query. over-limit: datagrams dropped for a limit, and DoH connections closed because of too much data that is not a query.",
		},
		{
			Name: "egress.resolver.errors", Prometheus: "egress_resolver_errors_total",
			Labels:      []string{"server", "cause"},
			Description: "Errors of each configured name server, by cause: timeout, unreachable, certificate, tls, closed, servfail, bogus (SERVFAIL because of DNSSEC), refused, code (another response code), not-recursive, malformed, other.",
		},
		{
			Name: "egress.authorize.duration", Prometheus: "egress_authorize_duration_seconds", Unit: "s",
			Description: "Time to decide by the policy.",
			buckets:     []float64{1e-7, 2.5e-7, 5e-7, 1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 1e-4, 1e-3, 1e-2},
		},
		{
			Name: "egress.resolve.duration", Prometheus: "egress_resolve_duration_seconds", Unit: "s",
			Description: "Time to resolve the name of an allowed destination.",
			buckets:     networkBuckets(),
		},
		{
			Name: "egress.dial.duration", Prometheus: "egress_dial_duration_seconds", Unit: "s",
			Description: "Time to connect to an allowed destination.",
			buckets:     networkBuckets(),
		},
		{
			Name: "egress.tunnels.active", Prometheus: "egress_tunnels_active",
			Description: "Open tunnels.",
		},
		{
			Name: "egress.descriptors.used", Prometheus: "egress_descriptors_used",
			Labels:      []string{"purpose"},
			Description: "File descriptors in use on behalf of callers. accepted: connections from callers. opened: connections to origins, sockets to name servers, and pipes.",
		},
		{
			Name: "egress.descriptors.limit", Prometheus: "egress_descriptors_limit",
			Labels:      []string{"purpose"},
			Description: "Limits of egress_descriptors_used. The rest of the process's limit is kept for policy, identity, records and probes.",
		},
		{
			Name: "egress.descriptors.missing", Prometheus: "egress_descriptors_missing_total",
			Labels:      []string{"purpose"},
			Description: "How often no file descriptor was left, so that a request was refused as busy or a connection was closed.",
		},
		{
			Name: "egress.tunnel.duration", Prometheus: "egress_tunnel_duration_seconds", Unit: "s",
			Description: "Time from the request of a tunnel to its end.",
			buckets:     []float64{0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600},
		},
		{
			Name: "egress.io", Prometheus: "egress_io_bytes_total", Unit: "By",
			Labels:      []string{"direction"},
			Description: "Bytes through tunnels: up from the callers, down to the callers. They are counted when a tunnel reports its progress or ends.",
		},
		{
			Name: "egress.tls.handshakes", Prometheus: "egress_tls_handshakes_total",
			Labels:      []string{"result"},
			Description: "TLS handshakes with callers. ok: the caller proved an identity. unused: no request followed, or the client left during the handshake without a certificate, as health checks do. rate-limited, malformed-header: the connection was closed before the handshake. Any other result is the reason why there is no identity.",
		},
		{
			Name: "egress.connections.cut", Prometheus: "egress_connections_cut_total",
			Labels:      []string{"listener", "cause"},
			Description: "Connections closed because a share of the slots was full (source, unidentified, caller or all) or because no file descriptor was left (descriptors).",
		},
		{
			Name: "egress.policy.info", Prometheus: "egress_policy_info",
			Labels:      []string{"version", "quarantine", "generation"},
			Description: "1 for the policy in force, with its version and the version of the quarantine list, which is empty if no identity is in quarantine.",
		},
		{
			Name: "egress.policy.reloads", Prometheus: "egress_policy_reloads_total",
			Labels:      []string{"result"},
			Description: "Loads of a policy, by result: in-force, refused, or held (in force for new requests, while some tunnels that it forbids stay open). A new quarantine list or a new address of the host is not counted.",
		},
		{
			Name: "egress.policy.refused", Prometheus: "egress_policy_refused",
			Description: "1 if the policy or the quarantine list had an error when it was last read, so that an older one is in force; otherwise 0.",
		},
		{
			Name: "egress.policy.held", Prometheus: "egress_policy_held",
			Description: "Identities that keep a tunnel or exchange open which the policy in force forbids, because policy.max_revoke holds its end. Zero if nothing is held.",
		},
		{
			Name: "egress.policy.age", Prometheus: "egress_policy_age_seconds", Unit: "s",
			Description: "Time since a policy of this version came into force.",
		},
		{
			Name: "egress.revocation.duration", Prometheus: "egress_revocation_duration_seconds", Unit: "s",
			Description: "Time from a policy's coming into force until the last tunnel that it forbids was told to end.",
			buckets:     []float64{1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5},
		},
		{
			Name: "egress.svid.expiry", Prometheus: "egress_svid_expiry_seconds", Unit: "s",
			Description: "Time until the gateway's SVID expires; negative once it has.",
		},
		{
			Name: "egress.identity.reloads", Prometheus: "egress_identity_reloads_total",
			Labels:      []string{"result"},
			Description: "Identities, bundles and web certificates read from files or sent by the Workload API, by result: loaded or refused. Each error counts once.",
		},
		{
			Name: "egress.identity.refused", Prometheus: "egress_identity_refused",
			Description: "How many of these were refused when they were last read or sent: the identity with its bundles, and each web certificate. Zero if everything is in use.",
		},
		{
			Name: "egress.records", Prometheus: "egress_records_total",
			Labels:      []string{"sink", "result"},
			Description: "Records by sink and result: written, summarised, dropped or failed.",
		},
		{
			Name: "egress.records.waiting", Prometheus: "egress_records_waiting",
			Labels:      []string{"sink"},
			Description: "Records that wait for a sink, or are being written to it.",
		},
		{
			Name: "egress.spans", Prometheus: "egress_spans_total",
			Labels:      []string{"result"},
			Description: "Spans by result: exported, dropped or failed.",
		},
	}
}

// networkBuckets returns the buckets for operations over a network, in seconds.
func networkBuckets() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
}
