package forward

import (
	"net/http"
	"slices"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// maxLogins bounds the origins with which one connection of a client has
// connections of its own. The one that it used first goes first.
const maxLogins = 8

// proxySupport tells a client that its connection keeps to one of the origin's:
// without it, it must not use such a scheme through a proxy.
const proxySupport = "Proxy-Support"

// Logins are the connections to origins that belong to one connection of a
// client, since it has logged in on them or may do so: some schemes make an
// origin take every later request of a connection for the one who has logged in
// there (RFC 4559 section 6). The client's connection uses them for all its
// requests to these origins, and nobody else does. The zero value has none.
type Logins struct {
	pools *pools  // nil before the first
	lanes []*lane // guarded by pools.mu
}

// Close closes them. Call it when the connection of the client has ended.
func (l *Logins) Close() {
	if l.pools == nil {
		return
	}
	l.pools.mu.Lock()
	defer l.pools.mu.Unlock()
	l.pools.closeOf(l)
}

// take returns the lane to the origin of a decision, and nil if there is none or
// if the decision does not let through where it leads to.
func (l *Logins) take(d *allowlist.Decision) *lane {
	if l == nil {
		return nil
	}
	for i, lane := range l.lanes {
		if lane.key.holder == d.Holder() && lane.key.dest == d.Dest && (lane.conn.isClosed() || leads(d, lane.conn)) {
			l.lanes = slices.Delete(l.lanes, i, i+1)
			return lane
		}
	}
	return nil
}

// leads reports whether a decision lets through where a connection leads to, and how
// the look-up led there.
func leads(d *allowlist.Decision, u *upstream) bool {
	return d.CheckAddr(u.dialed.Addr) == nil && d.CheckWay(u.dialed.Way) == allowlist.NoReason
}

// giveTo gives a lane to the connection of a client that it belongs to. The
// lock is held.
func (p *pools) giveTo(l *Logins, own *lane) {
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

// closeOf closes what belongs to one connection of a client. The lock is held.
func (p *pools) closeOf(l *Logins) {
	closeAll(l.lanes)
	l.lanes = nil
	delete(p.logins, l)
}

// tiesRequest reports whether a request has credentials that may be for more
// than itself: of a scheme that logs a connection in, or of an unknown one.
func tiesRequest(h *head.Head) bool {
	for v := range h.Values("Authorization") {
		if !isOfMessage(schemeOf(v)) || listsLogin(v) {
			return true
		}
	}
	return false
}

// offersLogin reports whether an answer offers a scheme that logs a connection
// in, or goes on with one.
func offersLogin(h http.Header) bool {
	return slices.ContainsFunc(h["Www-Authenticate"], listsLogin) || slices.ContainsFunc(h["Proxy-Authenticate"], listsLogin)
}

// isLoggedIn reports whether an answer says that its connection is logged in, as
// some origins do.
func isLoggedIn(h http.Header) bool { return len(h["Persistent-Auth"]) > 0 }

// listsLogin reports whether a list of challenges, or credentials, has one of a
// scheme that logs a connection in. Commas within quotes divide, too: what looks
// like such a scheme there costs a connection and nothing else.
func listsLogin(list string) bool {
	for item := range strings.SplitSeq(list, ",") {
		switch strings.ToLower(schemeOf(item)) {
		case "negotiate", "ntlm", "kerberos", "nego2":
			return true
		}
	}
	return false
}

// schemeOf returns the word that challenges and credentials begin with.
func schemeOf(s string) string {
	s = strings.TrimLeft(s, " \t")
	if end := strings.IndexAny(s, " \t"); end >= 0 {
		s = s[:end]
	}
	return s
}

// isOfMessage reports whether credentials of a scheme are for the one request
// that has them. These are the schemes that IANA has registered, but for
// Negotiate and for one that needs TLS, and two that many services use.
func isOfMessage(scheme string) bool {
	switch strings.ToLower(scheme) {
	case "basic", "bearer", "digest", "dpop", "gnap", "hoba", "mutual", "oauth", "privatetoken", "scram-sha-1", "scram-sha-256", "vapid",
		"aws4-hmac-sha256", "token":
		return true
	}
	return false
}
