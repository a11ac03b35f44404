package allowlist

import (
	"fmt"
	"strings"
)

// defaultHTTPPort is the port of an http URL without a port (RFC 9110 section 4.2.1), and
// of a ws URL without one (RFC 6455 section 3).
const defaultHTTPPort = 80

// URL is the target of a plain request. Path and Query have the bytes that the caller
// sent.
type URL struct {
	Dest  Destination
	Path  string // raw; begins with /, or is Asterisk
	Query string // raw, with the ? before it; "" if there is none
	// NoPath means that the URL has neither a path nor a query.
	NoPath bool
	// WebSocket means that the scheme is ws. It means the same as http, for a request
	// that asks for an upgrade to a WebSocket.
	WebSocket bool
}

// Asterisk is the path of a request about a server and not about one of its paths (RFC
// 9112 section 3.2.4): an OPTIONS whose URL has NoPath. No pattern of a rule covers it.
// ParseURL, which does not know the method, never returns it.
const Asterisk = "*"

// Errors of ParseURL. Each wraps ErrTarget.
var (
	errAbsolute  = fmt.Errorf("%w: want http://HOST/", ErrTarget)
	errScheme    = fmt.Errorf("%w: the scheme is not http", ErrTarget)
	errUserinfo  = fmt.Errorf("%w: it has userinfo", ErrTarget)
	errFragment  = fmt.Errorf("%w: it has a fragment", ErrTarget)
	errBackslash = fmt.Errorf("%w: it has a backslash before the query", ErrTarget)
	errPathASCII = fmt.Errorf("%w: the path has a non-ASCII byte", ErrTarget)
	errControl   = fmt.Errorf("%w: it has a space or a control byte", ErrTarget)
)

// ParseURL parses the target of a plain request in absolute form (RFC 9112 section
// 3.2.2), the form that clients send to a proxy: the scheme http or ws, an authority
// without userinfo, and a path. It decodes, folds and completes only the scheme, the
// host, the port, which is 80 if it is missing or empty (RFC 3986 section 3.2.3), and an
// empty path, which becomes /. No decision depends on the query, which may contain any
// byte but spaces and controls. The error wraps ErrHost, ErrTarget or ErrPort.
func ParseURL(s string) (URL, error) {
	scheme, rest, ok := strings.Cut(s, ":")
	webSocket := strings.EqualFold(scheme, "ws")
	switch {
	case !ok || scheme == "" || !isAll(scheme, isSchemeByte):
		return URL{}, errAbsolute
	case !webSocket && !strings.EqualFold(scheme, "http"):
		return URL{}, errScheme
	case !strings.HasPrefix(rest, "//"):
		return URL{}, errAbsolute
	}
	rest = rest[len("//"):]
	end := strings.IndexAny(rest, "/?#\\")
	if end < 0 {
		end = len(rest)
	}
	dest, err := parseAuthority(rest[:end])
	if err != nil {
		return URL{}, err
	}
	rest = rest[end:]
	path, query, found := strings.Cut(rest, "?")
	if found {
		query = "?" + query
	}
	if err := checkURL(path, query); err != nil {
		return URL{}, err
	}
	noPath := rest == ""
	if path == "" {
		path = "/"
	}
	return URL{Dest: dest, Path: path, Query: query, NoPath: noPath, WebSocket: webSocket}, nil
}

// Glimpse returns the legible part of the destination in a refused target of a CONNECT or
// a plain request: the host, and the port if it is well formed, or 80 for an http or ws
// URL without a port. It is for records only, and no decision may use it.
func Glimpse(target string, connect bool) Destination {
	scheme, rest, absolute := strings.Cut(target, "://")
	if connect {
		rest = target
	} else if !absolute {
		return Destination{}
	}
	if end := strings.IndexAny(rest, "/?#\\"); end >= 0 {
		rest = rest[:end]
	}
	if strings.Contains(rest, "@") { // the part before it is not the host and may be a secret
		return Destination{}
	}
	dest, err := ParseDestination(rest)
	if err != nil && !connect && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "ws")) {
		dest, err = parseAuthority(rest)
	}
	if err == nil {
		return dest
	}
	if colon := strings.LastIndexByte(rest, ':'); colon >= 0 {
		rest = rest[:colon]
	}
	if strings.Contains(rest, ":") {
		return Destination{}
	}
	host, _ := ParseHost(rest) // the zero value if there is an error
	return Destination{Host: host}
}

// isSchemeByte reports whether c may be part of a scheme (RFC 3986 section 3.1).
func isSchemeByte(c byte) bool {
	return isNameByte(c) && c != '_' || c == '+'
}

// checkURL checks the path and the query of a URL.
func checkURL(path, query string) error {
	switch {
	case !isAll(path+query, func(c byte) bool { return c > ' ' && c != 0x7f }):
		return errControl
	case strings.Contains(path, "#"):
		return errFragment
	case strings.Contains(path, `\`):
		return errBackslash
	case !isASCII(path):
		return errPathASCII
	case !escaped(path):
		return errPathEscape
	}
	return nil
}

// parseAuthority parses a destination as ParseDestination does, with port 80 if the port
// is missing or empty.
func parseAuthority(s string) (Destination, error) {
	if strings.LastIndexByte(s, ':') <= strings.LastIndexByte(s, ']') {
		s += ":"
	}
	host, text, err := splitTarget(s)
	if err != nil {
		return Destination{}, err
	}
	port := uint16(defaultHTTPPort)
	if text != "" {
		port, err = parsePort(text)
	}
	if err != nil {
		return Destination{}, err
	}
	return Destination{Host: host, Port: port}, nil
}

// escaped reports whether every percent sign begins an escape (RFC 3986
// section 2.1).
func escaped(s string) bool {
	for i := range len(s) {
		if s[i] == '%' && (i+2 >= len(s) || !isHexDigit(s[i+1]) || !isHexDigit(s[i+2])) {
			return false
		}
	}
	return true
}
