package allowlist

import (
	"strings"
)

// defaultHTTPPort is the port of an http URL that names none (RFC 9110
// section 4.2.1).
const defaultHTTPPort = 80

// URL is the target of a plain request: where it goes, and what is asked for
// there, byte for byte as it came.
type URL struct {
	Dest  Destination
	Path  string // raw; begins with /, or is Asterisk
	Query string // raw, with the ? before it; "" if there is none
	// NoPath means that neither a path nor a query was written.
	NoPath bool
}

// Asterisk is the path of a request for a server itself and none of its paths
// (RFC 9112 section 3.2.4): an OPTIONS whose URL has NoPath. No pattern of a
// rule covers it. ParseURL, which knows no method, never returns it.
const Asterisk = "*"

// ParseURL reads the target of a plain request in absolute form (RFC 9112
// section 3.2.2), which is the only form that a proxy is asked in: http://, an
// authority without userinfo, and a path. Nothing of it is decoded, folded or
// completed but the host, the port, which is 80 if it is missing, and an empty
// path, which is /. The error wraps ErrHost, ErrTarget or ErrPort.
func ParseURL(s string) (URL, error) {
	rest, ok := strings.CutPrefix(s, "http://")
	if !ok {
		return URL{}, ErrTarget
	}
	end := strings.IndexAny(rest, "/?#\\")
	if end < 0 {
		end = len(rest)
	}
	authority, rest := rest[:end], rest[end:]
	if strings.ContainsAny(rest, "#\\") || !isAll(rest, func(c byte) bool { return c > ' ' && c < 0x7f }) {
		return URL{}, ErrTarget
	}
	dest, err := parseAuthority(authority)
	if err != nil {
		return URL{}, err
	}
	path, query, found := strings.Cut(rest, "?")
	if found {
		query = "?" + query
	}
	noPath := rest == ""
	if path == "" {
		path = "/"
	}
	if !escaped(path) || !escaped(query) {
		return URL{}, ErrTarget
	}
	return URL{Dest: dest, Path: path, Query: query, NoPath: noPath}, nil
}

// parseAuthority is ParseDestination with a default for the port.
func parseAuthority(s string) (Destination, error) {
	if strings.Contains(s, "@") {
		return Destination{}, ErrTarget
	}
	bare := strings.LastIndexByte(s, ':') <= strings.LastIndexByte(s, ']')
	if !bare {
		return ParseDestination(s)
	}
	host, _, err := splitTarget(s + ":")
	if err != nil {
		return Destination{}, err
	}
	return Destination{Host: host, Port: defaultHTTPPort}, nil
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
