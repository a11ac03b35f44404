// Package audit records every decision, once, in one place: as a line of JSON
// and as an OpenTelemetry span, both renderings of one [Record].
//
// A door calls [Recorder.Begin] when it has read a request, fills in the
// record as it learns more, calls [Open.Commit] when it knows the answer, and
// [Open.End] when the answer is sent. A tunnel then reports its progress and
// its end through [Open.Tunnel].
//
// Records go to any number of sinks, each with a queue of its own. A sink that
// is slow or dead delays nobody, unless records are required: a flood of one
// caller's denials is counted into summaries, and what is lost is counted.
//
// The package never decides, and never records a payload, a query string, a
// header value or a credential.
package audit

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
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
	EventQuarantine     Event = "quarantine"

	// EventSummary stands for the denials of one identity, or of one source, that
	// had no room in a sink's queue. Of an IPv6 source it has the first address. Of
	// too many it stands for those of a network or a listener; see Merged.Other.
	// With a listener and without Other it stands for connections that were closed
	// there for want of a slot or a file descriptor while nothing was asked over
	// them: no other record tells of that. With a detail that begins with "the sink
	// failed" it stands for what one sink has lost.
	EventSummary Event = "summary"
	// EventCollapsed stands for the denials that were identical with the one
	// whose id it has, and followed it.
	EventCollapsed Event = "decision.collapsed"
)

// Protocol says what a caller asked for. The zero value is nothing that was read.
type Protocol string

// The protocols: a tunnel, a plain request, or a DNS query.
const (
	ProtocolConnect Protocol = "connect"
	ProtocolHTTP    Protocol = "http"
	ProtocolDNS     Protocol = "dns"
)

// Wire says how a request came in. The zero value is no request.
type Wire string

// The wires: HTTP/1, and those of DNS queries.
const (
	WireH1  Wire = "h1"
	WireUDP Wire = "udp"
	WireTCP Wire = "tcp"
	WireDoT Wire = "dot"
	WireDoH Wire = "doh"
)

// Other is the identity in the summary of those beyond the bound.
const Other = "_other"

// Merged counts records that have no line of their own. Adding these counts to
// the lines of the decisions gives the number of decisions.
type Merged struct {
	Count       uint64
	First, Last time.Time // of those that are counted
	// Counts is Count by verdict and reason, in a summary. Records that a sink has
	// lost, whatever they said, are a failure of audit-unavailable each.
	Counts []Count
	// Other says that the summary is of many identities or addresses: there
	// were too many for one each. They are those of the /24 or /48 whose first
	// address the record has as the client, else those on its listener, else all
	// others. Renderings give the constant Other as the identity.
	Other bool
}

// Count is how many records had a verdict and a reason.
type Count struct {
	Verdict allowlist.Verdict
	Reason  allowlist.Reason
	Count   uint64
}

// Record is one line of evidence. Zero fields are left out of the rendering,
// except where zero says something (bytes of a tunnel).
type Record struct {
	Time     time.Time
	Event    Event
	ID       string // the decision's, also in the records of its tunnel
	Instance string // of the process; the recorder sets it

	Listener string
	Protocol Protocol
	Wire     Wire
	Identity spiffeid.ID
	Source   allowlist.Source
	Client   netip.AddrPort // zero for a unix socket; in a summary the port is 0

	Dest    allowlist.Destination // canonical, as asked
	Method  string
	Path    string         // where a rule looks at it; never the query
	Address netip.AddrPort // dialled

	Verdict     allowlist.Verdict
	Reason      allowlist.Reason
	WouldReason allowlist.Reason
	Status      int // sent to the caller; 0 if none was

	Rule       string
	RuleAt     string
	Owner      string // of the entry that decided
	Ticket     string // of the rule that decided
	Policy     string
	Quarantine string // version of who is in quarantine, of a reload and of a quarantine
	Generation uint64
	Mode       allowlist.Mode

	Stage Stage
	Hello Hello

	Class   allowlist.Class // of an address that was refused
	Dropped int             // addresses that were refused
	Refused []netip.Addr    // these addresses, at most MaxAddresses; not changed any more

	Resolve, Dial time.Duration
	Decide        time.Duration

	// DNS is what was asked and answered, if Protocol is dns.
	DNS DNS

	Up, Down    int64 // bytes from and to the caller
	Duration    time.Duration
	CloseReason tunnel.Reason // what ended a tunnel or an exchange; None in other records

	// Detail is what a person needs beside the reason, such as the cause of a
	// failed handshake. Printable and bounded by who sets it.
	Detail string

	// Merged is what a record says about the others that it stands for; nil for
	// one that stands for itself. It is set in EventSummary and EventCollapsed.
	Merged *Merged

	// Again says that a sink may have a record with this id already, of what was
	// to be answered: it could not be written everywhere, and this is what was.
	Again bool

	Trace       trace.SpanContext // of the decision span
	CallerTrace trace.TraceID     // of the caller's context, if it sent one
}

// IsTunnel reports whether the record is of a tunnel, from a CONNECT or an
// upgrade, and not of a plain exchange.
func (r *Record) IsTunnel() bool {
	return r.Protocol != ProtocolHTTP && r.Protocol != ProtocolDNS || r.Status == http.StatusSwitchingProtocols
}

// KeptIn reports whether a decision let nothing out: policy or a limit denied it,
// or the gateway's own state did.
func (r *Record) KeptIn() bool {
	switch r.Verdict {
	case allowlist.Deny:
		return true
	case allowlist.Fail:
		return r.Reason == allowlist.RateLimited || r.Reason.Info().Status == http.StatusServiceUnavailable
	case allowlist.Allow, allowlist.Observe:
	}
	return false
}

// DNS is what a query asked and how it was answered.
type DNS struct {
	Type    allowlist.QueryType // zero if none was read
	Code    string              // of the response, such as NXDOMAIN; "" if none was sent
	Answers int                 // records in the answer section
	// Answered has the addresses in the answer, those of hints included, at most
	// MaxAddresses. It may belong to whoever makes the record, until End: who keeps a
	// record longer copies them.
	Answered []netip.Addr
	Filtered int    // addresses and names that the answer was left without
	Source   string // cache, upstream, stale or local
}

// MaxAddresses bounds the addresses of one kind that a record names.
const MaxAddresses = 8

// AddressTexts returns addresses as every form shows them: without a zone, which a
// reader of events takes for no part of an address. It is nil without any.
func AddressTexts(all []netip.Addr) []string {
	if len(all) == 0 {
		return nil
	}
	texts := make([]string, 0, len(all))
	for _, addr := range all {
		texts = append(texts, addr.WithZone("").String())
	}
	return texts
}

// TypeText returns the type asked for; "" if none was read.
func (d *DNS) TypeText() string {
	if d.Type == 0 {
		return ""
	}
	return d.Type.String()
}

// SetNameDecision copies what the policy decided about a name.
func (r *Record) SetNameDecision(d *allowlist.NameDecision) {
	r.SetDecision(allowlist.Decision{Outcome: d.Outcome})
}

// SetDecision copies what the policy decided.
func (r *Record) SetDecision(d allowlist.Decision) {
	r.Verdict, r.Reason, r.WouldReason = d.Verdict, d.Reason, d.WouldReason
	r.Mode, r.Policy, r.Class = d.Mode, d.PolicyVersion(), d.Class
	r.Rule, r.RuleAt, r.Ticket, r.Path = "", "", "", ""
	r.Owner = d.Owner
	if d.Rule != nil {
		r.Rule, r.RuleAt, r.Ticket = d.Rule.Name(), d.Rule.Place(), d.Rule.Ticket
		if len(d.Rule.Paths) > 0 {
			r.Path = strings.Clone(bounded(d.Path, maxPath))
		}
	}
	if d.Class != allowlist.Invalid { // the destination is the address
		r.Refused = []netip.Addr{d.Dest.Host.Addr()}
	}
	if d.Quarantine != nil {
		r.RuleAt, r.Detail = d.Quarantine.At, bounded(d.Quarantine.Reason, maxDetail)
	}
}

// SetDetail notes what a person needs beside the reason. As of a path, no more is
// kept than is written.
func (r *Record) SetDetail(text string) { r.Detail = strings.Clone(bounded(text, maxDetail)) }

// SetMethod notes the method of a request. As of a path, no more is kept than is
// written: what it is a part of may be long, and a record lives on in queues and
// with its tunnel.
func (r *Record) SetMethod(method string) { r.Method = strings.Clone(bounded(method, maxMethod)) }

// Stage says when a decision was made. The zero value is when the request was
// read.
type Stage uint8

// The stages. A decision about a tunnel's first bytes is a second one, with the
// id of the first.
const (
	StageRequest Stage = iota
	StageTLS
)

// String returns the word that records use, "" for StageRequest.
func (s Stage) String() string {
	if s == StageTLS {
		return "tls"
	}
	return ""
}

// Hello is what the first bytes of a tunnel were. The zero value is a tunnel
// whose first bytes were not looked at.
type Hello struct {
	SNI string // the name that the ClientHello asks for, as it was sent
	TLS TLS
	ECH bool // it offers Encrypted Client Hello
}

// TLS says how first bytes compare with the destination.
type TLS uint8

// The comparisons.
const (
	TLSUnknown  TLS = iota
	TLSMatch        // SNI is the host that was decided, or a name that a rule allows here
	TLSMismatch     // it is not, also if observation lets it through
	TLSAbsent       // no SNI
	TLSNone         // not TLS
)

// String returns the word that records use, "" for TLSUnknown.
func (t TLS) String() string {
	switch t {
	case TLSUnknown:
		return ""
	case TLSMatch:
		return "match"
	case TLSMismatch:
		return "mismatch"
	case TLSAbsent:
		return "absent"
	case TLSNone:
		return "not-tls"
	}
	return ""
}

const (
	maxDetail   = 512
	maxInstance = 253
	maxIdentity = 2048
	maxMethod   = 32
	maxPath     = 1024
	maxSNI      = 253
)

// IdentityText returns the caller's SPIFFE ID as every form shows it: cut where
// it is too long.
func (r *Record) IdentityText() string { return bounded(r.Identity.String(), maxIdentity) }

// MethodText returns the method as every form shows it: cut where it is too
// long, and valid UTF-8.
func (r *Record) MethodText() string { return bounded(r.Method, maxMethod) }

// DetailText returns the detail as every form shows it, as MethodText does.
func (r *Record) DetailText() string { return bounded(r.Detail, maxDetail) }

// CloseReasonText returns the word for what ended a tunnel or an exchange, "" in
// the record of something else.
func (r *Record) CloseReasonText() string {
	if r.CloseReason == tunnel.None {
		return ""
	}
	return r.CloseReason.String()
}

// SNIText returns the SNI as every form shows it, as MethodText does.
func (h Hello) SNIText() string { return bounded(h.SNI, maxSNI) }

// bounded cuts untrusted text and makes it valid UTF-8, without which an OTLP
// exporter loses the whole batch that the text is in. What it returns it does not
// cut again. The renderings escape what a terminal obeys: those in JSON so that a
// reader of JSON has the text as it came, the others, which have no escapes of
// their own, in the text itself.
func bounded(s string, limit int) string {
	const cut = "..."
	if len(s) > limit && (len(s) > limit+len(cut) || !strings.HasSuffix(s, cut)) {
		s = s[:limit] + cut
	}
	return strings.ToValidUTF8(s, "?")
}
