package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// loginOrigin is an origin that treats all requests of a connection as those of the user who
// has logged in on it. A login needs one request, or two with a challenge between them, as
// with NTLM.
type loginOrigin struct {
	*gateway
	offer string // fields of the 401

	mu    sync.Mutex
	conns []net.Conn // in the order of their first requests
	names map[net.Conn]string
}

func newLoginOrigin(t *testing.T, offer string) *loginOrigin {
	t.Helper()
	o := &loginOrigin{gateway: newGateway(t, options{}), offer: offer, names: make(map[net.Conn]string)}
	o.origin.serve(t, o.answer)
	return o
}

const challenged = "a challenge has gone out"

func (o *loginOrigin) answer(req request) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	number := o.number(req.conn)
	scheme, word, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	switch name := o.names[req.conn]; {
	case scheme == "NTLM" && word == "type-1":
		o.names[req.conn] = challenged
		return unauthorized("WWW-Authenticate: NTLM type-2\r\n", number)
	case scheme == "NTLM" && strings.HasPrefix(word, "type-3-") && name == challenged:
		o.names[req.conn] = strings.TrimPrefix(word, "type-3-")
	case scheme != "" && scheme != "NTLM":
		o.names[req.conn] = word
	}
	if name := o.names[req.conn]; name != "" && name != challenged {
		body := fmt.Sprintf("%s on %d", name, number)
		if protocol := req.Header.Get("Upgrade"); protocol != "" {
			return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\nX-Login: " + body + "\r\n\r\n"
		}
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	return unauthorized(o.offer, number)
}

// number returns the number of a connection, from 1 on.
func (o *loginOrigin) number(conn net.Conn) int {
	for i, c := range o.conns {
		if c == conn {
			return i + 1
		}
	}
	o.conns = append(o.conns, conn)
	return len(o.conns)
}

func unauthorized(fields string, number int) string {
	body := fmt.Sprintf("nobody on %d", number)
	return fmt.Sprintf("HTTP/1.1 401 Unauthorized\r\n%sContent-Length: %d\r\n\r\n%s", fields, len(body), body)
}

// says sends a request, with or without credentials, and checks the body of its answer.
func (o *loginOrigin) says(t *testing.T, c *caller, credentials, want string) answer {
	t.Helper()
	return o.saysAt(t, c, "allowed.example", credentials, want)
}

// saysAt does what says does, for a host and with more fields.
func (o *loginOrigin) saysAt(t *testing.T, c *caller, host, credentials, want string, fields ...string) answer {
	t.Helper()
	if credentials != "" {
		fields = append(fields, "Authorization: "+credentials)
	}
	a := c.ask(t, get("http://"+o.at(host)+"/", fields...))
	if a.body != want {
		t.Errorf("with the credentials %q: answered %s %q, want %q", credentials, a.phrase, a.body, want)
	}
	o.next(t, audit.EventDecision)
	o.next(t, audit.EventTunnelClose)
	return a
}

// TestLoginStaysWithItsClient checks that a connection on which a client has logged in is
// not used for another connection of a client, not even of the same identity.
func TestLoginStaysWithItsClient(t *testing.T) {
	for _, credentials := range []string{"Negotiate alice", "negotiate alice", "Kerberos alice", "X-Corporate alice"} {
		t.Run(credentials, func(t *testing.T) {
			o := newLoginOrigin(t, "")
			alice, other := o.call(t, "builder"), o.call(t, "builder")
			o.says(t, alice, credentials, "alice on 1")
			o.says(t, other, "", "nobody on 2")
			o.says(t, alice, "", "alice on 1")
			o.says(t, other, strings.Replace(credentials, "alice", "bob", 1), "bob on 3") // connection 2 was not logged in and is not used
			o.says(t, other, "", "bob on 3")
			o.says(t, alice, "", "alice on 1")
			third := o.call(t, "builder")
			o.says(t, third, "", "nobody on 2")
		})
	}
	for _, credentials := range []string{"Basic alice", "Bearer alice", "Digest username=alice"} {
		t.Run(credentials, func(t *testing.T) { // the credentials hold for one request, and others may use the connection
			o := newLoginOrigin(t, "")
			first, second := o.call(t, "builder"), o.call(t, "builder")
			_, name, _ := strings.Cut(credentials, " ")
			o.says(t, first, credentials, name+" on 1")
			o.says(t, second, credentials, name+" on 1")
		})
	}
}

// TestAllStepsOfALoginUseOneConnection checks that all steps of a login, from the offer
// on, go over one connection, while another client logs in over another.
func TestAllStepsOfALoginUseOneConnection(t *testing.T) {
	for _, offer := range []string{
		"WWW-Authenticate: NTLM\r\n",
		"WWW-Authenticate: Basic realm=\"a, b\", nTLM , Negotiate\r\n",
		"WWW-Authenticate: Digest realm=a\r\nwww-authenticate: negotiate\r\n",
	} {
		t.Run(offer, func(t *testing.T) {
			o := newLoginOrigin(t, offer)
			alice, bob := o.call(t, "builder"), o.call(t, "builder")
			a := o.says(t, alice, "", "nobody on 1")
			o.says(t, bob, "", "nobody on 2")
			o.says(t, alice, "NTLM type-1", "nobody on 1")
			o.says(t, bob, "NTLM type-3-mallory", "nobody on 2")
			o.says(t, bob, "NTLM type-1", "nobody on 2")
			o.says(t, alice, "NTLM type-3-alice", "alice on 1")
			o.says(t, bob, "NTLM type-3-bob", "bob on 2")
			o.says(t, alice, "", "alice on 1")
			o.says(t, bob, "", "bob on 2")
			if a.header.Get("Proxy-Support") != "Session-Based-Authentication" || a.header.Get("Connection") != "Proxy-Support" {
				t.Errorf("the answer does not say that the client may use the scheme: %v", a.header)
			}
		})
	}
}

// TestOfferOfALoginTiesItsConnectionToTheClient checks that an answer which offers a
// login, by its status or a field, ties its connection to the client.
func TestOfferOfALoginTiesItsConnectionToTheClient(t *testing.T) {
	for answer, want := range map[string]int64{
		"401 Unauthorized\r\nWWW-Authenticate: Negotiate":                                            2,
		"401 Unauthorized\r\nWWW-AUTHENTICATE:basic,NTLM":                                            2,
		"407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nProxy-Authenticate: ntlm": 2,
		"407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate":                         2,
		"200 OK\r\nWWW-Authenticate: Negotiate oYG2":                                                 2,
		"200 OK\r\nConnection: WWW-Authenticate\r\nWWW-Authenticate: Negotiate":                      2,
		"200 OK\r\nPersistent-Auth: true":                                                            2,
		"401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"NTLM\"":                                 1,
		"407 Proxy Authentication Required\r\nProxy-Authenticate: Basic":                             1,
	} {
		t.Run(answer, func(t *testing.T) {
			r := newPlainRig(t, "HTTP/1.1 "+answer+"\r\nContent-Length: 0\r\n\r\n")
			for range 2 {
				c := r.call(t, "builder")
				for range 2 {
					c.ask(t, get(r.url("allowed.example", "/")))
					r.carried(t)
				}
			}
			if n := r.origin.accepted.Load(); n != want {
				t.Errorf("%d connections for two clients, want %d", n, want)
			}
		})
	}
}

// TestLoginEndsWithItsClient checks that a connection which is logged in is closed when
// the client's connection ends and when another state comes into force.
func TestLoginEndsWithItsClient(t *testing.T) {
	for name, end := range map[string]func(*gateway, *caller){
		"the client leaves":   func(_ *gateway, c *caller) { _ = c.Close() },
		"another state comes": func(g *gateway, _ *caller) { g.swap(t, g.policy()); g.proxy.CloseIdle() },
		"the gateway drains":  func(g *gateway, _ *caller) { g.proxy.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			c.send(t, get("http://"+g.at("allowed.example")+"/", "Authorization: Negotiate alice"))
			conn, reader := g.asked(t)
			if _, err := io.WriteString(conn, ok); err != nil {
				t.Fatal(err)
			}
			if a := c.answer(t); a.body != "ok" {
				t.Fatalf("answered %s", a.phrase)
			}
			g.next(t, audit.EventDecision)
			g.next(t, audit.EventTunnelClose)
			end(g, c)
			if _, err := reader.ReadByte(); err != io.EOF {
				t.Errorf("the origin's connection: %v, want its end", err)
			}
		})
	}
}

// TestRequestOnALoggedInConnectionIsNotRepeated checks that a request which went out on a
// connection that is logged in is not sent again on another one, as net/http would do.
func TestRequestOnALoggedInConnectionIsNotRepeated(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("allowed.example")+"/", "Authorization: NTLM type-1"))
	conn, reader := g.asked(t)
	if _, err := io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM type-2\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != 401 {
		t.Fatalf("answered %s", a.phrase)
	}
	c.send(t, get("http://"+g.at("allowed.example")+"/", "Authorization: NTLM type-3"))
	if _, err := http.ReadRequest(reader); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if a := c.answer(t); a.status != 502 || a.reason() != "response-failed" {
		t.Errorf("answered %s", a.phrase)
	}
	if raw, err := io.ReadAll(g.origin.next(t)); err != nil || len(raw) > 0 {
		t.Errorf("another connection got %q, %v", raw, err)
	}
	for range 2 {
		g.next(t, audit.EventDecision)
		g.next(t, audit.EventTunnelClose)
	}
}

// TestHTTP10HasNoLogins checks that HTTP/1.0 has no logins, because the connection ends
// with the answer.
func TestHTTP10HasNoLogins(t *testing.T) {
	r := newPlainRig(t, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n")
	a := r.call(t, "builder").ask(t, "GET "+r.url("allowed.example", "/")+" HTTP/1.0\r\n\r\n")
	if a.header.Get("Proxy-Support") != "" || !a.close {
		t.Errorf("answered %v", a.header)
	}
	r.carried(t)
}

// TestUpgradeUsesTheLoggedInConnection checks that a request for an upgrade uses the
// connection that is logged in, and that such a request may also log it in.
func TestUpgradeUsesTheLoggedInConnection(t *testing.T) {
	upgrade := upgrades("websocket")
	for name, asks := range map[string][3][]string{ // fields of each step of the login
		"after a login":          {nil, nil, nil},
		"after a part of it":     {nil, nil, upgrade},
		"as the first step":      {upgrade, nil, nil},
		"as every step of it":    {upgrade, upgrade, upgrade},
		"as the step in between": {nil, upgrade, nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := newLoginOrigin(t, "WWW-Authenticate: NTLM\r\n")
			c := o.call(t, "builder")
			for i, credentials := range []string{"", "NTLM type-1"} {
				a := o.saysAt(t, c, "ws.example", credentials, "nobody on 1", asks[i]...)
				if a.status != 401 || a.header.Get("Proxy-Support") != "Session-Based-Authentication" {
					t.Errorf("answered %s %v", a.phrase, a.header)
				}
			}
			credentials := "NTLM type-3-alice"
			if asks[2] == nil {
				o.saysAt(t, c, "ws.example", credentials, "alice on 1")
				credentials = ""
			}
			fields := upgrade
			if credentials != "" {
				fields = append(fields, "Authorization: "+credentials)
			}
			if a := c.ask(t, get("http://"+o.at("ws.example")+"/", fields...)); a.status != 101 || a.header.Get("X-Login") != "alice on 1" {
				t.Errorf("the upgrade is answered %s %v", a.phrase, a.header)
			}
			o.next(t, audit.EventDecision)
			_ = c.Close()
			o.next(t, audit.EventTunnelClose)
			o.saysAt(t, o.call(t, "builder"), "ws.example", "", "nobody on 2") // a connection that has become a tunnel is not used
		})
	}
}

// TestUpgradeSharesNoConnection checks that the connection of a request for an upgrade is
// not shared, even if the origin has not agreed.
func TestUpgradeSharesNoConnection(t *testing.T) {
	o := newLoginOrigin(t, "")
	c := o.call(t, "builder")
	o.saysAt(t, c, "ws.example", "", "nobody on 1")
	o.saysAt(t, c, "ws.example", "", "nobody on 2", upgrades("websocket")...)
	o.saysAt(t, c, "ws.example", "", "nobody on 3", upgrades("websocket")...)
	o.saysAt(t, c, "ws.example", "", "nobody on 1")
	o.saysAt(t, c, "ws.example", "NTLM type-1", "nobody on 4", upgrades("websocket")...)
	o.saysAt(t, c, "ws.example", "NTLM type-3-alice", "alice on 4")
	o.saysAt(t, o.call(t, "builder"), "ws.example", "", "nobody on 1")
}

// TestOriginThatSwitchesEarlyGetsTheWholeRequestFirst checks that an origin which agrees
// before it has the whole request gets the rest of it before the bytes of the tunnel.
func TestOriginThatSwitchesEarlyGetsTheWholeRequestFirst(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	long := strings.Repeat("x", 10<<10)
	c.send(t, get("http://"+g.at("ws.example")+"/", append(upgrades("websocket"), "X-Long: "+long)...))
	conn := g.origin.next(t)
	reader := bufio.NewReader(conn)
	if _, err := reader.Peek(1); err != nil {
		t.Fatal(err)
	}
	agree(t, c, conn)
	if req, err := http.ReadRequest(reader); err != nil || req.Header.Get("X-Long") != long {
		t.Fatalf("the origin got %v, %v", req, err)
	}
	echo(t, c, conn, reader)
	_ = conn.Close()
	c.gone(t)
	g.next(t, audit.EventDecision)
	g.next(t, audit.EventTunnelClose)
}
