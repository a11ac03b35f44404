package docs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
	"github.com/exeat-dev/exeat/proxy/audit/native"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
)

// field is a row of the table: the meaning of a field of the native form, and the names
// of the fields of the other forms that have it.
type field struct{ name, meaning, ocsf, ecs string }

func fields() []field {
	unmapped := func(name, meaning string) field {
		return field{name, meaning, "unmapped." + name, "exeat." + name}
	}
	return []field{
		{"schema", "version of this form: 1", "", ""},
		{"time", "when the request was read, or when the event happened: RFC 3339 in UTC, always nine digits, so that lines sort as text; OCSF has milliseconds since 1970", "time", "@timestamp"},
		{"event", "what the record is about", "metadata.event_code", "event.code event.action"},
		{"id", "sortable, unique to a decision; the answer to the caller has it, and so have the records of its tunnel", "metadata.uid metadata.correlation_uid http_request.uid", "event.id http.request.id"},
		{"instance", "this process: the `service.instance.id` of its metrics and spans, from OTEL_RESOURCE_ATTRIBUTES, else random at each start", "unmapped.instance", "service.ephemeral_id"},
		{"listener", "name of the listener", "proxy_endpoint.name", "exeat.listener"},
		unmapped("protocol", "`connect`, `http` for a plain request, or `dns`"),
		unmapped("wire", "HTTP/1: `h1`; DNS: `udp` `tcp` `dot` `doh`; in a summary only if it was `udp`"),
		{"identity", "SPIFFE ID of the caller, or the gateway's own in `identity.rotate`; `_other` in a summary of too many", "src_endpoint.svc_name src_endpoint.owner.uid entity.uid unmapped.identity", "user.id service.id exeat.identity"},
		unmapped("identity_source", "how the identity was proved: `x509-svid` `listener` `source-map`; in a summary only if it was `source-map`"),
		{"client", "address and port of the caller; absent for a unix socket", "src_endpoint.ip src_endpoint.port", "source.ip source.port client.ip client.port"},
		unmapped("unproven", "`true` of a datagram, whose sender may have forged the address: then neither `client` is proven nor, with `source-map`, `identity`"),
		{"host", "the destination of the request, canonical: a lower-case name or an address; like `port` and `method`, a record of a refused head has it if it was read before the fault was found", "dst_endpoint.hostname dst_endpoint.ip http_request.url.hostname query.hostname", "destination.address destination.domain dns.question.name"},
		{"port", "port of the destination", "dst_endpoint.port http_request.url.port", "destination.port"},
		{"method", "method of the request", "http_request.http_method", "http.request.method"},
		{"path", "path of a plain request, if the rule that decided has `paths`; never the query", "http_request.url.path", "url.path"},
		{"address", "address and port that were dialled", "dst_endpoint.ip", "destination.ip"},
		{"verdict", "what happened, by policy or against it: `allow` `deny` `observe` (let out, and would be denied) `fail` (it did not work, was cut off, or the gateway's own state did not let it out)", "action_id disposition_id", "event.action event.type exeat.verdict"},
		{"reason", "why the request was refused or failed, one of [reasons.md](reasons.md); for a tunnel that was ended, why it is no longer allowed", "status_code", "event.reason"},
		unmapped("would_reason", "under `observe`: the reason for which the request would have been denied"),
		{"status", "HTTP status that was sent; absent if none was sent, or if the record had to be written before", "http_response.code", "http.response.status_code"},
		{"rule", "name of the rule that decided", "firewall_rule.name", "rule.name"},
		unmapped("rule_at", "place of the rule, `file:line`"),
		unmapped("owner", "`owner` of the most specific entry of the identity that has one"),
		unmapped("ticket", "`ticket` of the rule"),
		{"policy", "version of the policy that decided or came into force", "policy.uid entity.version", "rule.ruleset"},
		unmapped("quarantine", "of `policy.reload` and `quarantine`: version of who is in quarantine, nothing if nobody is"),
		unmapped("generation", "how many states this process has put in force so far"),
		unmapped("mode", "mode of the identity's entry: `enforce` `observe`"),
		unmapped("stage", "`tls` in a second decision about a tunnel, with the id of the first: its first bytes were refused, or only observed"),
		{"sni", "the name that the ClientHello asks for, as it was sent", "unmapped.sni", "tls.client.server_name"},
		unmapped("tls", "the first bytes of a tunnel: `match` (the SNI is the host, or a name that a rule allows there), `mismatch`, also if it is let through under `observe`, `absent` (no SNI), `not-tls`; no value if they were not inspected"),
		unmapped("ech", "the ClientHello offers Encrypted Client Hello: `true`"),
		unmapped("address_class", "class of the address that was refused, such as `private` or `metadata`"),
		unmapped("addresses_dropped", "how many addresses of the name were refused"),
		unmapped("addresses_refused", "which addresses were refused, by their class or by a rule: the first eight"),
		{"qtype", "DNS: the type asked for, such as `A`, or `TYPE` with its number", "query.type", "dns.question.type"},
		{"rcode", "DNS: the code of the response that was sent; absent if none was", "rcode rcode_id", "dns.response_code"},
		unmapped("answers", "DNS: how many records the response has in its answer section"),
		{"answered", "DNS: the addresses in the response, those of hints (HTTPS, SVCB) included: the first eight", "answers", "dns.resolved_ip"},
		unmapped("filtered", "DNS: how many addresses and names the response was left without, because of the policy or because a server gave more than are kept ([dns.md](dns.md#what-changes-in-an-answer))"),
		unmapped("source", "DNS: where the answer came from: `upstream` `cache` `stale` (past its time, since no server answers) `local` (the gateway itself)"),
		unmapped("resolve_ms", "time to resolve the name, milliseconds"),
		unmapped("dial_ms", "time to connect, milliseconds"),
		unmapped("decide_us", "time to decide, microseconds"),
		{"up", "bytes from the caller so far", "traffic.bytes_out", "source.bytes"},
		{"down", "bytes to the caller so far", "traffic.bytes_in", "destination.bytes"},
		{"duration_ms", "age of the tunnel, or time that a reload took to end tunnels, milliseconds; ECS has nanoseconds", "duration start_time", "event.duration event.start"},
		unmapped("close_reason", "what ended the tunnel or exchange: `upstream` when the whole answer was sent"),
		{"detail", "for people: the cause of a failure and the address that was asked, what is wrong with a target or in which line of a head, the limit that was met, the reason of a quarantine, what a reload did ([below](#what-detail-says)); of `cut-off` what ended it: `revoked` `quarantined` `drain` `limit`", "status_detail", "error.message exeat.detail"},
		{"count", "how many records this one stands for", "count", "exeat.count"},
		{"first", "time of the first of these records", "start_time", "event.start"},
		{"last", "time of the last of these records", "end_time", "event.end"},
		unmapped("counts", "`count` by `verdict` and `reason`, exact"),
		{"trace_id", "trace ID of the decision's span", "unmapped.trace_id", "trace.id"},
		{"span_id", "span ID of the decision's span", "unmapped.span_id", "span.id"},
		unmapped("caller_trace_id", "trace ID of the caller's `traceparent`, if it sent one"),
	}
}

// TestGeneratedRecords compares the tables of docs/records.md with the code. `make
// generate` writes them.
func TestGeneratedRecords(t *testing.T) {
	data, err := os.ReadFile("records.md")
	if err != nil {
		t.Fatal(err)
	}
	want := replace(t, string(data), "fields", fieldTable())
	want = replace(t, want, "metrics", metricTable())
	if *update {
		write(t, "records.md", want)
	} else if string(data) != want {
		t.Error("docs/records.md differs from the code: run make generate")
	}
}

// replace replaces the text between the marks of a generated part.
func replace(t *testing.T, document, part, text string) string {
	t.Helper()
	begin := "<!-- generated: " + part + " -->\n"
	before, rest, ok := strings.Cut(document, begin)
	_, after, ended := strings.Cut(rest, "<!-- end -->")
	if !ok || !ended {
		t.Fatalf("docs/records.md has no generated part %s", part)
	}
	return before + begin + text + "<!-- end -->" + after
}

func fieldTable() string {
	var b strings.Builder
	b.WriteString("| Field | Content | OCSF | ECS |\n|---|---|---|---|\n")
	for _, f := range fields() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.meaning, code(f.ocsf), code(f.ecs))
	}
	return b.String()
}

func metricTable() string {
	var b strings.Builder
	b.WriteString("| OpenTelemetry | Prometheus | Labels | Content |\n|---|---|---|---|\n")
	for _, m := range telemetry.Catalogue() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", m.Name, m.Prometheus, code(strings.Join(m.Labels, " ")), m.Description)
	}
	return b.String()
}

// code formats each word as code.
func code(words string) string {
	var marked []string
	for w := range strings.FieldsSeq(words) {
		marked = append(marked, "`"+w+"`")
	}
	return strings.Join(marked, " ")
}

// TestFieldsAreTheCode renders a record of every kind. The table must describe exactly
// the fields that the records have, in their order, and the document must have every
// field of the other forms.
func TestFieldsAreTheCode(t *testing.T) {
	described := map[string]bool{}
	order := map[string]int{}
	for i, f := range fields() {
		described[f.name], order[f.name] = false, i
	}
	data, err := os.ReadFile("records.md")
	if err != nil {
		t.Fatal(err)
	}
	inOCSF, inECS := map[string]bool{}, map[string]bool{}
	for _, s := range audittest.Samples() {
		last := -1
		for _, name := range keys(t, rendered(t, native.Render, &s.Record)) {
			at, ok := order[name]
			if !ok {
				t.Errorf("docs/records.md does not describe %s", name)
				continue
			}
			if at < last {
				t.Errorf("%s is not in the order of the lines", name)
			}
			described[name], last = true, at
		}
		paths(t, rendered(t, ocsf.Render, &s.Record), inOCSF)
		paths(t, rendered(t, ecs.Render, &s.Record), inECS)
	}
	for _, f := range fields() {
		if !described[f.name] {
			t.Errorf("docs/records.md describes %s, which no record has", f.name)
		}
		for p := range strings.FieldsSeq(f.ocsf) {
			if !inOCSF[p] {
				t.Errorf("%s is mapped to %s, which no OCSF event has", f.name, p)
			}
		}
		for p := range strings.FieldsSeq(f.ecs) {
			if !inECS[p] {
				t.Errorf("%s is mapped to %s, which no ECS document has", f.name, p)
			}
		}
	}
	for _, seen := range []map[string]bool{inOCSF, inECS} {
		for p := range seen {
			if !bytes.Contains(data, []byte("`"+p+"`")) {
				t.Errorf("docs/records.md does not mention %s", p)
			}
		}
	}
}

func rendered(t *testing.T, render audit.Render, r *audit.Record) []byte {
	t.Helper()
	line, err := render(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// keys returns the keys of a JSON object in their order.
func keys(t *testing.T, object []byte) []string {
	t.Helper()
	var all []string
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var skipped json.RawMessage
		if err := d.Decode(&skipped); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprint(key))
	}
	return all
}

// paths adds the dotted paths of all values of a JSON object that are not objects.
func paths(t *testing.T, object []byte, into map[string]bool) {
	t.Helper()
	var values map[string]any
	if err := json.Unmarshal(object, &values); err != nil {
		t.Fatal(err)
	}
	var walk func(prefix string, values map[string]any)
	walk = func(prefix string, values map[string]any) {
		for key, v := range values {
			if inner, ok := v.(map[string]any); ok {
				walk(prefix+key+".", inner)
			} else {
				into[prefix+key] = true
			}
		}
	}
	walk("", values)
}

// TestEventsAreDescribed checks that the document has a row for every kind of record.
func TestEventsAreDescribed(t *testing.T) {
	data, err := os.ReadFile("records.md")
	if err != nil {
		t.Fatal(err)
	}
	var seen []audit.Event
	for _, s := range audittest.Samples() {
		if !slices.Contains(seen, s.Record.Event) {
			seen = append(seen, s.Record.Event)
		}
	}
	for _, event := range seen {
		if !bytes.Contains(data, []byte("\n| `"+string(event)+"` |")) {
			t.Errorf("docs/records.md does not describe the event %s", event)
		}
	}
}

// TestTheExampleIsARecord checks that the document shows a line as the gateway writes it.
func TestTheExampleIsARecord(t *testing.T) {
	for _, b := range blocks(t, "records.md") {
		if !b.is("json") {
			continue
		}
		for _, s := range audittest.Samples() {
			if s.Name == "deny" && strings.TrimSpace(b.text) == string(rendered(t, native.Render, &s.Record)) {
				return
			}
		}
	}
	t.Error("docs/records.md does not show the sample deny")
}
