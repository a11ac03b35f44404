package refusal

import (
	"bytes"
	"net/textproto"
	"strconv"
	"strings"
)

// proxyStatusName is the name of the field that says why a request was refused.
const proxyStatusName = "Proxy-Status"

// Status is what a Proxy-Status field of a gateway says (RFC 9209).
type Status struct {
	Error   string // the error type; "" if there is none
	Reason  string // the token of the reason; "" if the gateway does not disclose it
	Details string // the sentence for people; "" if there is none
}

// ParseStatus parses the value of a Proxy-Status field. It returns false unless a gateway
// has written it, alone.
func ParseStatus(value string) (s Status, ok bool) {
	rest, ours := strings.CutPrefix(value, "exeat")
	for ours && rest != "" {
		var name, v string
		if name, v, rest, ours = cutParameter(rest); !ours {
			break
		}
		switch name {
		case "error":
			s.Error = v
		case "reason":
			s.Reason = v
		case "details":
			s.Details = v
		}
	}
	if !ours {
		return Status{}, false
	}
	return s, true
}

// cutParameter cuts the first parameter from a list of them, each behind a semicolon (RFC
// 8941 section 3.1.2). Its value is a token, a number or a string.
func cutParameter(list string) (name, value, rest string, ok bool) {
	list, ok = strings.CutPrefix(list, ";")
	name, rest, valued := strings.Cut(strings.TrimLeft(list, " "), "=")
	if !ok || !valued || name == "" || strings.ContainsAny(name, "; \",") {
		return "", "", "", false
	}
	if !strings.HasPrefix(rest, `"`) {
		end := strings.IndexByte(rest, ';')
		if end < 0 {
			end = len(rest)
		}
		value = rest[:end]
		return name, value, rest[end:], value != "" && !strings.ContainsAny(value, " \",")
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '"':
			return name, b.String(), rest[i+1:], true
		case c < ' ' || c > '~':
			return "", "", "", false
		case c == '\\':
			if i++; i == len(rest) || rest[i] != '"' && rest[i] != '\\' {
				return "", "", "", false
			}
			b.WriteByte(rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", "", false
}

// Refuses reports whether a response of a gateway to a plain request is a refusal, and not
// the answer of an origin: a gateway lets no Proxy-Status field of an origin through, and
// writes one without an error only beside details.
func (s Status) Refuses() bool { return s.Error != "" || s.Details == "" }

// Rebuild returns the refusal of another gateway that has come by HTTP/2, as it would have
// come by HTTP/1.1, where it has a reason phrase. Fields that belong to a connection, and
// those that HTTP/1.1 cannot carry, are left out. A nil body means that none follows, as after HEAD; any other one is all that has
// come, whatever length was announced.
func Rebuild(status int, fields []Field, body []byte) Response {
	r := Response{Status: status, Phrase: prefixOf(status), Body: body}
	text, measured := false, body == nil
	for _, f := range fields {
		value := f.Value
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		switch {
		case !isPassed(name, value):
			continue
		case name == proxyStatusName:
			s, ok := ParseStatus(f.Value)
			if ok && s.Details != "" {
				r.Phrase = s.Details
			}
			r.Error = s.Error
		case name == "Content-Type":
			text = strings.HasPrefix(value, "text/plain")
		case name == "Content-Length" && body != nil:
			if measured { // once is enough
				continue
			}
			value, measured = strconv.Itoa(len(body)), true
		}
		r.Fields = append(r.Fields, Field{name, value})
	}
	if !measured { // without it the next answer on the connection could be taken for this one's body
		r.Fields = append(r.Fields, Field{"Content-Length", strconv.Itoa(len(body))})
	}
	// A gateway that does not disclose the reason leaves the details out; the text for
	// people still begins with the phrase.
	if line, _, ok := bytes.Cut(body, []byte{'\n'}); ok && text && r.Phrase == prefixOf(status) && bytes.HasPrefix(line, []byte(r.Phrase)) {
		r.Phrase = string(line)
	}
	r.Phrase = printable(r.Phrase)
	if len(r.Phrase) > maxPhrase {
		r.Phrase = r.Phrase[:maxPhrase]
	}
	return r
}

// isPassed reports whether a field of a refusal is written by HTTP/1.1: neither a field of the
// connection, nor one that would end its line or frame the body in another way.
func isPassed(name, value string) bool {
	switch name {
	case "", "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return false
	}
	return !strings.ContainsAny(name, ": \t\r\n\x00") && !strings.ContainsAny(value, "\r\n\x00")
}
