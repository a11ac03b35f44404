package front

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/proxy/refusal"
)

// answerAsFinalRecipient answers an OPTIONS or TRACE that may not be forwarded, as its
// final recipient (RFC 9110 section 7.6.2). It reports whether another request may
// follow.
func (c *h1) answerAsFinalRecipient(r *Request, a *Answer) (another bool) {
	keep := !c.front.IsDraining() && r.Body == 0 && !r.Head.IsHTTP10() && !r.Head.Lists("Connection", "close")
	err := c.write(finalRecipientAnswer(r, keep))
	a.done(err)
	switch {
	case err != nil:
		return false
	case keep:
		return c.end(Keep)
	}
	return c.end(Linger)
}

// finalRecipientAnswer returns the gateway's answer for HTTP/1.1.
func finalRecipientAnswer(r *Request, keep bool) []byte {
	fields, body := finalRecipientParts(r)
	answer := []byte("HTTP/1.1 200 OK\r\n")
	if !keep {
		answer = append(answer, "Connection: close\r\n"...)
	}
	for _, f := range fields {
		answer = fmt.Appendf(answer, "%s: %s\r\n", f.Name, f.Value)
	}
	return append(append(answer, "\r\n"...), body...)
}

// finalRecipientParts returns the fields and the body of the gateway's answer. The body is
// empty for OPTIONS. For TRACE it is the request as it was received (RFC 9110 section
// 9.3.8), without the fields that are likely to hold secrets.
func finalRecipientParts(r *Request) (fields []refusal.Field, content string) {
	var body strings.Builder
	fields = append(fields, refusal.Field{Name: "Date", Value: time.Now().UTC().Format(http.TimeFormat)})
	if r.Method == http.MethodTrace {
		fields = append(fields, refusal.Field{Name: "Content-Type", Value: "message/http"})
		fmt.Fprintf(&body, "%s %s HTTP/%s\r\n", r.Method, r.Target, r.Head.Version())
		for _, f := range r.Head.Fields {
			if !isSecret(f.Name) {
				body.WriteString(f.Name + ": " + f.Value + "\r\n")
			}
		}
		body.WriteString("\r\n")
	}
	return append(fields, refusal.Field{Name: "Content-Length", Value: strconv.Itoa(body.Len())}), body.String()
}

// isSecret reports whether a field of a request is likely to hold a secret.
func isSecret(name string) bool {
	name = strings.ToLower(name)
	return name == "authorization" || name == "cookie" || name == "cookie2" || strings.HasPrefix(name, "proxy-")
}
