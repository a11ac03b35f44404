package front

import (
	"fmt"
	"net/http"
	"strings"
	"time"
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

// finalRecipientAnswer returns the gateway's answer. It is empty for OPTIONS. For TRACE
// its body is the request as it was received (RFC 9110 section 9.3.8), without the fields
// that are likely to hold secrets.
func finalRecipientAnswer(r *Request, keep bool) []byte {
	var body strings.Builder
	fields := ""
	if r.Method == http.MethodTrace {
		fields = "Content-Type: message/http\r\n"
		fmt.Fprintf(&body, "%s %s HTTP/%s\r\n", r.Method, r.Target, r.Head.Version())
		for _, f := range r.Head.Fields {
			if !isSecret(f.Name) {
				body.WriteString(f.Name + ": " + f.Value + "\r\n")
			}
		}
		body.WriteString("\r\n")
	}
	if !keep {
		fields += "Connection: close\r\n"
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nDate: %s\r\n%sContent-Length: %d\r\n\r\n%s",
		time.Now().UTC().Format(http.TimeFormat), fields, body.Len(), body.String())
}

// isSecret reports whether a field of a request is likely to hold a secret.
func isSecret(name string) bool {
	name = strings.ToLower(name)
	return name == "authorization" || name == "cookie" || name == "cookie2" || strings.HasPrefix(name, "proxy-")
}
