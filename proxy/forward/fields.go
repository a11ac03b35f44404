package forward

import (
	"iter"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// names are names of fields. Each list of a message
// is read into names once, so that comparing it with another one takes a time
// that grows with their lengths and not with the product of these.
type names map[string]bool

// listed reads lists of names, each as what key makes of it.
func listed(lists iter.Seq[string], key func(string) string) names {
	var all names
	for v := range lists {
		if all == nil {
			all = make(names)
		}
		for name := range strings.SplitSeq(v, ",") {
			all[key(strings.Trim(name, " \t"))] = true
		}
	}
	return all
}

// nominated are the names that the values of Connection list.
func nominated(connection iter.Seq[string]) names { return listed(connection, variable) }

// nominate reports whether a field, or a twin of it, is one of those that
// Connection lists.
func (n names) nominate(name string) bool { return n[variable(name)] }

// variable returns the name that a field is told by: with hyphens for whatever is
// neither a letter nor a digit. A server that hands fields to a program as
// variables (CGI, RFC 3875 section 4.1.18, and what came after it) writes
// HTTP_X_FORWARDED_FOR for X-Forwarded-For and for X_Forwarded_For, and some do
// for X.Forwarded.For, so that what holds for one name holds for its twins.
func variable(name string) string {
	return textproto.CanonicalMIMEHeaderKey(strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, name))
}

// isTwin reports whether a name is another spelling of one that has hyphens.
func isTwin(name string) bool { return !strings.EqualFold(variable(name), name) }

// isHop reports whether a field belongs to one connection and is never sent on
// (RFC 9110 section 7.6.1), or is the proxy's own. A CGI program takes the field
// Proxy for the variable HTTP_PROXY, and so for its own proxy.
func isHop(name string) bool {
	name = variable(name)
	switch name {
	case "Connection", "Keep-Alive", "Proxy", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Alt-Svc":
		return true
	}
	return hasAny(name, "Proxy-", "X-Exeat-")
}

// isFraming reports whether a field says where the message goes or where it
// ends: these are written anew, whatever Connection nominates.
func isFraming(name string) bool {
	switch variable(name) {
	case "Host", "Content-Length":
		return true
	}
	return false
}

// isForwarded reports whether a field tells an origin of the inside.
func isForwarded(name string) bool {
	name = variable(name)
	switch name {
	case "Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "True-Client-Ip":
		return true
	}
	return hasAny(name, "X-Forwarded", "Forwarded-")
}

// isOverride reports whether servers, or what stands before them, take a field
// for the path, the method, the host or the caller of a request.
func isOverride(name string) bool {
	name = variable(name)
	switch name {
	case "Base-Url", "X-Base-Url", "Path-Info", "X-Path-Info", "Script-Name", "X-Script-Name", "Request-Uri", "X-Request-Uri", "Request-Url", "X-Request-Url",
		"Unencoded-Url", "X-Waws-Unencoded-Url", "X-Proxy-Url", "X-Reproxy-Url", "X-Url", "X-Uri", "X-Path", "X-Replaced-Path", "X-Invoke-Path", "X-Matched-Path",
		"X-Accel-Redirect", "X-Sendfile", // of answers, and obeyed by some servers in requests
		"X-Real-Path", "X-Backend-Path", "Origin-Path", "X-Wsgi-Path", "Path", "Url",
		"Http-Method", "Request-Method", "X-Method", "X-Request-Method", "X-Verb", "X-Host",
		"X-Cluster-Client-Ip", "X-Originating-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Azure-Clientip", "X-Appengine-User-Ip", "X-Envoy-External-Address",
		"X-Authenticated-User", "X-Webauth-User", "X-User", "X-Verified-User":
		return true
	}
	return strings.HasSuffix(name, "-Override") || hasAny(name,
		"X-Original-", "X-Rewrite-", "X-Override-", "X-Http-", "X-Envoy-Original-", "X-Middleware-", "X-Remote-", "Remote-",
		"Client-Cert", "X-Client-Cert", "Ssl-Client-", "X-Ssl-Client-", "X-Auth-Request-",
		"Wl-Proxy-", "X-Proxyuser-", "X-Forwarder-", "X-Ms-Client-Principal", "X-Goog-Authenticated-User-", "X-Goog-Iap-", "Cf-Access-", "X-Amzn-Oidc-")
}

// isTarget reports whether a field names a second path that the method changes
// (COPY and MOVE, RFC 4918 section 10.3).
func isTarget(name string) bool { return variable(name) == "Destination" }

// isTrailer reports whether a field may be sent behind a body: one that frames,
// routes or authenticates must be known before (RFC 9110 section 6.5.1).
func isTrailer(name string) bool {
	switch variable(name) {
	case "", "Authorization", "Set-Cookie", "Cookie", "Content-Encoding", "Content-Type", "Content-Range",
		"Cache-Control", "Expect", "Via", "Www-Authenticate":
		return false
	}
	return !isHop(name) && !isFraming(name) && !isForwarded(name) && !isOverride(name) && !isTarget(name) && token(name)
}

func token(name string) bool {
	return strings.Trim(name, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

func hasAny(name string, prefixes ...string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// keepRequestField reports whether a field of the client's is sent on as it
// came; nominated are the names that its Connection lists.
func keepRequestField(ex *Exchange, nominated names, name, value string, cfg *Config) bool {
	methods, paths := ex.Decision.Narrow()
	twin := isTwin(name)
	name = variable(name)
	switch {
	case isHop(name), isFraming(name), nominated.nominate(name):
		return false
	case isForwarded(name): // who passes them on trusts whoever wrote them, and that one writes hyphens
		return cfg.PassForwarded && !methods && !paths && !twin
	case isOverride(name):
		return !methods && !paths
	case isTarget(name):
		return !paths
	case strings.EqualFold(name, "Expect"):
		return strings.EqualFold(value, "100-continue") && ex.Head.Minor == 1
	}
	return true
}

// strip removes from an answer what belongs to the origin's connection, by
// itself or since it is nominated, and what only the gateway says. The answer was
// received as HTTP/1 with the minor version given, which Via names (RFC 9110
// section 7.6.3).
func strip(h http.Header, nominated names, minor int, cfg *Config) {
	for name := range h {
		if isHop(name) || nominated.nominate(name) && !isFraming(name) {
			delete(h, name)
		}
	}
	if !cfg.NoVia {
		h.Add("Via", "1."+strconv.Itoa(minor)+" "+DefaultPseudonym)
	}
}
