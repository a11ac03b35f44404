package forward

import (
	"net/http"
	"net/netip"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/head"
)

// TestSchemesThatLogAConnectionIn checks that a scheme is found in any case, in any line
// of the field and at any place of a list.
func TestSchemesThatLogAConnectionIn(t *testing.T) {
	for value, want := range map[string]bool{
		"Negotiate YIIabc==":          true,
		"negotiate":                   true,
		"NTLM TlRMTVNTUAAB":           true,
		"nTLm\tTlRMTVNTUAAB":          true,
		"Kerberos YII":                true,
		"Nego2 YII":                   true,
		"Basic dTpw, NTLM TlRM":       true,
		"Basic dTpw,Negotiate":        true,
		"Digest a=\"b, NTLM c\"":      true, // a false match, which only costs a connection
		"X-Corporate abc":             true, // unknown schemes count as logging in
		"a-key-without-a-scheme":      true,
		"":                            true,
		"Basic dTpw":                  false,
		"bearer abc":                  false,
		"Digest username=\"NTLM\"":    false,
		"AWS4-HMAC-SHA256 Credential": false,
		"token abc":                   false,
	} {
		h := &head.Head{Fields: []head.Field{{Name: "X", Value: "NTLM"}, {Name: "AUTHORIZATION", Value: value}}}
		if got := mayLogIn(h); got != want {
			t.Errorf("a request with the credentials %q ties its connection: %v, want %v", value, got, want)
		}
	}
	two := &head.Head{Fields: []head.Field{{Name: "Authorization", Value: "Basic x"}, {Name: "Authorization", Value: "NTLM x"}}}
	if !mayLogIn(two) {
		t.Error("a second line of credentials is ignored")
	}
	for _, row := range []struct {
		name, value string
		want        bool
	}{
		{"Www-Authenticate", "Negotiate", true},
		{"Www-Authenticate", "NTLM", true},
		{"Proxy-Authenticate", "ntlm TlRM", true},
		{"Proxy-Authenticate", "Basic realm=\"a\", NEGOTIATE", true},
		{"Www-Authenticate", "Digest realm=\"a\", qop=\"auth,auth-int\", Basic realm=b,negotiate", true},
		{"Www-Authenticate", "Basic realm=\"NTLM\"", false},
		{"Www-Authenticate", "Bearer, X-Corporate", false},
		{"Authentication-Info", "Negotiate", false},
	} {
		if got := offersLogin(http.Header{row.name: {"Basic realm=x", row.value}}); got != row.want {
			t.Errorf("%s: %s offers to log the connection in: %v, want %v", row.name, row.value, got, row.want)
		}
	}
}

// login takes a lane for a request with credentials, and gives it back with a connection
// to addr.
func (p *pools) login(logins *Logins, d *allowlist.Decision, addr string) *lane {
	l := p.acquire(&Exchange{Decision: *d, Logins: logins, Head: &head.Head{Fields: []head.Field{{Name: "Authorization", Value: "NTLM x"}}}})
	l = used(l)
	l.conn.dialed = dial.Result{Conn: l.conn.Conn, Addr: netip.MustParseAddrPort(addr)}
	p.release(l, logins, true)
	return l
}

// TestLaneOfALoginIsUsedByItsOwnerOnly checks that lanes of Logins are used by their owner
// only, and are closed with their owner, when another state comes, and when there are too
// many.
func TestLaneOfALoginIsUsedByItsOwnerOnly(t *testing.T) {
	var p pools
	var mine, others Logins
	d := compiledDecision(t)
	shared := used(p.takeFor(d))
	p.release(shared, nil, true)
	own := p.login(&mine, d, "93.184.216.34:443")
	if own == shared {
		t.Error("credentials went out on a connection that another client had used")
	}
	take := func(l *Logins, d *allowlist.Decision) *lane {
		return p.acquire(&Exchange{Decision: *d, Logins: l, Head: new(head.Head)})
	}
	if take(&others, d) != shared || take(nil, d) == own {
		t.Error("another client uses the connection of the owner")
	}
	if take(&mine, d) != own || take(&mine, d) == own {
		t.Error("the owner does not get its connection, or gets it twice")
	}
	p.release(own, &mine, true)
	other := *d
	other.ID = decisionFor("b").ID
	elsewhere := *d
	elsewhere.Dest.Port = 81
	if take(&mine, &other) == own || take(&mine, &elsewhere) == own {
		t.Error("the connection is used for another identity or destination")
	}
	p.closeIdle()
	if len(mine.lanes) != 0 || len(p.logins) != 0 || take(&mine, d) == own {
		t.Error("the connection is kept when another state comes")
	}

	var all []*lane
	for i := range maxLogins + 1 {
		at := *d
		at.Dest.Port = uint16(1000 + i)
		all = append(all, p.login(&mine, &at, "93.184.216.34:443"))
	}
	if len(mine.lanes) != maxLogins || mine.lanes[0] != all[1] {
		t.Errorf("%d connections belong to one client", len(mine.lanes))
	}
	mine.Close()
	if len(mine.lanes) != 0 || len(p.logins) != 0 {
		t.Error("connections are kept after the owner's connection has ended")
	}
}

// TestLaneToAForbiddenAddressIsNotUsed checks that a request does not use a lane that
// leads to an address which the request's decision does not allow.
func TestLaneToAForbiddenAddressIsNotUsed(t *testing.T) {
	var p pools
	var mine Logins
	d := compiledDecision(t) // allows public addresses only
	own := p.login(&mine, d, "10.0.0.1:443")
	if p.acquire(&Exchange{Decision: *d, Logins: &mine, Head: new(head.Head)}) == own {
		t.Error("a request goes to an address that its decision does not let through")
	}
	_ = own.conn.Close() // the lane will dial another connection by the decision of the request
	if p.acquire(&Exchange{Decision: *d, Logins: &mine, Head: new(head.Head)}) != own {
		t.Error("the lane is lost with its connection")
	}
}
