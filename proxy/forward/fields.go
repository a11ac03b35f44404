package forward

import (
	"iter"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/proxy/head"
)

// listed returns the set of field names in comma-separated lists, each converted by key.
// With sets, comparing two lists takes a time that grows with the sum of their lengths and
// not with the product.
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

// nominated returns the fields that the values of Connection list.
func nominated(connection iter.Seq[string]) map[variable]bool { return listed(connection, variableOf) }

// variable is a field name for comparisons: in canonical spelling, with a hyphen for every
// character that is neither a letter nor a digit. Servers that pass fields to a program as
// variables (CGI, RFC 3875 section 4.1.18, and its successors) write HTTP_X_FORWARDED_FOR
// for X-Forwarded-For and for X_Forwarded_For, and some also for X.Forwarded.For.
// Therefore all spellings that become the same variable are treated alike.
type variable string

func variableOf(name string) variable {
	return variable(textproto.CanonicalMIMEHeaderKey(strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, name)))
}

// isHop reports whether a field is never sent on, because it belongs to one connection
// (RFC 9110 section 7.6.1) or to the gateway. The field Proxy becomes the variable
// HTTP_PROXY of a CGI program, which would use its value as a proxy.
func (v variable) isHop() bool {
	switch v {
	case "Connection", "Keep-Alive", "Proxy", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Alt-Svc":
		return true
	}
	return v.hasPrefix("Proxy-", "X-Exeat-")
}

// isFraming reports whether a field says where the message goes or where it ends. The
// gateway writes such fields itself, whatever Connection nominates.
func (v variable) isFraming() bool {
	switch v {
	case "Host", "Content-Length":
		return true
	}
	return false
}

// isForwarded reports whether a field tells an origin about clients or proxies before the
// gateway.
func (v variable) isForwarded() bool {
	switch v {
	case "Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "True-Client-Ip":
		return true
	}
	return v.hasPrefix("X-Forwarded", "Forwarded-")
}

// isOverride reports whether some servers, or proxies before them, use a field in place of
// the path, the method, the host or the caller of a request.
func (v variable) isOverride() bool {
	switch v {
	case "Base-Url", "X-Base-Url", "Path-Info", "X-Path-Info", "Script-Name", "X-Script-Name", "Request-Uri", "X-Request-Uri", "Request-Url", "X-Request-Url",
		"Unencoded-Url", "X-Waws-Unencoded-Url", "X-Proxy-Url", "X-Reproxy-Url", "X-Url", "X-Uri", "X-Path", "X-Replaced-Path", "X-Invoke-Path", "X-Matched-Path",
		"X-Accel-Redirect", "X-Sendfile", // fields of answers that some servers obey in requests
		"X-Real-Path", "X-Backend-Path", "Origin-Path", "X-Wsgi-Path", "Path", "Url",
		"Http-Method", "Request-Method", "X-Method", "X-Request-Method", "X-Verb", "X-Host",
		"X-Cluster-Client-Ip", "X-Originating-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Azure-Clientip", "X-Appengine-User-Ip", "X-Envoy-External-Address",
		"X-Authenticated-User", "X-Webauth-User", "X-User", "X-Verified-User":
		return true
	}
	return strings.HasSuffix(string(v), "-Override") || v.hasPrefix(
		"X-Original-", "X-Rewrite-", "X-Override-", "X-Http-", "X-Envoy-Original-", "X-Middleware-", "X-Remote-", "Remote-",
		"Client-Cert", "X-Client-Cert", "Ssl-Client-", "X-Ssl-Client-", "X-Auth-Request-",
		"Wl-Proxy-", "X-Proxyuser-", "X-Forwarder-", "X-Ms-Client-Principal", "X-Goog-Authenticated-User-", "X-Goog-Iap-", "Cf-Access-", "X-Amzn-Oidc-")
}

// isTarget reports whether a field names a second path on which the method acts (COPY and
// MOVE, RFC 4918 section 10.3).
func (v variable) isTarget() bool { return v == "Destination" }

// isTrailer reports whether a field may be sent behind a body. A field that frames, routes
// or authenticates must come before it (RFC 9110 section 6.5.1).
func isTrailer(name string) bool {
	v := variableOf(name)
	switch v {
	case "", "Authorization", "Set-Cookie", "Cookie", "Content-Encoding", "Content-Type", "Content-Range",
		"Cache-Control", "Expect", "Via", "Www-Authenticate":
		return false
	}
	return !v.isHop() && !v.isFraming() && !v.isForwarded() && !v.isOverride() && !v.isTarget() && head.IsToken(name)
}

func (v variable) hasPrefix(prefixes ...string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(string(v), prefix) {
			return true
		}
	}
	return false
}

// keepRequestField reports whether a field of the client is sent on unchanged. nominated
// holds the fields that the client's Connection lists.
func keepRequestField(ex *Exchange, nominated map[variable]bool, name, value string, cfg *Config) bool {
	methods, paths := ex.Decision.Narrow()
	v := variableOf(name)
	switch {
	case v.isHop(), v.isFraming(), nominated[v]:
		return false
	case v.isForwarded(): // PassForwarded trusts the proxy that wrote the field, which uses hyphens
		return cfg.PassForwarded && !methods && !paths && strings.EqualFold(string(v), name)
	case v.isOverride():
		return !methods && !paths
	case v.isTarget():
		return !paths
	case v == "Expect":
		return strings.EqualFold(value, "100-continue") && !ex.Head.IsHTTP10()
	}
	return true
}

// stripFields removes the fields of an answer that belong to the origin's connection, by
// their names or because they are nominated, those that only the gateway may set, and those
// with a malformed name. It
// adds Via, with the minor version of HTTP/1 that the answer was received in (RFC 9110
// section 7.6.3).
func stripFields(h http.Header, nominated map[variable]bool, minor int, cfg *Config) {
	for name := range h {
		if v := variableOf(name); v.isHop() || nominated[v] && !v.isFraming() || !head.IsToken(name) {
			delete(h, name)
		}
	}
	if !cfg.NoVia {
		h.Add("Via", "1."+strconv.Itoa(minor)+" "+pseudonym)
	}
}
