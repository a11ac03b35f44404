package ocsf

import (
	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// event has the attributes of the classes that are used, with the schema's names and
// nesting.
type event struct {
	ActivityID   int      `json:"activity_id"`
	Activity     string   `json:"activity_name,omitempty"`
	Category     int      `json:"category_uid"`
	Class        int      `json:"class_uid"`
	TypeID       int      `json:"type_uid"`
	Type         string   `json:"type_name"`
	Severity     int      `json:"severity_id"`
	Time         int64    `json:"time"` // in milliseconds, as all times here
	Start        int64    `json:"start_time,omitempty"`
	End          int64    `json:"end_time,omitempty"`
	Count        uint64   `json:"count,omitempty"`
	Duration     int64    `json:"duration,omitempty"`
	Status       int      `json:"status_id,omitempty"`
	StatusCode   string   `json:"status_code,omitempty"`
	StatusDetail string   `json:"status_detail,omitempty"`
	Metadata     metadata `json:"metadata"`

	Action      *int   `json:"action_id,omitempty"`
	Disposition *int   `json:"disposition_id,omitempty"`
	Rule        *named `json:"firewall_rule,omitempty"`
	Policy      *named `json:"policy,omitempty"`

	Source      *endpoint   `json:"src_endpoint,omitempty"`
	Destination *endpoint   `json:"dst_endpoint,omitempty"`
	Proxy       *endpoint   `json:"proxy_endpoint,omitempty"`
	Connection  *connection `json:"connection_info,omitempty"`
	Request     *request    `json:"http_request,omitempty"`
	Response    *response   `json:"http_response,omitempty"`
	Query       *query      `json:"query,omitempty"`
	Answers     []answer    `json:"answers,omitempty"`
	Code        *int        `json:"rcode_id,omitempty"`
	CodeText    string      `json:"rcode,omitempty"`
	Traffic     *traffic    `json:"traffic,omitempty"`
	Entity      *entity     `json:"entity,omitempty"`

	Unmapped unmapped `json:"unmapped,omitzero"`
}

type metadata struct {
	Version     string      `json:"version"`
	Product     product     `json:"product"`
	Profiles    []string    `json:"profiles,omitempty"`
	ID          string      `json:"uid,omitempty"`
	Correlation string      `json:"correlation_uid,omitempty"`
	Code        audit.Event `json:"event_code"`
}

type product struct {
	Name   string `json:"name"`
	Vendor string `json:"vendor_name"`
}

type named struct {
	Name string `json:"name,omitempty"`
	ID   string `json:"uid,omitempty"`
}

type endpoint struct {
	Host    string `json:"hostname,omitempty"`
	IP      string `json:"ip,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	Service string `json:"svc_name,omitempty"`
	Name    string `json:"name,omitempty"`
	Owner   *user  `json:"owner,omitempty"`
}

type user struct {
	ID     string `json:"uid"`
	Domain string `json:"domain,omitempty"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type connection struct {
	Direction int    `json:"direction_id"`
	Protocol  string `json:"protocol_name"`
}

type request struct {
	ID     string `json:"uid,omitempty"`
	Method string `json:"http_method,omitempty"`
	URL    *url   `json:"url,omitempty"`
}

type url struct {
	Text string `json:"url_string"` // of a CONNECT the authority; of a plain request the URL, with the path only if the rule restricts paths
	Host string `json:"hostname,omitempty"`
	Port uint16 `json:"port,omitempty"`
	Path string `json:"path,omitempty"`
}

type response struct {
	Code int `json:"code"`
}

// query is the question of a DNS query.
type query struct {
	Host  string `json:"hostname"`
	Type  string `json:"type,omitempty"`
	Class string `json:"class"`
}

// answer is one address in the answer.
type answer struct {
	Data string `json:"rdata"`
}

// traffic counts bytes from the caller's point of view.
type traffic struct {
	Bytes int64 `json:"bytes"`
	In    int64 `json:"bytes_in"`
	Out   int64 `json:"bytes_out"`
}

type entity struct {
	Name    string `json:"name"`
	ID      string `json:"uid,omitempty"`
	TypeID  int    `json:"type_id"`
	Type    string `json:"type"`
	Version string `json:"version,omitempty"`
}

// unmapped holds the fields without a place in the schema, with the names of the native
// form.
type unmapped struct {
	Identity         string         `json:"identity,omitempty"` // only audit.Other, which is not a SPIFFE ID
	Instance         string         `json:"instance,omitempty"`
	Protocol         audit.Protocol `json:"protocol,omitempty"`
	Wire             audit.Wire     `json:"wire,omitempty"`
	IdentitySource   string         `json:"identity_source,omitempty"`
	Unproven         bool           `json:"unproven,omitempty"`
	Attributed       string         `json:"attributed,omitempty"`
	WouldReason      string         `json:"would_reason,omitempty"`
	Mode             string         `json:"mode,omitempty"`
	Quarantine       string         `json:"quarantine,omitempty"`
	Generation       uint64         `json:"generation,omitempty"`
	RuleAt           string         `json:"rule_at,omitempty"`
	Owner            string         `json:"owner,omitempty"`
	Ticket           string         `json:"ticket,omitempty"`
	Stage            string         `json:"stage,omitempty"`
	SNI              string         `json:"sni,omitempty"`
	TLS              string         `json:"tls,omitempty"`
	ECH              bool           `json:"ech,omitempty"`
	AddressClass     string         `json:"address_class,omitempty"`
	AddressesDropped int            `json:"addresses_dropped,omitempty"`
	AddressesRefused []string       `json:"addresses_refused,omitempty"`
	ResolveMS        float64        `json:"resolve_ms,omitempty"`
	DialMS           float64        `json:"dial_ms,omitempty"`
	DecideUS         float64        `json:"decide_us,omitempty"`
	Answers          *int           `json:"answers,omitempty"`
	Filtered         int            `json:"filtered,omitempty"`
	AnswerSource     string         `json:"source,omitempty"`
	CloseReason      string         `json:"close_reason,omitempty"`
	Counts           []count        `json:"counts,omitempty"`
	TraceID          string         `json:"trace_id,omitempty"`
	SpanID           string         `json:"span_id,omitempty"`
	CallerTraceID    string         `json:"caller_trace_id,omitempty"`
}

type count struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason,omitempty"`
	Count   uint64 `json:"count"`
}

func unmappedFields(r *audit.Record) unmapped {
	u := unmapped{
		Instance: r.Instance, Protocol: r.Protocol, Wire: r.Wire, IdentitySource: r.Proof.String(), Unproven: r.Unproven(), Attributed: r.AttributedText(),
		WouldReason: r.WouldReason.String(), Quarantine: r.Quarantine, Generation: r.Generation, RuleAt: r.RuleAt, Owner: r.Owner, Ticket: r.Ticket,
		Stage: r.Stage.String(), SNI: r.Hello.SNIText(), TLS: r.Hello.TLS.String(), ECH: r.Hello.ECH,
		AddressesDropped: r.Dropped, AddressesRefused: audit.AddressTexts(r.Refused), CloseReason: r.CloseReasonText(),
		ResolveMS: float64(r.Resolve.Microseconds()) / 1e3, DialMS: float64(r.Dial.Microseconds()) / 1e3,
		DecideUS: float64(r.Decide.Nanoseconds()) / 1e3,
	}
	if r.Protocol == audit.ProtocolDNS {
		u.Filtered, u.AnswerSource = r.DNS.Filtered, r.DNS.Origin
		if r.DNS.Code != "" {
			u.Answers = &r.DNS.Answers
		}
	}
	if m := r.Merged; m != nil {
		if m.Other {
			u.Identity = audit.Other
		}
		for _, c := range m.Counts {
			u.Counts = append(u.Counts, count{c.Verdict.String(), c.Reason.String(), c.Count})
		}
	}
	if (r.Event == audit.EventDecision || r.Event == audit.EventCollapsed) && r.Policy != "" {
		u.Mode = r.Mode.String()
	}
	if r.Class != allowlist.Invalid {
		u.AddressClass = r.Class.String()
	}
	if r.Trace.HasTraceID() {
		u.TraceID, u.SpanID = r.Trace.TraceID().String(), r.Trace.SpanID().String()
	}
	if r.CallerTrace.IsValid() {
		u.CallerTraceID = r.CallerTrace.String()
	}
	return u
}
