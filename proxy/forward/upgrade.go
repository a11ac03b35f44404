package forward

import (
	"slices"
	"strings"

	"github.com/exeat-dev/exeat/proxy/head"
)

// Protocols returns those of the field Upgrade that may be asked of an origin,
// as that field lists them, and "" if there is none. Demanded reports whether
// the client can use no answer but the upgrade.
//
// Another form of HTTP is left out: under it, requests would go out that no
// rule has decided. What is no protocol (RFC 9110 section 7.8) is left out, too.
func Protocols(h *head.Head) (list string, demanded bool) {
	var all []string
	for v := range h.Values("Upgrade") {
		for protocol := range strings.SplitSeq(v, ",") {
			protocol = strings.Trim(protocol, " \t")
			name, version, versioned := strings.Cut(protocol, "/")
			if name == "" || !token(name) || versioned && (version == "" || !token(version)) || isHTTP(name) {
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

// asksFor reports whether a list of protocols has those to which an origin
// switches: one, or several in layers (RFC 9110 section 7.8).
func asksFor(list, protocols string) bool {
	asked := strings.Split(strings.ToLower(list), ", ")
	for protocol := range strings.SplitSeq(strings.ToLower(protocols), ",") {
		if !slices.Contains(asked, strings.Trim(protocol, " \t")) {
			return false
		}
	}
	return true
}
