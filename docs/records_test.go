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
		{"time", "when the request was read, or when the event happened: RFC 3339 in UTC with nine decimal places, so that lines sort as text; OCSF has milliseconds since 1970", "time", "@timestamp"},
		{"event", "what the record is about", "metadata.event_code", "event.code event.action"},
		{"id", "ID of the decision: sorts by time and is unique; a refusal shows it to the caller, and the records of a tunnel repeat it", "metadata.uid metadata.correlation_uid http_request.uid", "event.id http.request.id"},
		{"instance", "ID of the process that wrote the record: the `service.instance.id` of its metrics and spans, from OTEL_RESOURCE_ATTRIBUTES, otherwise random at each start", "unmapped.instance", "service.ephemeral_id"},
		{"listener", "name of the listener", "proxy_endpoint.name", "exeat.listener"},
		unmapped("protocol", "what the caller asked for: `connect` (a tunnel), `http` (a plain request), `dns` or `socks5` (a tunnel by SOCKS5)"),
		unmapped("wire", "how the request came: `h1` for HTTP/1, `h2` for HTTP/2; `udp` `tcp` `dot` `doh` for DNS, `tcp` for SOCKS5; a summary has it only if the requests came by `udp`"),
		{"identity", "SPIFFE ID of the caller, or the gateway's own in `identity.rotate`; `_other` in a summary that several callers share", "src_endpoint.svc_name src_endpoint.owner.uid entity.uid unmapped.identity", "user.id service.id exeat.identity"},
		unmapped("identity_source", "proof of the identity: `x509-svid` `listener` `source-map`; a summary has it only if the proof was `source-map`"),
		{"client", "address and port of the caller; absent for a unix socket", "src_endpoint.ip src_endpoint.port", "source.ip source.port client.ip client.port"},
		unmapped("unproven", "`true` if the request was a datagram: its sender may have forged the address, so that `client` is not proven, and with `source-map` neither is `identity`"),
		unmapped("attributed", "which process or step asked, as the caller says in the field `X-Exeat-Attributed`, at most 512 bytes; nobody has checked it ([below](#what-a-caller-says-of-itself))"),
		{"host", "host of the destination in canonical form: a lower-case name or an address; a record of a malformed request has `host`, `port` and `method` only if they were read before the error was found", "dst_endpoint.hostname dst_endpoint.ip http_request.url.hostname query.hostname", "destination.address destination.domain dns.question.name"},
		{"port", "port of the destination", "dst_endpoint.port http_request.url.port", "destination.port"},
		{"method", "method of the request", "http_request.http_method", "http.request.method"},
		{"path", "path of a plain request without its query; present only if the rule that decided has `paths`", "http_request.url.path", "url.path"},
		{"address", "address and port that the gateway dialled", "dst_endpoint.ip", "destination.ip"},
		{"verdict", "what happened to the request: `allow`, `deny`, `observe` (it was sent on, although enforcement would have denied it) or `fail` (it failed, was cut off, or the state of the gateway prevented it); see [above](#what-a-verdict-says)", "action_id disposition_id", "event.action event.type exeat.verdict"},
		{"reason", "why the request was refused or failed: one of [reasons.md](reasons.md); in a `tunnel.close`, why the gateway no longer allowed the tunnel", "status_code", "event.reason"},
		unmapped("would_reason", "the reason for which enforcement would have denied the request; only with `mode: observe`"),
		{"status", "HTTP status that was sent to the caller, or over SOCKS5 the one that a CONNECT would have got; absent if none was sent, or if the record had to be written first", "http_response.code", "http.response.status_code"},
		{"rule", "name of the rule that decided", "firewall_rule.name", "rule.name"},
		unmapped("rule_at", "place of the rule, `file:line`"),
		unmapped("owner", "`owner` of the most specific entry of the identity that has one"),
		unmapped("ticket", "`ticket` of the rule"),
		{"policy", "[version](policy.md#version) of the policy that decided or came into force", "policy.uid entity.version", "rule.ruleset"},
		unmapped("quarantine", "version of the quarantine list, in `policy.reload` and `quarantine`; absent if no identity is in quarantine"),
		unmapped("generation", "number of the state that decided: a process counts from 1 the combinations of policy, quarantine list and address classes that it puts in force"),
		unmapped("mode", "mode that the policy has for the identity: `enforce` `observe`"),
		unmapped("stage", "`tls` in the second decision about a tunnel, which has the id of the first one: the first bytes were refused, or only observed"),
		{"sni", "the name that the ClientHello asks for, as it was sent", "unmapped.sni", "tls.client.server_name"},
		unmapped("tls", "what the first bytes of a tunnel were: `match` (the SNI is the host, or a name that a rule allows there), `mismatch` (the SNI is another name, even if `observe` let it pass), `absent` (no SNI), `not-tls`; absent if the gateway did not inspect them"),
		unmapped("ech", "`true` if the ClientHello offers Encrypted Client Hello"),
		unmapped("address_class", "class of the refused address, such as `private` or `metadata`"),
		unmapped("addresses_dropped", "number of addresses of the name that were refused"),
		unmapped("addresses_refused", "the addresses that were refused because of their class or by a rule, at most eight"),
		{"qtype", "DNS: type of the question, such as `A`, or `TYPE` with its number", "query.type", "dns.question.type"},
		{"rcode", "DNS: code of the response; absent if no response was sent", "rcode rcode_id", "dns.response_code"},
		unmapped("answers", "DNS: number of records in the answer section of the response"),
		{"answered", "DNS: addresses in the response, with those in the hints of HTTPS and SVCB records, at most eight", "answers", "dns.resolved_ip"},
		unmapped("filtered", "DNS: number of addresses and names that the gateway left out of the response, because of the policy or because the server gave too many ([dns.md](dns.md#what-changes-in-an-answer))"),
		unmapped("source", "DNS: where the answer came from: `upstream` (a name server), `cache`, `stale` (an expired answer, because no server answers), `local` (the gateway itself)"),
		unmapped("resolve_ms", "time to resolve the name, in milliseconds"),
		unmapped("dial_ms", "time to connect, in milliseconds"),
		unmapped("decide_us", "time to decide, in microseconds"),
		{"up", "bytes from the caller so far", "traffic.bytes_out", "source.bytes"},
		{"down", "bytes to the caller so far", "traffic.bytes_in", "destination.bytes"},
		{"duration_ms", "age of the tunnel, or the time that a reload took to tell tunnels to end, in milliseconds; ECS has nanoseconds", "duration start_time", "event.duration event.start"},
		unmapped("close_reason", "what ended the tunnel or exchange; for an exchange whose whole answer was sent, `upstream`"),
		{"detail", "explanation for people, such as the cause of a failure or the limit that was reached ([below](#what-detail-says)); with the reason `cut-off`, what ended the request: `revoked` `quarantined` `drain` `limit`", "status_detail", "error.message exeat.detail"},
		{"count", "number of records that this one stands for", "count", "exeat.count"},
		{"first", "time of the first record that this one stands for", "start_time", "event.start"},
		{"last", "time of the last record that this one stands for", "end_time", "event.end"},
		unmapped("counts", "`count` divided by `verdict` and `reason`; the numbers are exact"),
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

// TestTableOfFieldsEqualsTheRecords renders a record of every kind. It checks that the
// table describes exactly the fields of the records, in their order, and that the
// document has every field of the other forms.
func TestTableOfFieldsEqualsTheRecords(t *testing.T) {
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
