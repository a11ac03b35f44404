package proxy

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// answerHere answers an OPTIONS or TRACE that policy allows and that may not be
// forwarded, in place of its recipient (RFC 9110 section 7.6.2). Nothing is looked
// up and no connection is made. It reports whether another request may follow.
func (x *exchange) answerHere(ctx context.Context) bool {
	x.open.Status, x.open.Detail = http.StatusOK, "answered by the gateway: Max-Forwards is 0"
	if x.open.Commit(context.WithoutCancel(ctx)) != nil {
		x.open.Detail = ""
		return x.refuse(ctx, allowlist.AuditUnavailable)
	}
	keep := x.body == 0 && x.head.Minor == 1 && !x.head.Lists("Connection", "close")
	err := x.write(x.ownAnswer(keep))
	if err != nil {
		x.unanswered(allowlist.NoReason)
	}
	x.open.End()
	if err == nil && !keep {
		x.linger()
	}
	x.rested = err == nil && keep
	return x.rested
}

// ownAnswer is the gateway's answer: it says nothing of OPTIONS, and shows a TRACE
// as it was received (RFC 9110 section 9.3.8), but for the fields that are likely
// to hold secrets.
func (x *exchange) ownAnswer(keep bool) []byte {
	var body strings.Builder
	fields := ""
	if x.head.Method == http.MethodTrace {
		fields = "Content-Type: message/http\r\n"
		fmt.Fprintf(&body, "%s %s HTTP/1.%d\r\n", x.head.Method, x.head.Target, x.head.Minor)
		for _, f := range x.head.Fields {
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
