package allowlist

import (
	"fmt"
	"strings"
)

// defaultHTTPPort is the port of an http URL that names none (RFC 9110
// section 4.2.1), and of a ws URL (RFC 6455 section 3).
const defaultHTTPPort = 80

// URL is the target of a plain request: where it goes, and what is asked for
// there, byte for byte as it came.
type URL struct {
	Dest  Destination
	Path  string // raw; begins with /, or is Asterisk
	Query string // raw, with the ? before it; "" if there is none
	// NoPath means that neither a path nor a query was written.
	NoPath bool
	// WebSocket means that the scheme is ws: the same as http, for a request
	// that asks for an upgrade to a WebSocket.
	WebSocket bool
}

// Asterisk is the path of a request for a server itself and none of its paths
// (RFC 9112 section 3.2.4): an OPTIONS whose URL has NoPath. No pattern of a
// rule covers it. ParseURL, which knows no method, never returns it.
const Asterisk = "*"

// Why a URL is refused. Each wraps ErrTarget.
var (
	errAbsolute  = fmt.Errorf("%w: want http://HOST/", ErrTarget)
	errScheme    = fmt.Errorf("%w: the scheme is not http", ErrTarget)
	errUserinfo  = fmt.Errorf("%w: it has userinfo", ErrTarget)
	errFragment  = fmt.Errorf("%w: it has a fragment", ErrTarget)
	errBackslash = fmt.Errorf("%w: it has a backslash before the query", ErrTarget)
	errPathASCII = fmt.Errorf("%w: the path has a non-ASCII byte", ErrTarget)
	errControl   = fmt.Errorf("%w: it has a space or a control byte", ErrTarget)
)

// ParseURL reads the target of a plain request in absolute form (RFC 9112
// section 3.2.2), which is the only form that a proxy is asked in: http or ws, an
// authority without userinfo, and a path. Nothing of it is decoded, folded or
// completed but the scheme, the host, the port, which is 80 if it is missing or
// empty (RFC 3986 section 3.2.3), and an empty path, which is /. A query is
// nothing that is decided on: it may hold any byte that leaves the request line
// one line. The error wraps ErrHost, ErrTarget or ErrPort.
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

// Glimpse returns what can be read of the destination in a refused target, that of
// a CONNECT or a URL: the host, and the port if it is well formed, or for http and
// ws without one, 80. It is for records only; nothing may be decided by it.
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
	if strings.Contains(rest, "@") { // what stands before it is no host, and may be a secret
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
	host, _ := ParseHost(rest) // an error has the zero value
	return Destination{Host: host}
}

// isSchemeByte is for RFC 3986 section 3.1.
func isSchemeByte(c byte) bool {
	return isNameByte(c) && c != '_' || c == '+'
}

// checkURL looks at what stands behind the authority.
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

// parseAuthority is ParseDestination with a default for the port.
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
