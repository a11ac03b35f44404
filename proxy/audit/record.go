// Package audit records every decision, once, in one place: as a line of JSON
// and as an OpenTelemetry span, both renderings of one [Record].
//
// A door calls [Recorder.Begin] when it has read a request, fills in the
// record as it learns more, and calls [Open.End] when the answer is sent. A
// tunnel then reports its progress and its end through [Open.Tunnel].
//
// The package never decides, never blocks on a sink, and never records a
// payload, a query string, a header value or a credential.
package audit

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
)

// Schema is the version of the record's format.
const Schema = 1

// Event says what a record is about.
type Event string

// The events.
const (
	EventDecision       Event = "decision"
	EventTunnelProgress Event = "tunnel.progress"
	EventTunnelClose    Event = "tunnel.close"
	EventHandshake      Event = "handshake"
	EventPolicyReload   Event = "policy.reload"
	EventIdentityRotate Event = "identity.rotate"
)

// Record is one line of evidence. Zero fields are left out of the rendering,
// except where zero says something (bytes of a tunnel).
type Record struct {
	Time  time.Time
	Event Event
	ID    string // the decision's, also in the records of its tunnel

	Listener string
	Protocol string // connect
	Wire     string // h1
	Identity spiffeid.ID
	Source   allowlist.Source
	Client   netip.AddrPort // zero for a unix socket

	Dest    allowlist.Destination // canonical, as asked
	Method  string
	Address netip.AddrPort // dialled

	Verdict     allowlist.Verdict
	Reason      allowlist.Reason
	WouldReason allowlist.Reason
	Status      int // sent to the caller; 0 if none was

	Rule       string
	RuleAt     string
	Policy     string
	Generation uint64
	Mode       allowlist.Mode

	Class   allowlist.Class // of an address that was refused
	Dropped int             // addresses that were refused

	Resolve, Dial time.Duration
	Decide        time.Duration

	Up, Down    int64 // bytes from and to the caller
	Duration    time.Duration
	CloseReason string

	// Detail is what a person needs beside the reason, such as the cause of a
	// failed handshake. Printable and bounded by who sets it.
	Detail string

	Trace       trace.SpanContext // of the decision span
	CallerTrace trace.TraceID     // of the caller's context, if it sent one
}

// SetDecision copies what the policy decided.
func (r *Record) SetDecision(d allowlist.Decision) {
	r.Verdict, r.Reason, r.WouldReason = d.Verdict, d.Reason, d.WouldReason
	r.Mode, r.Policy, r.Class = d.Mode, d.PolicyVersion(), d.Class
	r.Rule, r.RuleAt = "", ""
	if d.Rule != nil {
		r.Rule, r.RuleAt = d.Rule.Name(), d.Rule.Place()
	}
	if d.Quarantine != nil {
		r.RuleAt, r.Detail = d.Quarantine.At, bounded(d.Quarantine.Reason, maxDetail)
	}
}

const (
	maxDetail   = 512
	maxIdentity = 2048
	maxMethod   = 32
)

// timeFormat is RFC 3339 with all nine digits, so that lines sort as text.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// bounded cuts untrusted text and makes it valid UTF-8, without which an OTLP
// exporter loses the whole batch that the text is in; the JSON encoder escapes
// what is left.
func bounded(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// line is the JSON form of a record: stable names, one order.
type line struct {
	Schema           int     `json:"schema"`
	Time             string  `json:"time"`
	Event            Event   `json:"event"`
	ID               string  `json:"id,omitempty"`
	Listener         string  `json:"listener,omitempty"`
	Protocol         string  `json:"protocol,omitempty"`
	Wire             string  `json:"wire,omitempty"`
	Identity         string  `json:"identity,omitempty"`
	IdentitySource   string  `json:"identity_source,omitempty"`
	Client           string  `json:"client,omitempty"`
	Host             string  `json:"host,omitempty"`
	Port             uint16  `json:"port,omitempty"`
	Method           string  `json:"method,omitempty"`
	Address          string  `json:"address,omitempty"`
	Verdict          string  `json:"verdict,omitempty"`
	Reason           string  `json:"reason,omitempty"`
	WouldReason      string  `json:"would_reason,omitempty"`
	Status           int     `json:"status,omitempty"`
	Rule             string  `json:"rule,omitempty"`
	RuleAt           string  `json:"rule_at,omitempty"`
	Policy           string  `json:"policy,omitempty"`
	Generation       uint64  `json:"generation,omitempty"`
	Mode             string  `json:"mode,omitempty"`
	AddressClass     string  `json:"address_class,omitempty"`
	AddressesDropped int     `json:"addresses_dropped,omitempty"`
	ResolveMS        float64 `json:"resolve_ms,omitempty"`
	DialMS           float64 `json:"dial_ms,omitempty"`
	DecideUS         float64 `json:"decide_us,omitempty"`
	Up               *int64  `json:"up,omitempty"`
	Down             *int64  `json:"down,omitempty"`
	DurationMS       float64 `json:"duration_ms,omitempty"`
	CloseReason      string  `json:"close_reason,omitempty"`
	Detail           string  `json:"detail,omitempty"`
	TraceID          string  `json:"trace_id,omitempty"`
	SpanID           string  `json:"span_id,omitempty"`
	CallerTraceID    string  `json:"caller_trace_id,omitempty"`
}

// JSON returns the record as one line without the final newline.
func (r *Record) JSON() ([]byte, error) {
	l := line{
		Schema: Schema, Time: r.Time.UTC().Format(timeFormat), Event: r.Event, ID: r.ID,
		Listener: r.Listener, Protocol: r.Protocol, Wire: r.Wire,
		Identity: bounded(r.Identity.String(), maxIdentity), IdentitySource: r.Source.String(),
		Host: r.Dest.Host.String(), Port: r.Dest.Port, Method: bounded(r.Method, maxMethod),
		Reason: r.Reason.String(), WouldReason: r.WouldReason.String(), Status: r.Status,
		Rule: r.Rule, RuleAt: r.RuleAt, Policy: r.Policy, Generation: r.Generation,
		AddressesDropped: r.Dropped,
		ResolveMS:        milliseconds(r.Resolve), DialMS: milliseconds(r.Dial),
		DecideUS: float64(r.Decide.Nanoseconds()) / 1e3, DurationMS: milliseconds(r.Duration),
		CloseReason: r.CloseReason, Detail: bounded(r.Detail, maxDetail),
	}
	if r.Client.IsValid() {
		l.Client = r.Client.String()
	}
	if r.Address.IsValid() {
		l.Address = r.Address.String()
	}
	if r.Event == EventDecision {
		l.Verdict = r.Verdict.String()
		if r.Policy != "" {
			l.Mode = r.Mode.String()
		}
	}
	if r.Class != allowlist.Invalid {
		l.AddressClass = r.Class.String()
	}
	if r.Event == EventTunnelProgress || r.Event == EventTunnelClose {
		l.Up, l.Down = &r.Up, &r.Down
	}
	if r.Trace.HasTraceID() {
		l.TraceID, l.SpanID = r.Trace.TraceID().String(), r.Trace.SpanID().String()
	}
	if r.CallerTrace.IsValid() {
		l.CallerTraceID = r.CallerTrace.String()
	}
	return json.Marshal(l)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
