package forward

import (
	"iter"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/proxy/head"
)

// names are names of fields in their canonical spelling. Each list of a message
// is read into names once, so that comparing it with another one takes a time
// that grows with their lengths and not with the product of these.
type names map[string]bool

// listed reads lists of names.
func listed(lists iter.Seq[string]) names {
	var all names
	for v := range lists {
		if all == nil {
			all = make(names)
		}
		for name := range strings.SplitSeq(v, ",") {
			all[textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t"))] = true
		}
	}
	return all
}

// has reports whether a name is one of them, in whatever case it is written.
func (n names) has(name string) bool { return n[textproto.CanonicalMIMEHeaderKey(name)] }

// isHop reports whether a field belongs to one connection and is never sent on
// (RFC 9110 section 7.6.1), or is the proxy's own.
func isHop(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Http2-Settings", "Alt-Svc":
		return true
	}
	return hasFold(name, "Proxy-") || hasFold(name, "X-Exeat-")
}

// isFraming reports whether a field says where the message goes or where it
// ends: these are written anew, whatever Connection nominates.
func isFraming(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Host", "Content-Length":
		return true
	}
	return false
}

// isForwarded reports whether a field tells an origin of the inside.
func isForwarded(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "True-Client-Ip":
		return true
	}
	return hasFold(name, "X-Forwarded-")
}

// isTrailer reports whether a field may be sent behind a body: one that frames,
// routes or authenticates must be known before (RFC 9110 section 6.5.1).
func isTrailer(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "", "Authorization", "Set-Cookie", "Cookie", "Content-Encoding", "Content-Type", "Content-Range",
		"Cache-Control", "Expect", "Via", "Www-Authenticate":
		return false
	}
	return !isHop(name) && !isFraming(name) && !isForwarded(name) && token(name)
}

func token(name string) bool {
	return strings.Trim(name, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

func hasFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// keepRequestField reports whether a field of the client's is sent on as it
// came; nominated are the names that its Connection lists.
func keepRequestField(h *head.Head, nominated names, name, value string, cfg *Config) bool {
	switch {
	case isHop(name), isFraming(name), nominated.has(name):
		return false
	case isForwarded(name):
		return cfg.PassForwarded
	case strings.EqualFold(name, "Expect"):
		return strings.EqualFold(value, "100-continue") && h.Minor == 1
	}
	return true
}

// strip removes from an answer what belongs to the origin's connection, by
// itself or since it is nominated, and what only the gateway says. The answer was
// received as HTTP/1 with the minor version given, which Via names (RFC 9110
// section 7.6.3).
func strip(h http.Header, nominated names, minor int, cfg *Config) {
	for name := range h {
		if isHop(name) || nominated[name] && !isFraming(name) {
			delete(h, name)
		}
	}
	if !cfg.NoVia {
		h.Add("Via", "1."+strconv.Itoa(minor)+" "+DefaultPseudonym)
	}
}
