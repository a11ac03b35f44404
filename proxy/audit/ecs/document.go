package ecs

import "github.com/exeat-dev/exeat/proxy/audit"

// document has the fields that are used, with the schema's names and nesting.
type document struct {
	Time        string   `json:"@timestamp"`
	ECS         version  `json:"ecs"`
	Message     string   `json:"message"`
	Event       event    `json:"event"`
	Service     service  `json:"service"`
	Observer    observer `json:"observer"`
	Source      side     `json:"source,omitzero"`
	Client      endpoint `json:"client,omitzero"`
	Destination side     `json:"destination,omitzero"`
	User        user     `json:"user,omitzero"`
	Network     network  `json:"network,omitzero"`
	HTTP        http     `json:"http,omitzero"`
	URL         url      `json:"url,omitzero"`
	DNS         dns      `json:"dns,omitzero"`
	TLS         tls      `json:"tls,omitzero"`
	Rule        rule     `json:"rule,omitzero"`
	Error       failure  `json:"error,omitzero"`
	Trace       id       `json:"trace,omitzero"`
	Span        id       `json:"span,omitzero"`
	Related     related  `json:"related,omitzero"`
	Exeat       native   `json:"exeat"`
}

type version struct {
	Version string `json:"version"`
}

type event struct {
	Kind     string      `json:"kind"`
	Category []string    `json:"category"`
	Type     []string    `json:"type"`
	Action   string      `json:"action"`
	Code     audit.Event `json:"code"`
	Module   string      `json:"module"`
	Dataset  string      `json:"dataset"`
	Outcome  string      `json:"outcome,omitempty"`
	Reason   string      `json:"reason,omitempty"`
	ID       string      `json:"id,omitempty"`
	Start    string      `json:"start,omitempty"`
	End      string      `json:"end,omitempty"`
	Duration int64       `json:"duration,omitempty"` // in nanoseconds
}

type service struct {
	Name     string `json:"name"`
	ID       string `json:"id,omitempty"`
	Instance string `json:"ephemeral_id,omitempty"`
}

type observer struct {
	Vendor  string `json:"vendor"`
	Product string `json:"product"`
	Type    string `json:"type"`
}

type endpoint struct {
	Address string `json:"address,omitempty"`
	Domain  string `json:"domain,omitempty"`
	IP      string `json:"ip,omitempty"`
	Port    uint16 `json:"port,omitempty"`
}

// side is one end of the connection, with the bytes that it sent.
type side struct {
	endpoint

	Bytes *int64 `json:"bytes,omitempty"`
}

type user struct {
	ID     string `json:"id"`
	Domain string `json:"domain"`
}

type network struct {
	Transport string `json:"transport"`
	Protocol  string `json:"protocol,omitempty"`
	Direction string `json:"direction,omitempty"`
	Bytes     *int64 `json:"bytes,omitempty"`
}

type http struct {
	Request  request  `json:"request,omitzero"`
	Response response `json:"response,omitzero"`
}

type request struct {
	ID     string `json:"id,omitempty"`
	Method string `json:"method,omitempty"`
}

type response struct {
	Status int `json:"status_code"`
}

type url struct {
	Path string `json:"path,omitempty"`
}

type dns struct {
	Type     string   `json:"type"`
	Question question `json:"question,omitzero"`
	Code     string   `json:"response_code,omitempty"`
	Resolved []string `json:"resolved_ip,omitempty"`
}

type question struct {
	Name  string `json:"name,omitempty"`
	Type  string `json:"type,omitempty"`
	Class string `json:"class,omitempty"`
}

type tls struct {
	Established *bool     `json:"established,omitempty"`
	Client      tlsClient `json:"client,omitzero"`
}

type tlsClient struct {
	ServerName string `json:"server_name"`
}

type rule struct {
	Name    string `json:"name,omitempty"`
	Ruleset string `json:"ruleset,omitempty"` // version of the policy
}

type failure struct {
	Message string `json:"message"`
}

type id struct {
	ID string `json:"id"`
}

type related struct {
	IP    []string `json:"ip,omitempty"`
	Hosts []string `json:"hosts,omitempty"`
	User  []string `json:"user,omitempty"`
}

// native holds the fields without a place in the schema, with the names of the native
// form.
type native struct {
	ID               string         `json:"id,omitempty"` // only if neither event.id nor http.request.id has it
	Listener         string         `json:"listener,omitempty"`
	Protocol         audit.Protocol `json:"protocol,omitempty"`
	Wire             audit.Wire     `json:"wire,omitempty"`
	Identity         string         `json:"identity,omitempty"` // only audit.Other, which is not a SPIFFE ID
	IdentitySource   string         `json:"identity_source,omitempty"`
	Unproven         bool           `json:"unproven,omitempty"`
	Attributed       string         `json:"attributed,omitempty"`
	Verdict          string         `json:"verdict,omitempty"`
	WouldReason      string         `json:"would_reason,omitempty"`
	Mode             string         `json:"mode,omitempty"`
	Quarantine       string         `json:"quarantine,omitempty"`
	Generation       uint64         `json:"generation,omitempty"`
	RuleAt           string         `json:"rule_at,omitempty"`
	Owner            string         `json:"owner,omitempty"`
	Ticket           string         `json:"ticket,omitempty"`
	Stage            string         `json:"stage,omitempty"`
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
	Detail           string         `json:"detail,omitempty"`
	Count            uint64         `json:"count,omitempty"`
	Counts           []count        `json:"counts,omitempty"`
	CallerTraceID    string         `json:"caller_trace_id,omitempty"`
}

type count struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason,omitempty"`
	Count   uint64 `json:"count"`
}
