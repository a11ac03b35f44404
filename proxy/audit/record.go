// Package audit records every decision, once, in one place: as a line of JSON
// and as an OpenTelemetry span, both renderings of one [Record].
//
// A door calls [Recorder.Begin] when it has read a request, sets fields of the record
// as it learns more, calls [Pending.Commit] when it knows the answer, and [Pending.End] when
// the answer is sent. A tunnel then reports its progress and its end through
// [Pending.Tunnel].
//
// Records go to any number of sinks, each with a queue of its own. A sink that is slow
// or dead does not delay decisions, unless records are required. Denials beyond a
// caller's room in a queue are counted into summaries, and lost records are counted.
//
// The package makes no decisions, and never records a payload, a query string, a
// credential, or the value of a header field other than [AttributedField].
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

// AttributedField is the field of a request in which a caller says which of its processes
// or steps has asked, such as process="curl", pid=4711, job="build". It is written for
// records only: nothing is decided by it, and no origin gets it.
const AttributedField = "X-Exeat-Attributed"

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

	// EventSummary stands for the denials of one identity, or of one source, that had
	// no room in a sink's queue. The address of an IPv6 source is the first one of its
	// network. If there were too many identities or sources, the summary stands for
	// those of a network or a listener; see Merged.Other. With a listener and without
	// Other it stands for connections that were closed there for want of a slot or a
	// file descriptor before they made a request, which have no other record. With a
	// detail that begins with "the sink failed" it stands for the records that one sink
	// has lost.
	EventSummary Event = "summary"
	// EventCollapsed stands for the denials that followed the one with the same id and
	// were identical.
	EventCollapsed Event = "decision.collapsed"
)

// Protocol says what a caller asked for. The zero value means that no request was read.
type Protocol string

// The protocols: a tunnel, a plain request, a DNS query, or a tunnel by SOCKS5.
const (
	ProtocolConnect Protocol = "connect"
	ProtocolHTTP    Protocol = "http"
	ProtocolDNS     Protocol = "dns"
	ProtocolSOCKS5  Protocol = "socks5"
)

// Wire says how a request came in. The zero value means that there was no request.
type Wire string

// The wires: HTTP/1 (h1), HTTP/2 (h2), and the transports of DNS queries. A request of
// SOCKS5 has WireTCP.
const (
	WireH1  Wire = "h1"
	WireH2  Wire = "h2"
	WireUDP Wire = "udp"
	WireTCP Wire = "tcp"
	WireDoT Wire = "dot"
	WireDoH Wire = "doh"
)

// Other is the identity in a summary that is about many callers; see Merged.Other.
const Other = "_other"

// Merged counts records that have no line of their own. Adding these counts to
// the lines of the decisions gives the number of decisions.
type Merged struct {
	Count       uint64
	First, Last time.Time // times of the records that are counted
	// Counts is Count by verdict and reason, in a summary. Each record that a sink has
	// lost counts as a failure with audit-unavailable, whatever its verdict was.
	Counts []Count
	// Other says that the summary is about many identities or addresses, because there
	// were too many for one summary each. They are those of the /24 or /48 that begins
	// with the client's address, or those on the record's listener, or all others.
	// Renderings give the constant Other as the identity.
	Other bool
}

// Count is the number of records with one verdict and reason.
type Count struct {
	Verdict allowlist.Verdict
	Reason  allowlist.Reason
	Count   uint64
}

// Record is one line of evidence. Zero fields are left out of the rendering, except
// where zero is a value (bytes of a tunnel).
type Record struct {
	Time     time.Time
	ID       string // ID of the decision; the records of its tunnel have the same
	Instance string // name of the process; the recorder sets it

	// The small fields stand together, because every tunnel keeps a record.
	Event       Event
	Protocol    Protocol
	Wire        Wire
	Proof       allowlist.Proof
	Verdict     allowlist.Verdict
	Reason      allowlist.Reason
	WouldReason allowlist.Reason
	Mode        allowlist.Mode
	Stage       Stage
	Class       allowlist.Class // class of an address that was refused
	CloseReason tunnel.Reason   // what ended a tunnel or an exchange; None in other records
	// Supersedes says that a sink may already have a record with this id. That one has the
	// answer that was intended but could not be recorded everywhere; this record has
	// the answer that was sent.
	Supersedes bool

	Listener string
	Identity spiffeid.ID
	Client   netip.AddrPort // zero for a unix socket; in a summary the port is 0
	// Attributed is what the caller says of the process or step that has asked, in the
	// first AttributedField; "" if it says nothing. Nobody has checked it.
	Attributed string

	Dest    allowlist.Destination // canonical form of the destination that was asked for
	Method  string
	Path    string         // set if the rule restricts paths; without the query
	Address netip.AddrPort // the address that was dialled

	Status int // status sent to the caller; 0 if none was

	Rule       string
	RuleAt     string
	Owner      string // owner of the entry that decided
	Ticket     string // ticket of the rule that decided
	Policy     string
	Quarantine string // version of the quarantine list, in records of reloads and quarantines
	Generation uint64

	Hello Hello

	Dropped int          // number of addresses that were refused
	Refused []netip.Addr // the first addresses that were refused, at most MaxAddresses; never changed once set

	Resolve, Dial time.Duration
	Decide        time.Duration

	// DNS holds the question and the answer, if Protocol is dns.
	DNS DNS

	Up, Down int64 // bytes from and to the caller
	Duration time.Duration

	// Detail is what a person needs to know beside the reason, such as the cause of a
	// failed handshake. It is printable and bounded by the code that sets it.
	Detail string

	// Merged describes the other records that this one stands for, in EventSummary and
	// EventCollapsed. It is nil in all other records.
	Merged *Merged

	Trace       trace.SpanContext // span of the decision
	CallerTrace trace.TraceID     // trace of the caller's context, if it sent one
}

// IsTunnel reports whether the record is about a tunnel, from a CONNECT or an upgrade,
// and not about a plain exchange.
func (r *Record) IsTunnel() bool {
	return r.Protocol != ProtocolHTTP && r.Protocol != ProtocolDNS || r.Status == http.StatusSwitchingProtocols
}

// LetNothingOut reports whether a decision let nothing out: policy or a limit denied it,
// or the gateway's own state did.
func (r *Record) LetNothingOut() bool {
	switch r.Verdict {
	case allowlist.Deny:
		return true
	case allowlist.Fail:
		return r.Reason == allowlist.RateLimited || r.Reason.Info().Status == http.StatusServiceUnavailable
	case allowlist.Allow, allowlist.Observe:
	}
	return false
}

// DNS is the question of a query and how it was answered.
type DNS struct {
	Type    allowlist.QueryType // type of the question; zero if none was read
	Code    string              // response code, such as NXDOMAIN; "" if no response was sent
	Answers int                 // number of records in the answer section
	// Answered holds the addresses in the answer, with those of hints, at most
	// MaxAddresses. Its memory belongs to the code that makes the record until End;
	// code that keeps a record longer copies it.
	Answered []netip.Addr
	Filtered int    // number of addresses and names that were removed from the answer
	Origin   string // cache, upstream, stale or local
}

// MaxAddresses bounds the addresses of one kind that a record names.
const MaxAddresses = 8

// AddressTexts returns addresses as every rendering shows them: without a zone, because
// readers of events accept none. It is nil if there are no addresses.
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

// TypeText returns the type of the question, or "" if none was read.
func (d *DNS) TypeText() string {
	if d.Type == 0 {
		return ""
	}
	return d.Type.String()
}

// SetNameDecision copies the policy's decision about a name into the record.
func (r *Record) SetNameDecision(d *allowlist.NameDecision) {
	r.SetDecision(allowlist.Decision{Outcome: d.Outcome})
}

// SetDecision copies the policy's decision into the record.
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
	if d.Class != allowlist.Invalid { // the caller asked for an address, which was refused
		r.Refused = []netip.Addr{d.Dest.Host.Addr()}
	}
	if d.Quarantine != nil {
		r.RuleAt, r.Detail = d.Quarantine.At, bounded(d.Quarantine.Reason, maxDetail)
	}
}

// SetDetail sets Detail. It keeps only the part that is written; see SetMethod.
func (r *Record) SetDetail(text string) { r.Detail = strings.Clone(bounded(text, maxDetail)) }

// SetMethod sets Method. It copies only the part that is written, because the request
// text that the method is part of may be long, and a record stays in memory in queues
// and with its tunnel.
func (r *Record) SetMethod(method string) { r.Method = strings.Clone(bounded(method, maxMethod)) }

// SetAttributed sets Attributed. It keeps only the part that is written; see SetMethod.
func (r *Record) SetAttributed(text string) {
	r.Attributed = strings.Clone(bounded(text, maxAttributed))
}

// Stage says when a decision was made. The zero value means that it was made when the
// request was read.
type Stage uint8

// The stages. StageTLS is a second decision, about the first bytes of a tunnel. It has
// the id of the first one.
const (
	StageRequest Stage = iota
	StageTLS
)

// String returns the word that records use, or "" for StageRequest.
func (s Stage) String() string {
	if s == StageTLS {
		return "tls"
	}
	return ""
}

// Hello describes the first bytes of a tunnel. The zero value means that they were not
// inspected.
type Hello struct {
	SNI string // name in the ClientHello, as it was sent
	TLS TLS
	ECH bool // the ClientHello offers Encrypted Client Hello
}

// TLS says how the first bytes compare with the destination.
type TLS uint8

// The comparisons.
const (
	TLSUnknown  TLS = iota
	TLSMatch        // the SNI is the host that was decided, or a name that a rule allows here
	TLSMismatch     // the SNI is another name, even if observe mode lets it through
	TLSAbsent       // no SNI
	TLSNone         // not TLS
)

// String returns the word that records use, or "" for TLSUnknown.
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
	maxAttributed = 512
	maxDetail     = 512
	maxInstance   = 253
	maxIdentity   = 2048
	maxMethod     = 32
	maxPath       = 1024
	maxSNI        = 253
)

// IdentityText returns the caller's SPIFFE ID as every rendering shows it, shortened if
// it is too long.
func (r *Record) IdentityText() string { return bounded(r.Identity.String(), maxIdentity) }

// MethodText returns the method as every rendering shows it, shortened if it is too
// long and made valid UTF-8.
func (r *Record) MethodText() string { return bounded(r.Method, maxMethod) }

// AttributedText returns the attribution as every rendering shows it; see MethodText.
func (r *Record) AttributedText() string { return bounded(r.Attributed, maxAttributed) }

// DetailText returns the detail as every rendering shows it; see MethodText.
func (r *Record) DetailText() string { return bounded(r.Detail, maxDetail) }

// CloseReasonText returns the word for what ended a tunnel or an exchange, or "" in
// other records.
func (r *Record) CloseReasonText() string {
	if r.CloseReason == tunnel.None {
		return ""
	}
	return r.CloseReason.String()
}

// SNIText returns the SNI as every rendering shows it; see MethodText.
func (h Hello) SNIText() string { return bounded(h.SNI, maxSNI) }

// bounded shortens untrusted text and makes it valid UTF-8, because an OTLP exporter
// loses the whole batch of a text that is not. Text that it has shortened once it does
// not shorten again. It does not escape characters that a terminal obeys; the
// renderings do. JSON renderings use JSON's escapes, so that a reader of JSON gets the
// original text; others escape the text itself.
func bounded(s string, limit int) string {
	const cut = "..."
	if len(s) > limit && (len(s) > limit+len(cut) || !strings.HasSuffix(s, cut)) {
		s = s[:limit] + cut
	}
	return strings.ToValidUTF8(s, "?")
}
