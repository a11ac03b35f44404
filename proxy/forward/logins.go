package forward

import (
	"net/http"
	"slices"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// maxLogins is the number of lanes that are kept for one connection of a client. If there
// are more, the one that was given back first is closed.
const maxLogins = 8

// proxySupport is the field that tells a client that its connection always uses the same
// connection to the origin. Without it, a client must not use a scheme that logs a
// connection in through a proxy.
const proxySupport = "Proxy-Support"

// proxyStatus is the field in which a proxy says what it has to say about an answer (RFC
// 9209). It is a list; those of origins are removed.
const proxyStatus = "Proxy-Status"

// Logins holds the connections to origins that belong to one connection of a client,
// because the client has logged in on them or may do so. With some schemes, an origin
// treats every later request of a connection as one of the user who has logged in there
// (RFC 4559 section 6). The client's connection uses these connections for all its
// requests to these origins, and no other client uses them. The zero value has none.
type Logins struct {
	pools *pools  // nil before the first lane was given
	lanes []*lane // guarded by pools.mu
}

// Close closes the connections. Call it when the connection of the client has ended.
func (l *Logins) Close() {
	if l.pools == nil {
		return
	}
	l.pools.mu.Lock()
	defer l.pools.mu.Unlock()
	l.pools.closeLogins(l)
}

// logins returns the Logins of the exchange. It returns nil for a Stream, because requests of
// several users may share the connection of the client.
func (ex *Exchange) logins() *Logins {
	if _, ok := ex.Client.(Stream); ok {
		return nil
	}
	return ex.Logins
}

// take removes and returns the lane to the origin of a decision. It returns nil if there is
// none, or if the decision does not allow the address that its connection leads to. The
// caller holds pools.mu.
func (l *Logins) take(d *allowlist.Decision) *lane {
	if l == nil {
		return nil
	}
	for i, lane := range l.lanes {
		if lane.key.holder == d.Holder() && lane.key.dest == d.Dest && (lane.conn.isClosed() || allowsUpstream(d, lane.conn)) {
			l.lanes = slices.Delete(l.lanes, i, i+1)
			return lane
		}
	}
	return nil
}

// allowsUpstream reports whether a decision allows the address of a connection and the
// way by which the look-up led there.
func allowsUpstream(d *allowlist.Decision, u *upstream) bool {
	return d.CheckAddr(u.dialed.Addr) == nil && d.CheckWay(u.dialed.Way) == allowlist.NoReason
}

// addLogin adds a lane to the logins of the client's connection that it belongs to. The
// caller holds mu.
func (p *pools) addLogin(l *Logins, own *lane) {
	if l == nil {
		own.close()
		return
	}
	if len(l.lanes) == maxLogins {
		l.lanes[0].close()
		l.lanes = slices.Delete(l.lanes, 0, 1)
	}
	l.pools, l.lanes = p, append(l.lanes, own)
	if p.logins == nil {
		p.logins = make(map[*Logins]struct{})
	}
	p.logins[l] = struct{}{}
}

// closeLogins closes the lanes that belong to one connection of a client. The caller
// holds mu.
func (p *pools) closeLogins(l *Logins) {
	closeAll(l.lanes)
	l.lanes = nil
	delete(p.logins, l)
}

// mayLogIn reports whether a request has credentials that may hold for later requests
// of its connection too: those of a scheme that logs a connection in, or of an unknown one.
func mayLogIn(h *head.Head) bool {
	for v := range h.Values("Authorization") {
		if !isPerRequest(schemeOf(v)) || listsLogin(v) {
			return true
		}
	}
	return false
}

// offersLogin reports whether an answer offers a scheme that logs a connection in, or
// continues a login.
func offersLogin(h http.Header) bool {
	return slices.ContainsFunc(h["Www-Authenticate"], listsLogin) || slices.ContainsFunc(h["Proxy-Authenticate"], listsLogin)
}

// isLoggedIn reports whether an answer has the field by which some origins say that its
// connection is logged in.
func isLoggedIn(h http.Header) bool { return len(h["Persistent-Auth"]) > 0 }

// listsLogin reports whether a list of challenges or credentials contains one of a scheme
// that logs a connection in. It also splits at commas in quotes. A false match there only
// costs a connection.
func listsLogin(list string) bool {
	for item := range strings.SplitSeq(list, ",") {
		switch strings.ToLower(schemeOf(item)) {
		case "negotiate", "ntlm", "kerberos", "nego2":
			return true
		}
	}
	return false
}

// schemeOf returns the first word of a challenge or of credentials, which is the scheme.
func schemeOf(s string) string {
	s = strings.TrimLeft(s, " \t")
	if end := strings.IndexAny(s, " \t"); end >= 0 {
		s = s[:end]
	}
	return s
}

// isPerRequest reports whether credentials of a scheme hold only for the request that has
// them. These are the schemes that IANA has registered, except Negotiate and one that
// needs TLS, and two more that many services use.
func isPerRequest(scheme string) bool {
	switch strings.ToLower(scheme) {
	case "basic", "bearer", "digest", "dpop", "gnap", "hoba", "mutual", "oauth", "privatetoken", "scram-sha-1", "scram-sha-256", "vapid",
		"aws4-hmac-sha256", "token":
		return true
	}
	return false
}
