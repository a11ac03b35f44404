package front

import (
	"fmt"
	"net/http"
	"strings"
)

// FinalRecipientResponse returns the gateway's answer to an OPTIONS or TRACE that may not
// be forwarded, as its final recipient (RFC 9110 section 7.6.2). It is empty for OPTIONS.
// For TRACE its body is the request as it was received (RFC 9110 section 9.3.8), without
// the fields that are likely to hold secrets.
func FinalRecipientResponse(r *Request) Response {
	if r.Method != http.MethodTrace {
		return Response{Status: http.StatusOK}
	}
	body := fmt.Appendf(nil, "%s %s HTTP/%s\r\n", r.Method, r.Target, r.Head.Version())
	for _, f := range r.Head.Fields {
		if !isSecret(f.Name) {
			body = append(body, f.Name+": "+f.Value+"\r\n"...)
		}
	}
	return Response{Status: http.StatusOK, Fields: http.Header{"Content-Type": {"message/http"}}, Body: append(body, "\r\n"...)}
}

// isSecret reports whether a field of a request is likely to hold a secret.
func isSecret(name string) bool {
	name = strings.ToLower(name)
	return name == "authorization" || name == "cookie" || name == "cookie2" || strings.HasPrefix(name, "proxy-")
}
