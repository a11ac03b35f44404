// Package refusal turns a reason into the answer that a caller sees: an HTTP/1
// response with an explanation in its reason phrase, since most clients show no
// other part of it.
//
// An answer never contains more than its Disclosure allows, and never a resolved
// address.
package refusal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
)

// Disclosure says how much an answer contains. The zero value is Full.
type Disclosure uint8

// The disclosures. Full answers with everything, ID with the sentence and the id of the
// decision but without what the policy would allow, and None with the status only.
const (
	Full Disclosure = iota
	ID
	None
)

// ParseDisclosure reads full, id or none.
func ParseDisclosure(word string) (d Disclosure, ok bool) {
	switch word {
	case "full":
		return Full, true
	case "id":
		return ID, true
	case "none":
		return None, true
	}
	return None, false
}

const (
	// maxPhrase is the largest length of the reason phrase in bytes. Some clients
	// truncate longer ones.
	maxPhrase = 200
	// maxDestination is the largest length of the destination in the phrase, which leaves
	// room for the reason.
	maxDestination = 80
)

// Refusal describes a refused request and the form of the answer.
type Refusal struct {
	Reason allowlist.Reason
	// Cause selects the Proxy-Status error type if the reason has several.
	Cause allowlist.Cause
	// Decision is the decision of the policy. It is zero if the request was refused
	// before a decision.
	Decision allowlist.Decision
	// DecisionID and TraceID identify the record of the request.
	DecisionID, TraceID string
	// Detail replaces the text of the reason, for example with why a certificate was
	// not accepted. With cut-off it is added to that text. "" means the text alone. It
	// may hold any bytes; those that are not printable are replaced.
	Detail string
	// Realm is the trust domain, for a 407; "" means exeat.
	Realm string
	// JSON selects application/problem+json for the body.
	JSON bool
	// KeepAlive says that the connection stays open for another request.
	KeepAlive bool
	// Bodyless leaves the body out, as an answer to HEAD must.
	Bodyless bool
	// DNS is the error of a name server that did not resolve the destination.
	DNS DNSError
}

// DNSError holds the parameters of the Proxy-Status error dns_error (RFC 9209 section
// 2.3.2). The zero value adds none.
type DNSError struct {
	RCode string // response code, such as SERVFAIL; "" if there is none
	// Extended is the code of the extended DNS error. It counts only if HasExtended.
	Extended    uint16
	HasExtended bool
}

// append appends the parameters to a Proxy-Status field.
func (e DNSError) append(b []byte) []byte {
	if e.RCode != "" {
		b = fmt.Appendf(b, "; rcode=%s", quoted(printable(e.RCode)))
	}
	if e.HasExtended {
		b = fmt.Appendf(b, "; info-code=%d", e.Extended)
	}
	return b
}

// usualSize is a size in bytes that few heads and few bodies exceed.
const usualSize = 768

// A Field is one field of a response.
type Field struct{ Name, Value string }

// Response is a refusal as a response of HTTP, of any version. The zero value means that no
// answer can be sent.
type Response struct {
	Status int
	Phrase string // the reason phrase of HTTP/1.x
	Fields []Field
	Body   []byte // empty if Bodyless is set
	// Error is the error type in Proxy-Status; "" if that is not disclosed.
	Error string
}

// Response returns the response. It is the zero value for a reason without a status.
func (r Refusal) Response(d Disclosure) Response {
	if r.Reason.String() == "" { // not a Reason: the calling code is wrong
		r.Reason = allowlist.InternalError
	}
	info := r.Reason.Info()
	if info.Status == 0 {
		return Response{}
	}
	phrase := r.phrase(d)
	fields := append(make([]Field, 0, 8), Field{proxyStatusName, r.proxyStatus(d, phrase)})
	add := func(name, value string) { fields = append(fields, Field{name, value}) }
	if d != None && r.DecisionID != "" {
		add("X-Exeat-Decision", r.DecisionID)
	}
	if d == Full && r.TraceID != "" {
		add("X-Exeat-Trace", r.TraceID)
	}
	switch info.Status {
	case http.StatusProxyAuthRequired:
		add("Proxy-Authenticate", "SVID realm="+quoted(r.realm(d)))
	case http.StatusMethodNotAllowed:
		add("Allow", http.MethodConnect)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		add("Retry-After", "5")
	}
	body, contentType := r.body(d, phrase)
	add("Content-Type", contentType)
	add("Content-Length", strconv.Itoa(len(body)))
	if r.Bodyless {
		body = nil
	}
	resp := Response{Status: info.Status, Phrase: phrase, Fields: fields, Body: body}
	if d != None {
		resp.Error = r.Reason.ProxyError(r.Cause)
	}
	return resp
}

// proxyStatus returns the value of Proxy-Status (RFC 9209).
func (r Refusal) proxyStatus(d Disclosure, phrase string) string {
	b := make([]byte, 0, usualSize)
	b = append(b, "exeat"...)
	if d != None {
		b = fmt.Appendf(b, "; error=%s", r.Reason.ProxyError(r.Cause))
	}
	if d == Full {
		b = r.DNS.append(r.appendReason(b, phrase))
	}
	return string(b)
}

// Note returns the value of Proxy-Status for the answer to a request that only observe mode
// has let through: that it was observed, and the sentence of the refusal that enforcement
// would have given. It is "" for any other decision, and with less than full disclosure.
func Note(dec allowlist.Decision, decisionID string, d Disclosure) string {
	if d != Full || dec.Verdict != allowlist.Observe {
		return ""
	}
	dec.Reason = dec.WouldReason
	r := Refusal{Reason: dec.Reason, Decision: dec, DecisionID: decisionID}
	return string(r.appendReason(append(make([]byte, 0, usualSize/2), "exeat"...), r.fit(observed+": "+r.sentence(d), d)))
}

// observed begins the sentence about a request that only observe mode has let through.
const observed = "egress let through in observe mode, would be denied"

// appendReason appends the parameters that give the reason in one word and in a sentence.
func (r Refusal) appendReason(b []byte, sentence string) []byte {
	return fmt.Appendf(b, "; reason=%s; details=%s", r.Reason, quoted(sentence))
}

// Append appends the whole response to b as one of HTTP/1.1: status line, fields and body.
// It appends nothing for a reason without a status, since no answer can be sent then.
func (r Refusal) Append(b []byte, d Disclosure) []byte {
	resp := r.Response(d)
	return resp.Append(b, r.KeepAlive)
}

// Append appends the response to b as one of HTTP/1.1; nothing if it is the zero value.
// keepAlive says that the connection stays open for another request.
func (r *Response) Append(b []byte, keepAlive bool) []byte {
	if r.Status == 0 {
		return b
	}
	b = slices.Grow(b, usualSize+len(r.Body))
	b = fmt.Appendf(b, "HTTP/1.1 %d %s\r\n", r.Status, r.Phrase)
	if !keepAlive {
		b = append(b, "Connection: close\r\n"...)
	}
	for _, f := range r.Fields {
		b = append(append(append(append(b, f.Name...), ": "...), f.Value...), "\r\n"...)
	}
	return append(append(b, "\r\n"...), r.Body...)
}

func (r Refusal) realm(d Disclosure) string {
	if d == None || r.Realm == "" {
		return "exeat"
	}
	return printable(r.Realm)
}

// phrase returns the reason phrase: one line of printable ASCII with the most useful
// words first, at most maxPhrase bytes long and never empty.
func (r Refusal) phrase(d Disclosure) string {
	prefix := prefixOf(r.Reason.Info().Status)
	if d == None {
		return prefix
	}
	return r.fit(prefix+": "+r.sentence(d), d)
}

// fit returns a sentence with the id of the decision and the owner to ask behind it, in at
// most maxPhrase bytes: the owner is left out if there is no room, and the sentence is cut.
func (r Refusal) fit(sentence string, d Disclosure) string {
	tail := ""
	if r.DecisionID != "" {
		tail = "; id " + r.DecisionID
	}
	owner := ""
	if d == Full && r.Decision.Owner != "" {
		owner = "; ask " + printable(r.Decision.Owner)
	}
	if len(sentence)+len(tail)+len(owner) > maxPhrase {
		owner = ""
	}
	if room := maxPhrase - len(tail); len(sentence) > room {
		sentence = sentence[:room-3] + "..."
	}
	return sentence + tail + owner
}

func prefixOf(status int) string {
	switch status {
	case http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusTooManyRequests:
		return "egress denied"
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return "egress failed"
	case http.StatusServiceUnavailable, http.StatusInternalServerError:
		return "egress unavailable"
	}
	return "egress refused"
}

func (r Refusal) sentence(d Disclosure) string {
	text := r.Reason.Info().Text
	switch {
	case r.Detail == "":
	case r.Reason == allowlist.CutOff:
		text += " (" + printable(r.Detail) + ")"
	default:
		text = printable(r.Detail)
	}
	dec := &r.Decision
	switch r.Reason.Info().Status {
	case http.StatusForbidden:
		who := cmp.Or(strings.TrimPrefix(dec.ID.Path(), "/"), "this caller")
		text = destinationText(dec.Dest) + " " + text + " " + who
		if ports := dec.AllowedPorts(); d == Full && ports != "" {
			text += " (allowed: " + ports + ")"
		}
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		text = destinationText(dec.Dest) + " " + text
	}
	return text
}

// destinationText returns the text of a destination. It leaves out the middle of a long one, since
// the end of a name identifies it.
func destinationText(dest allowlist.Destination) string {
	s := dest.String()
	if over := len(s) - maxDestination; over > 0 {
		const first = maxDestination / 4
		s = s[:first] + "..." + s[first+over+len("..."):]
	}
	return s
}

// body returns the body of the response, which lists all that is known of the refusal.
func (r Refusal) body(d Disclosure, phrase string) (body []byte, contentType string) {
	if r.JSON {
		p := r.problem(d, phrase)
		body, err := json.MarshalIndent(p, "", "  ")
		if err == nil { // a struct of strings and a number always encodes
			return append(body, '\n'), "application/problem+json"
		}
	}
	b := make([]byte, 0, usualSize)
	b = append(append(b, phrase...), '\n')
	if d == Full {
		for _, row := range r.rows() {
			b = fmt.Appendf(b, "  %-9s %s\n", row[0]+":", row[1])
		}
		if yaml := RuleYAML(r.Decision.ID.String(), r.Decision.Mode, r.Decision.Remedy(r.Reason).Rule); yaml != "" {
			b = append(append(b, "\nIf it should be allowed, add this to the policy:\n\n"...), yaml...)
		}
	}
	return b, "text/plain; charset=utf-8"
}

// rows returns the labelled facts of the text body, without empty ones.
func (r Refusal) rows() [][2]string {
	d := &r.Decision
	rows := make([][2]string, 1, 8)
	rows[0] = [2]string{"reason", r.Reason.String()}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, [2]string{name, allowlist.Visible(value)})
		}
	}
	add("who", d.ID.String())
	if !d.Dest.Host.IsZero() {
		add("where", d.Dest.String())
	}
	if d.Rule != nil {
		add("rule", d.Rule.Name())
	}
	add("policy", d.PolicyVersion())
	add("decision", r.DecisionID)
	add("trace", r.TraceID)
	add("ask", printable(d.Owner))
	return rows
}

// problem returns the body as problem details (RFC 9457).
func (r Refusal) problem(d Disclosure, phrase string) any {
	type problem struct {
		Title       string `json:"title"`
		Status      int    `json:"status"`
		Reason      string `json:"reason,omitempty"`
		Identity    string `json:"identity,omitempty"`
		Destination string `json:"destination,omitempty"`
		Policy      string `json:"policy,omitempty"`
		Decision    string `json:"decision,omitempty"`
		Trace       string `json:"trace,omitempty"`
		Owner       string `json:"owner,omitempty"`
		AllowWith   string `json:"allow_with,omitempty"`
	}
	p := problem{Title: phrase, Status: r.Reason.Info().Status}
	if d != None {
		p.Decision = r.DecisionID
	}
	if d == Full {
		dec := &r.Decision
		p.Reason, p.Identity, p.Policy = r.Reason.String(), dec.ID.String(), dec.PolicyVersion()
		p.Trace, p.Owner, p.AllowWith = r.TraceID, printable(dec.Owner), RuleYAML(dec.ID.String(), dec.Mode, dec.Remedy(r.Reason).Rule)
		if !dec.Dest.Host.IsZero() {
			p.Destination = dec.Dest.String()
		}
	}
	return p
}

// printable replaces every byte outside printable ASCII, so that text from a
// policy or a certificate can neither end a header nor colour a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}

// quoted returns s as a string of structured fields (RFC 8941 section 3.3.3). s must be
// printable ASCII.
func quoted(s string) string {
	b := make([]byte, 0, len(s)+8)
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return string(append(b, '"'))
}

// Plain returns the refusal of another server than a gateway, which has a reason of its own:
// a token, and a sentence for people.
func Plain(server string, status int, proxyError, reason, sentence string) Response {
	phrase := printable(prefixOf(status) + ": " + sentence)
	if len(phrase) > maxPhrase {
		phrase = phrase[:maxPhrase-3] + "..."
	}
	body := []byte(phrase + "\n  reason:   " + reason + "\n")
	return Response{Status: status, Phrase: phrase, Body: body, Error: proxyError, Fields: []Field{
		{proxyStatusName, server + "; error=" + proxyError + "; reason=" + reason + "; details=" + quoted(phrase)},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Length", strconv.Itoa(len(body))},
	}}
}
