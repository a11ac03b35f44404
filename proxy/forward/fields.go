package forward

import (
	"iter"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/proxy/head"
)

// listed reads lists of names of fields, each as what key makes of it. A list of a
// message is read once, so that comparing it with another one takes a time that
// grows with their lengths and not with the product of these.
func listed[K ~string](lists iter.Seq[string], key func(string) K) map[K]bool {
	var all map[K]bool
	for v := range lists {
		if all == nil {
			all = make(map[K]bool)
		}
		for name := range strings.SplitSeq(v, ",") {
			all[key(strings.Trim(name, " \t"))] = true
		}
	}
	return all
}

// nominated are the fields that the values of Connection list.
func nominated(connection iter.Seq[string]) map[variable]bool { return listed(connection, variableOf) }

// variable is the name that a field is told by: in its canonical spelling, with
// hyphens for whatever is neither a letter nor a digit. A server that hands fields
// to a program as variables (CGI, RFC 3875 section 4.1.18, and what came after it)
// writes HTTP_X_FORWARDED_FOR for X-Forwarded-For and for X_Forwarded_For, and some
// do for X.Forwarded.For, so that what holds for one name holds for its twins.
type variable string

func variableOf(name string) variable {
	return variable(textproto.CanonicalMIMEHeaderKey(strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, name)))
}

// isHop reports whether a field belongs to one connection and is never sent on
// (RFC 9110 section 7.6.1), or is the proxy's own. A CGI program takes the field
// Proxy for the variable HTTP_PROXY, and so for its own proxy.
func (v variable) isHop() bool {
	switch v {
	case "Connection", "Keep-Alive", "Proxy", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Alt-Svc":
		return true
	}
	return v.begins("Proxy-", "X-Exeat-")
}

// isFraming reports whether a field says where the message goes or where it
// ends: these are written anew, whatever Connection nominates.
func (v variable) isFraming() bool {
	switch v {
	case "Host", "Content-Length":
		return true
	}
	return false
}

// isForwarded reports whether a field tells an origin of the inside.
func (v variable) isForwarded() bool {
	switch v {
	case "Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "True-Client-Ip":
		return true
	}
	return v.begins("X-Forwarded", "Forwarded-")
}

// isOverride reports whether servers, or what stands before them, take a field
// for the path, the method, the host or the caller of a request.
func (v variable) isOverride() bool {
	switch v {
	case "Base-Url", "X-Base-Url", "Path-Info", "X-Path-Info", "Script-Name", "X-Script-Name", "Request-Uri", "X-Request-Uri", "Request-Url", "X-Request-Url",
		"Unencoded-Url", "X-Waws-Unencoded-Url", "X-Proxy-Url", "X-Reproxy-Url", "X-Url", "X-Uri", "X-Path", "X-Replaced-Path", "X-Invoke-Path", "X-Matched-Path",
		"X-Accel-Redirect", "X-Sendfile", // of answers, and obeyed by some servers in requests
		"X-Real-Path", "X-Backend-Path", "Origin-Path", "X-Wsgi-Path", "Path", "Url",
		"Http-Method", "Request-Method", "X-Method", "X-Request-Method", "X-Verb", "X-Host",
		"X-Cluster-Client-Ip", "X-Originating-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Azure-Clientip", "X-Appengine-User-Ip", "X-Envoy-External-Address",
		"X-Authenticated-User", "X-Webauth-User", "X-User", "X-Verified-User":
		return true
	}
	return strings.HasSuffix(string(v), "-Override") || v.begins(
		"X-Original-", "X-Rewrite-", "X-Override-", "X-Http-", "X-Envoy-Original-", "X-Middleware-", "X-Remote-", "Remote-",
		"Client-Cert", "X-Client-Cert", "Ssl-Client-", "X-Ssl-Client-", "X-Auth-Request-",
		"Wl-Proxy-", "X-Proxyuser-", "X-Forwarder-", "X-Ms-Client-Principal", "X-Goog-Authenticated-User-", "X-Goog-Iap-", "Cf-Access-", "X-Amzn-Oidc-")
}

// isTarget reports whether a field names a second path that the method changes
// (COPY and MOVE, RFC 4918 section 10.3).
func (v variable) isTarget() bool { return v == "Destination" }

// isTrailer reports whether a field may be sent behind a body: one that frames,
// routes or authenticates must be known before (RFC 9110 section 6.5.1).
func isTrailer(name string) bool {
	v := variableOf(name)
	switch v {
	case "", "Authorization", "Set-Cookie", "Cookie", "Content-Encoding", "Content-Type", "Content-Range",
		"Cache-Control", "Expect", "Via", "Www-Authenticate":
		return false
	}
	return !v.isHop() && !v.isFraming() && !v.isForwarded() && !v.isOverride() && !v.isTarget() && head.IsToken(name)
}

func (v variable) begins(prefixes ...string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(string(v), prefix) {
			return true
		}
	}
	return false
}

// keepRequestField reports whether a field of the client's is sent on as it
// came; nominated are those that its Connection lists.
func keepRequestField(ex *Exchange, nominated map[variable]bool, name, value string, cfg *Config) bool {
	methods, paths := ex.Decision.Narrow()
	v := variableOf(name)
	switch {
	case v.isHop(), v.isFraming(), nominated[v]:
		return false
	case v.isForwarded(): // who passes them on trusts whoever wrote them, and that one writes hyphens
		return cfg.PassForwarded && !methods && !paths && strings.EqualFold(string(v), name)
	case v.isOverride():
		return !methods && !paths
	case v.isTarget():
		return !paths
	case v == "Expect":
		return strings.EqualFold(value, "100-continue") && ex.Head.Minor == 1
	}
	return true
}

// strip removes from an answer what belongs to the origin's connection, by
// itself or since it is nominated, and what only the gateway says. The answer was
// received as HTTP/1 with the minor version given, which Via names (RFC 9110
// section 7.6.3).
func strip(h http.Header, nominated map[variable]bool, minor int, cfg *Config) {
	for name := range h {
		if v := variableOf(name); v.isHop() || nominated[v] && !v.isFraming() {
			delete(h, name)
		}
	}
	if !cfg.NoVia {
		h.Add("Via", "1."+strconv.Itoa(minor)+" "+pseudonym)
	}
}
