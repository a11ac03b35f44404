package audit

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// timeFormat is RFC 3339 with all nine digits, so that lines sort as text.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

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
	Path             string  `json:"path,omitempty"`
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
	Stage            string  `json:"stage,omitempty"`
	SNI              string  `json:"sni,omitempty"`
	TLS              string  `json:"tls,omitempty"`
	ECH              bool    `json:"ech,omitempty"`
	AddressClass     string  `json:"address_class,omitempty"`
	AddressesDropped int     `json:"addresses_dropped,omitempty"`
	QType            string  `json:"qtype,omitempty"`
	RCode            string  `json:"rcode,omitempty"`
	Answers          *int    `json:"answers,omitempty"`
	Filtered         int     `json:"filtered,omitempty"`
	AnswerSource     string  `json:"source,omitempty"`
	ResolveMS        float64 `json:"resolve_ms,omitempty"`
	DialMS           float64 `json:"dial_ms,omitempty"`
	DecideUS         float64 `json:"decide_us,omitempty"`
	Up               *int64  `json:"up,omitempty"`
	Down             *int64  `json:"down,omitempty"`
	DurationMS       float64 `json:"duration_ms,omitempty"`
	CloseReason      string  `json:"close_reason,omitempty"`
	Detail           string  `json:"detail,omitempty"`
	Count            uint64  `json:"count,omitempty"`
	First            string  `json:"first,omitempty"`
	Last             string  `json:"last,omitempty"`
	Counts           []count `json:"counts,omitempty"`
	TraceID          string  `json:"trace_id,omitempty"`
	SpanID           string  `json:"span_id,omitempty"`
	CallerTraceID    string  `json:"caller_trace_id,omitempty"`
}

type count struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason,omitempty"`
	Count   uint64 `json:"count"`
}

// Native appends the record in the gateway's own form, a line of JSON without
// the final newline. It is a [Render].
func Native(dst []byte, r *Record) ([]byte, error) {
	l := line{
		Schema: Schema, Time: formatTime(r.Time), Event: r.Event, ID: r.ID,
		Listener: r.Listener, Protocol: r.Protocol, Wire: r.Wire,
		Identity: bounded(r.Identity.String(), maxIdentity), IdentitySource: r.Source.String(),
		Host: r.Dest.Host.String(), Port: r.Dest.Port, Method: bounded(r.Method, maxMethod), Path: r.Path,
		Reason: r.Reason.String(), WouldReason: r.WouldReason.String(), Status: r.Status,
		Rule: r.Rule, RuleAt: r.RuleAt, Policy: r.Policy, Generation: r.Generation,
		Stage: r.Stage.String(), SNI: bounded(r.Hello.SNI, maxSNI), TLS: r.Hello.TLS.String(), ECH: r.Hello.ECH,
		AddressesDropped: r.Dropped,
		ResolveMS:        milliseconds(r.Resolve), DialMS: milliseconds(r.Dial),
		DecideUS: float64(r.Decide.Nanoseconds()) / 1e3, DurationMS: milliseconds(r.Duration),
		CloseReason: r.CloseReason, Detail: bounded(r.Detail, maxDetail),
	}
	l.Client = clientText(r.Client)
	if r.Address.IsValid() {
		l.Address = r.Address.String()
	}
	if r.Event == EventDecision || r.Event == EventCollapsed {
		l.Verdict = r.Verdict.String()
		if r.Policy != "" {
			l.Mode = r.Mode.String()
		}
	}
	l.query(r)
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
	l.merged(r.Merged)
	text, err := json.Marshal(l)
	return append(dst, text...), err
}

// query fills in what only a DNS query has.
func (l *line) query(r *Record) {
	if r.Protocol != ProtocolDNS {
		return
	}
	l.QType, l.RCode, l.AnswerSource, l.Filtered = r.DNS.TypeText(), r.DNS.Code, r.DNS.Source, r.DNS.Filtered
	if l.RCode != "" {
		l.Answers = &r.DNS.Answers
	}
}

// merged fills in what the record says about others.
func (l *line) merged(m *Merged) {
	if m == nil {
		return
	}
	l.Count, l.First, l.Last = m.Count, formatTime(m.First), formatTime(m.Last)
	for _, c := range m.Counts {
		l.Counts = append(l.Counts, count{c.Verdict.String(), c.Reason.String(), c.Count})
	}
	if m.Other {
		l.Identity = Other
	}
}

// clientText leaves out the port of an address that stands for all of its
// connections.
func clientText(client netip.AddrPort) string {
	switch {
	case !client.IsValid():
		return ""
	case client.Port() == 0:
		return client.Addr().String()
	}
	return client.String()
}

func formatTime(t time.Time) string { return t.UTC().Format(timeFormat) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
