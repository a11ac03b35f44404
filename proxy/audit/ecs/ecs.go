// Package ecs renders audit records as documents of the Elastic Common Schema,
// version 8.17, for sinks that security teams read.
//
// [Render] is an audit.Render: it appends one nested document as one line of JSON.
// docs/records.md has the whole mapping. Fields without a place in the schema are under
// exeat, with their names of the native form, so that nothing is lost.
//
// The caller's SPIFFE ID is user.id, because the schema's user fields are for the party
// that performed the action. Its service fields are for the program that wrote the
// document, which is the gateway.
//
// The package renders the fields of the record only: it does not look anything up, and
// keeps no state.
package ecs

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// schemaVersion is the version of the schema that documents state.
const schemaVersion = "8.17.0"

// Render appends the document of a record to dst, without a newline. It never fails on
// a record; the error is that of the JSON encoder. It is safe for concurrent use.
func Render(dst []byte, r *audit.Record) ([]byte, error) {
	d := document{
		Time: timestamp(r.Time), ECS: version{schemaVersion}, Message: message(r),
		Event: event{
			Kind: "event", Category: []string{category(r)}, Type: types(r),
			Action: action(r), Code: r.Event, Module: "exeat", Dataset: "exeat.records",
			Outcome: outcome(r), Reason: r.Reason.String(), Duration: r.Duration.Nanoseconds(),
		},
		Service:  service{Name: "exeat", Instance: r.Instance},
		Observer: observer{Vendor: "exeat", Product: "exeat", Type: "proxy"},
		Rule:     rule{Name: r.Rule, Ruleset: r.Policy},
		Exeat:    nativeFields(r),
	}
	if !sharesID(r) {
		d.Event.ID = r.ID
	}
	d.times(r)
	d.caller(r)
	d.network(r)
	if r.Trace.HasTraceID() {
		d.Trace.ID, d.Span.ID = r.Trace.TraceID().String(), r.Trace.SpanID().String()
	}
	if detail := r.DetailText(); d.Event.Outcome == "failure" {
		d.Error.Message = detail
	} else {
		d.Exeat.Detail = detail
	}
	line, err := json.Marshal(&d)
	if err != nil {
		return dst, fmt.Errorf("rendering record %s as ECS: %w", r.ID, err)
	}
	return allowlist.AppendVisible(dst, line), nil
}

// times sets when the recorded action began and ended.
func (d *document) times(r *audit.Record) {
	if r.Duration > 0 {
		d.Event.Start = timestamp(r.Time.Add(-r.Duration))
	}
	if r.Event == audit.EventTunnelClose {
		d.Event.End = timestamp(r.Time)
	}
	if m := r.Merged; m != nil {
		d.Event.Start, d.Event.End = timestamp(m.First), timestamp(m.Last)
	}
}

// caller sets the caller: its address and its identity.
func (d *document) caller(r *audit.Record) {
	id := r.IdentityText()
	switch {
	case r.Event == audit.EventIdentityRotate:
		d.Service.ID = id // the gateway's own identity
	case id != "":
		d.User = user{ID: id, Domain: r.Identity.TrustDomain().Name()}
		d.Related.User = []string{id}
	}
	if r.Client.IsValid() {
		d.Client = endpoint{IP: ip(r.Client.Addr()), Port: r.Client.Port()}
		d.Source.endpoint = d.Client
		d.Related.IP = append(d.Related.IP, d.Client.IP)
	}
}

// network sets what was asked for and the result.
func (d *document) network(r *audit.Record) {
	if category(r) != "network" {
		return
	}
	d.Network.Transport, d.Network.Direction = "tcp", "outbound"
	if r.Wire == audit.WireUDP {
		d.Network.Transport = "udp"
	}
	switch r.Event {
	case audit.EventHandshake:
		d.Network.Direction = "" // the request came no further than the gateway
		d.TLS.Established = new(bool)
		return
	case audit.EventTunnelProgress, audit.EventTunnelClose:
		total := r.Up + r.Down
		d.Source.Bytes, d.Destination.Bytes, d.Network.Bytes = &r.Up, &r.Down, &total
	case audit.EventDecision, audit.EventCollapsed, audit.EventSummary, audit.EventPolicyReload, audit.EventIdentityRotate, audit.EventQuarantine:
	}
	if r.Protocol == audit.ProtocolDNS {
		d.dns(r)
		return
	}
	if r.Event != audit.EventSummary { // no caller has seen the id of a summary
		d.HTTP.Request.ID = r.ID
	}
	d.URL.Path = r.Path
	d.TLS.Client.ServerName = r.Hello.SNIText()
	d.HTTP.Request.Method, d.HTTP.Response.Status = r.MethodText(), r.Status
	if !r.Dest.Host.IsZero() {
		d.destination(r)
	}
}

// dns sets the question of a DNS query, with the gateway as its destination, and the
// answer.
func (d *document) dns(r *audit.Record) {
	d.Network.Protocol = string(audit.ProtocolDNS)
	d.DNS = dns{Code: r.DNS.Code, Type: "query", Question: question{Name: r.Dest.Host.String(), Type: r.DNS.TypeText()}}
	if r.DNS.Code != "" {
		d.DNS.Type, d.DNS.Resolved = "answer", audit.AddressTexts(r.DNS.Answered)
		d.Related.IP = append(d.Related.IP, d.DNS.Resolved...)
	}
	if !r.Dest.Host.IsZero() {
		d.DNS.Question.Class = "IN"
		d.Related.Hosts = []string{d.DNS.Question.Name}
	}
}

// destination sets the destination that was asked for, and the address that was
// dialled.
func (d *document) destination(r *audit.Record) {
	host := r.Dest.Host.String()
	d.Destination.Address, d.Destination.Port = host, r.Dest.Port
	if r.Dest.Host.IsAddr() {
		d.Destination.IP = host
	} else {
		d.Destination.Domain = host
		d.Related.Hosts = []string{host}
	}
	if r.Address.IsValid() {
		d.Destination.IP = ip(r.Address.Addr())
	}
	if d.Destination.IP != "" {
		d.Related.IP = append(d.Related.IP, d.Destination.IP)
	}
}

// ip returns an address without its zone, because a document with a zone is refused.
func ip(addr netip.Addr) string { return addr.WithZone("").String() }

// message returns the sentence that a log viewer shows.
func message(r *audit.Record) string {
	words := []string{action(r)}
	switch {
	case r.Dest.Host.IsZero():
	case r.Protocol == audit.ProtocolDNS:
		words = append(words, r.DNS.TypeText(), r.Dest.Host.String())
	default:
		words = append(words, r.Dest.String())
	}
	for _, word := range []string{r.CloseReasonText(), r.Reason.String(), r.WouldReason.String()} {
		if word != "" {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

// sharesID reports whether the record's id is that of a decision which has a document
// of its own. event.id must be unique, whereas http.request.id joins documents.
func sharesID(r *audit.Record) bool {
	return r.Event == audit.EventTunnelProgress || r.Event == audit.EventTunnelClose ||
		r.Event == audit.EventCollapsed || r.Stage == audit.StageTLS || r.Supersedes
}

// timestamp formats a time as RFC 3339 in UTC with nanoseconds.
func timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z07:00")
}

// milliseconds has the precision of the native form.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// nativeFields returns the fields that have no place in the schema.
func nativeFields(r *audit.Record) native {
	n := native{
		Listener: r.Listener, Protocol: r.Protocol, Wire: r.Wire, IdentitySource: r.Proof.String(), Unproven: r.Unproven(), Attributed: r.AttributedText(),
		WouldReason: r.WouldReason.String(), Quarantine: r.Quarantine, Generation: r.Generation, RuleAt: r.RuleAt, Owner: r.Owner, Ticket: r.Ticket,
		Stage: r.Stage.String(), TLS: r.Hello.TLS.String(), ECH: r.Hello.ECH,
		AddressesDropped: r.Dropped, AddressesRefused: audit.AddressTexts(r.Refused), CloseReason: r.CloseReasonText(),
		ResolveMS: milliseconds(r.Resolve), DialMS: milliseconds(r.Dial),
		DecideUS: float64(r.Decide.Nanoseconds()) / 1e3,
	}
	if r.Protocol == audit.ProtocolDNS {
		if sharesID(r) { // http.request.id does not have the id of such a record
			n.ID = r.ID
		}
		n.Filtered, n.AnswerSource = r.DNS.Filtered, r.DNS.Origin
		if r.DNS.Code != "" {
			n.Answers = &r.DNS.Answers
		}
	}
	if decided(r) {
		n.Verdict = r.Verdict.String()
		if r.Policy != "" {
			n.Mode = r.Mode.String()
		}
	}
	if r.Class != allowlist.Invalid {
		n.AddressClass = r.Class.String()
	}
	if r.CallerTrace.IsValid() {
		n.CallerTraceID = r.CallerTrace.String()
	}
	if m := r.Merged; m != nil {
		n.Count = m.Count
		if m.Other {
			n.Identity = audit.Other
		}
		for _, c := range m.Counts {
			n.Counts = append(n.Counts, count{c.Verdict.String(), c.Reason.String(), c.Count})
		}
	}
	return n
}
