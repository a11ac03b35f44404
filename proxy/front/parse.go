package front

import (
	"errors"
	"net/http"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// parse builds the canonical request from a head.
func (c *h1) parse(h *head.Head) *Request {
	r := &Request{Method: h.Method, Target: h.Target, Head: h, Client: c.conn.Conn, Reader: c.reader}
	switch {
	case IsConnect(h.Method):
		r.Reason = r.parseConnect()
	case c.conn.IsQueryAuthority != nil && isQueryTarget(h.Target):
		r.Reason = c.parseQuery(r)
	default:
		r.Reason = r.parsePlain()
	}
	return r
}

func (r *Request) parseConnect() allowlist.Reason {
	h := r.Head
	if h.Method != http.MethodConnect {
		r.Cause = "methods are case-sensitive: it is CONNECT"
		return allowlist.ConnectOnly
	}
	dest, err := allowlist.ParseDestination(h.Target)
	if err != nil {
		return r.malformed(err)
	}
	r.Asked.Dest = dest
	if r.Cause = otherAuthority(h, h.Target, dest); r.Cause != "" {
		return allowlist.AuthorityMismatch
	}
	for range h.Values("Transfer-Encoding") { // what follows the head is tunnel data and has no framing
		r.Cause = "Transfer-Encoding stands in a CONNECT, which has no body"
		return allowlist.MalformedHeader
	}
	return allowlist.NoReason
}

// malformed returns the reason for a target that could not be parsed, and sets Detail.
func (r *Request) malformed(err error) allowlist.Reason {
	r.Detail = err.Error()
	if errors.Is(err, allowlist.ErrPort) {
		return allowlist.MalformedPort
	}
	return allowlist.MalformedTarget
}

// otherAuthority says how the Host field differs from the authority of the target, which
// has a port. It returns "" if the field has the same host, and the same port or none. An
// address must be spelled as it is in the target.
func otherAuthority(h *head.Head, authority string, dest allowlist.Destination) string {
	text := h.Host
	switch withoutPort := authority[:strings.LastIndexByte(authority, ':')]; {
	case !h.HasHost, dest.Host.IsAddr() && (text == authority || text == withoutPort):
		return ""
	case dest.Host.IsAddr():
		return "Host has not the address of the target, in the same spelling"
	}
	got := allowlist.Destination{Port: dest.Port}
	var err error
	if strings.Contains(text, ":") {
		got, err = allowlist.ParseDestination(text)
	} else {
		got.Host, err = allowlist.ParseHost(text)
	}
	switch {
	case err != nil:
		return "Host is malformed"
	case got.Host != dest.Host:
		return "Host has another host than the target"
	case got.Port != dest.Port:
		return "Host has another port than the target"
	}
	return ""
}

// parsePlain parses a plain request: its target, its framing, Max-Forwards and Upgrade.
// It ignores the Host field, because the target names the origin (RFC 9112 section
// 3.2.2).
func (r *Request) parsePlain() allowlist.Reason {
	url, err := allowlist.ParseURL(r.Target)
	if err != nil {
		return r.malformed(err)
	}
	if url.NoPath && r.Method == http.MethodOptions {
		url.Path = allowlist.Asterisk
	}
	r.URL = url
	r.Asked = allowlist.Request{Dest: url.Dest, Method: r.Method, Path: url.Path}
	if r.Body, err = r.Head.Body(); err != nil {
		r.Detail = err.Error()
		return allowlist.MalformedHeader
	}
	forwards, bounded, err := r.Head.MaxForwards()
	if err != nil {
		r.Detail = err.Error()
		return allowlist.MalformedHeader
	}
	r.StopsHere = bounded && forwards == 0
	if r.Asked.Upgrade = r.wantsUpgrade(); url.WebSocket && r.Asked.Upgrade != allowlist.MustUpgrade {
		r.Detail = "malformed target: a ws URL asks for an upgrade, which neither HTTP/1.0 nor a request with a body has"
		return allowlist.MalformedTarget
	}
	return allowlist.NoReason
}

// wantsUpgrade sets Protocols, and returns whether the request may or must become a tunnel
// (RFC 9110 section 7.8). Upgrade is ignored, and will not be forwarded, in a request of
// HTTP/1.0 and in one with a body; a proxy may do so. HTTP/2 has no upgrades (RFC 9113
// section 8.6). A ws URL requests an upgrade without the field.
func (r *Request) wantsUpgrade() allowlist.Upgrade {
	if r.Head.Major != 1 || r.Head.IsHTTP10() || r.Body != 0 || !r.URL.WebSocket && !r.Head.Lists("Connection", "upgrade") {
		return allowlist.NoUpgrade
	}
	protocols, demanded := upgrades(r.Head)
	if r.URL.WebSocket && !demanded {
		protocols, demanded = "websocket", true
	}
	r.Protocols = protocols
	switch {
	case demanded:
		return allowlist.MustUpgrade
	case protocols != "":
		return allowlist.MayUpgrade
	}
	return allowlist.NoUpgrade
}

// upgrades returns the protocols of the field Upgrade that may be requested from an
// origin, in the form of that field, or "" if there is none. demanded reports whether the
// client can use no answer but the upgrade.
//
// Other versions of HTTP are left out, because requests would go out over them that no
// rule has decided. So is whatever is not a protocol name (RFC 9110 section 7.8).
func upgrades(h *head.Head) (list string, demanded bool) {
	var all []string
	for v := range h.Values("Upgrade") {
		for protocol := range strings.SplitSeq(v, ",") {
			protocol = strings.Trim(protocol, " \t")
			name, version, versioned := strings.Cut(protocol, "/")
			if !head.IsToken(name) || versioned && !head.IsToken(version) || isHTTP(name) {
				continue
			}
			all = append(all, protocol)
			demanded = demanded || strings.EqualFold(name, "websocket") // RFC 6455 section 4.1: any answer but 101 fails
		}
	}
	return strings.Join(all, ", "), demanded
}

// isHTTP reports whether a protocol carries HTTP requests: h2c, whose drafts
// have names such as h2c-16, HTTP itself, and TLS with HTTP in it (RFC 2817).
func isHTTP(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "h2") || name == "http" || name == "tls"
}
