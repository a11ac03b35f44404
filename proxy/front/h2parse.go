package front

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/head"
)

// pseudo holds the pseudo-header fields of a request (RFC 9113 section 8.3.1).
type pseudo struct{ method, scheme, authority, path, protocol part }

// part is the value of a pseudo-header field.
type part struct {
	text  string
	given bool // the head has the field, whose value may be ""
}

// errPseudo is the error for pseudo-header fields that are malformed.
var errPseudo = errors.New("malformed pseudo-header field")

// parseStream builds the canonical request from the head of a stream. isQueryAuthority is
// that of the connection.
func parseStream(h h2.Head, isQueryAuthority func(string) bool) *Request {
	r := new(Request)
	p, fields, err := splitPseudo(h.Fields)
	isQuery := isQueryAuthority != nil && p.scheme.text == "https" && !IsConnect(p.method.text) && isQueryTarget(p.path.text)
	r.Method, r.Target = p.method.text, p.target()
	if isQuery {
		r.Target = p.path.text
	}
	switch {
	case err != nil:
		r.Reason, r.Detail = allowlist.MalformedHeader, err.Error()
		return r
	case h.TooLarge:
		r.Reason, r.Detail = allowlist.HeadTooLarge, head.ErrTooLarge.Error()
		return r
	}
	if r.Reason, r.Detail = p.check(); r.Reason != allowlist.NoReason {
		return r
	}
	r.Head, err = head.Build(r.Method, r.Target, fields)
	if err != nil {
		r.Reason, r.Detail = headReason(err), err.Error()
		return r
	}
	switch {
	case isQuery:
		if r.Reason = r.parseQueryStream(p.authority.text, h.End, isQueryAuthority); r.Reason != allowlist.NoReason {
			r.Query = nil
		}
	case r.IsPlain():
		r.Reason = r.parsePlainStream(h.End)
	default:
		r.Reason = r.parseConnect()
	}
	return r
}

// splitPseudo splits a head into its pseudo-header fields and the others. It returns an
// error for one that is unknown, repeated, or stands behind another field.
func splitPseudo(fields []h2.Field) (p pseudo, others []head.Field, err error) {
	bad := func(what string) {
		if err == nil {
			err = fmt.Errorf("%s: %w", what, errPseudo)
		}
	}
	others = make([]head.Field, 0, len(fields))
	for _, f := range fields {
		if !strings.HasPrefix(f.Name, ":") {
			others = append(others, head.Field{Name: f.Name, Value: f.Value})
			continue
		}
		into := p.field(f.Name)
		switch {
		case into == nil:
			bad("one that no request has")
			continue
		case into.given:
			bad(f.Name + " stands there twice")
			continue
		case len(others) > 0:
			bad(f.Name + " stands behind another field")
		}
		*into = part{f.Value, true}
	}
	return p, others, err
}

// field returns a pseudo-header field by its name; nil if it is unknown.
func (p *pseudo) field(name string) *part {
	switch name {
	case ":method":
		return &p.method
	case ":scheme":
		return &p.scheme
	case ":authority":
		return &p.authority
	case ":path":
		return &p.path
	case ":protocol":
		return &p.protocol
	}
	return nil
}

// target returns the target as HTTP/1.1 would write it.
func (p *pseudo) target() string {
	if IsConnect(p.method.text) && !p.scheme.given && !p.path.given {
		return p.authority.text
	}
	path := p.path.text
	if path == allowlist.Asterisk { // RFC 9112 section 3.2.4
		path = ""
	}
	return p.scheme.text + "://" + p.authority.text + path
}

// check returns the reason to refuse pseudo-header fields that do not belong together.
func (p *pseudo) check() (reason allowlist.Reason, detail string) {
	malformed := func(what string) (allowlist.Reason, string) {
		return allowlist.MalformedHeader, fmt.Sprintf("%s: %v", what, errPseudo)
	}
	switch {
	case p.method.text == "":
		return malformed("no :method")
	case p.protocol.given: // RFC 8441 section 4: it was not announced
		return malformed(":protocol, an extended CONNECT, which the gateway has not offered")
	case IsConnect(p.method.text) && (p.scheme.given || p.path.given): // RFC 9113 section 8.5
		return malformed("a CONNECT with :scheme or :path")
	case p.authority.text == "":
		return allowlist.MissingHost, "no :authority"
	case IsConnect(p.method.text):
	case p.scheme.text == "" || p.path.text == "":
		return malformed("a request without :scheme or :path")
	case strings.ContainsAny(p.scheme.text, ":/?#"): // the target would begin with another authority
		return allowlist.MalformedTarget, "malformed target: :scheme holds more than a scheme"
	case strings.ContainsAny(p.authority.text, "/?#@\\"):
		return allowlist.MalformedTarget, "malformed target: :authority holds more than host and port"
	case p.path.text == allowlist.Asterisk && p.method.text != http.MethodOptions, p.path.text != allowlist.Asterisk && p.path.text[0] != '/':
		return allowlist.MalformedTarget, "malformed target: :path does not begin with a slash"
	}
	return allowlist.NoReason, ""
}

// parsePlainStream parses a plain request of a stream. Its Host must be that of its target.
func (r *Request) parsePlainStream(end bool) allowlist.Reason {
	if reason := r.parsePlain(); reason != allowlist.NoReason {
		return reason
	}
	authority := r.URL.Dest.String()
	if r.Cause = otherAuthority(r.Head, authority, r.URL.Dest); r.Cause != "" {
		return allowlist.AuthorityMismatch
	}
	return r.measureBody(end)
}

// parseQueryStream parses a query of a stream, whose front sets the body.
func (r *Request) parseQueryStream(authority string, end bool, isQueryAuthority func(string) bool) allowlist.Reason {
	if reason := r.parseQuery(authority, isQueryAuthority); reason != allowlist.NoReason {
		return reason
	}
	if r.Head.HasHost && !strings.EqualFold(r.Head.Host, authority) {
		r.Cause = "Host is not :authority"
		return allowlist.AuthorityMismatch
	}
	return r.measureBody(end)
}

// measureBody sets the length of the body. end says that there is none.
func (r *Request) measureBody(end bool) allowlist.Reason {
	switch {
	case r.Head.Get("Content-Length") == "" && !end:
		r.Body = head.Chunked
	case end && r.Body > 0: // RFC 9113 section 8.1.1
		r.Detail = "the stream ends before the body that Content-Length announces"
		return allowlist.MalformedHeader
	}
	return allowlist.NoReason
}
