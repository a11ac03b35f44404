package dns_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dns"
)

// sharedClient writes HTTP/1.1 on one connection to the listener for CONNECT and DoH.
type sharedClient struct {
	*tls.Conn

	reader *bufio.Reader
}

func (g *gateway) share(t *testing.T, name string) *sharedClient {
	t.Helper()
	conn := tls.Client(dialTCP(t, g.both), g.tls(t, name, "http/1.1"))
	return &sharedClient{conn, bufio.NewReader(conn)}
}

// send sends the text of a request.
func (c *sharedClient) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// read reads the answer to a request with the given method.
func (c *sharedClient) read(t *testing.T, method string) (resp *http.Response, body []byte) {
	t.Helper()
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %s: %v", method, err)
	}
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp, body
}

// ask sends a request and reads its answer.
func (c *sharedClient) ask(t *testing.T, text string) (resp *http.Response, body []byte) {
	t.Helper()
	c.send(t, text)
	method, _, _ := strings.Cut(text, " ")
	return c.read(t, method)
}

// query asks for a name, and returns the answer as text and whether it is the last one of
// the connection.
func (c *sharedClient) query(t *testing.T, name string) (answer string, last bool) {
	t.Helper()
	resp, body := c.ask(t, getQuery(name))
	return said(t, resp, body), resp.Close
}

// said returns the DNS answer in an answer over HTTP as text.
func said(t *testing.T, resp *http.Response, body []byte) string {
	t.Helper()
	var a mdns.Msg
	if err := a.Unpack(body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %s %q: %v", resp.Status, body, err)
	}
	return say(&a)
}

// gone checks that the connection is closed in order behind its last answer.
func (c *sharedClient) gone(t *testing.T) {
	t.Helper()
	if rest, err := io.ReadAll(c.reader); err != nil || len(rest) > 0 {
		t.Errorf("behind the last answer: %q, %v", rest, err)
	}
}

// sharedHead returns the head of a request to the listener for CONNECT and DoH.
func sharedHead(method, target, fields string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: gateway.example\r\n" + fields + "\r\n"
}

func getQuery(name string) string {
	return sharedHead("GET", dns.DoHPath+"?dns="+base64.RawURLEncoding.EncodeToString(must(question(name).Pack())), "")
}

func postQuery(msg []byte) string {
	return sharedHead("POST", dns.DoHPath, fmt.Sprintf("Content-Type: application/dns-message\r\nContent-Length: %d\r\n", len(msg))) + string(msg)
}

const (
	allowedAnswer = "NOERROR, A 93.184.216.34"
	deniedAnswer  = "NXDOMAIN, soa of example., ede 15 not-on-allowlist"
)

// TestSharedConnectionCarriesQueriesAndRequests sends queries, plain requests and a CONNECT
// on one connection, and checks that each has its answer and its record.
func TestSharedConnectionCarriesQueriesAndRequests(t *testing.T) {
	g := newGateway(t, options{})
	c := g.share(t, "sidecar")
	query := func(raw, want, record string) {
		t.Helper()
		resp, body := c.ask(t, raw)
		if got := said(t, resp, body); got != want || resp.Close || resp.Header.Get("Content-Type") != "application/dns-message" ||
			!strings.HasPrefix(resp.Header.Get("Cache-Control"), "private, max-age=") || resp.Header.Get("Date") == "" {
			t.Errorf("answered %s %v", got, resp.Header)
		}
		if r := g.next(t); r.text() != record || r.Listener != "both" || r.Protocol != "dns" || r.Wire != "doh" ||
			r.Identity != id("sidecar").String() || r.IdentitySource != "x509-svid" {
			t.Errorf("record %+v, want %s", r, record)
		}
	}
	request := func(raw, protocol string, last bool) {
		t.Helper()
		if resp, _ := c.ask(t, raw); resp.StatusCode != http.StatusForbidden || resp.Close != last {
			t.Errorf("answered %s, closing: %v", resp.Status, resp.Close)
		}
		if r := g.next(t); r.Listener != "both" || r.Protocol != protocol || r.Wire != "h1" || r.Reason != "not-on-allowlist" {
			t.Errorf("record %+v", r)
		}
	}
	plain := strings.Replace(sharedHead("GET", "http://denied.example/", ""), "gateway.example", "denied.example", 1)
	query(getQuery("allowed.example"), allowedAnswer, "allow A NOERROR upstream")
	request(plain, "http", false)
	query(postQuery(must(question("denied.example").Pack())), deniedAnswer, "deny not-on-allowlist A NXDOMAIN local")
	query(postQuery(must(question("allowed.example").Pack())), allowedAnswer, "allow A NOERROR cache")
	request(plain, "http", false)
	c.send(t, getQuery("denied.example")+plain+getQuery("allowed.example")) // without waiting for the answers
	for _, method := range []string{"GET", "GET", "GET"} {
		if resp, _ := c.read(t, method); resp.Close {
			t.Errorf("answered %s, closing", resp.Status)
		}
		g.next(t)
	}
	request("CONNECT denied.example:443 HTTP/1.1\r\nHost: denied.example:443\r\n\r\n", "connect", true)
	c.gone(t)
	if got := g.Stats().DNS; got.Ignored+got.Shed+got.Panics > 0 || g.Registry().Len() > 0 {
		t.Errorf("counted %+v, and %d entries are left", got, g.Registry().Len())
	}
}

// TestSharedListenerRefusesWhatIsNoQuery checks the answers to requests for the path of
// queries that contain none, and to other requests in origin form.
func TestSharedListenerRefusesWhatIsNoQuery(t *testing.T) {
	response := must(question("allowed.example").Pack())
	response[2] |= 0x80
	const message = "Content-Type: application/dns-message\r\n"
	path := dns.DoHPath
	for _, row := range []struct {
		name, raw string
		status    int
		fields    http.Header // fields that the answer has
		closes    bool
		record    string // reason in the record; "" means that there is none
	}{
		{"another method", sharedHead("DELETE", path, ""), 405, http.Header{"Allow": {"GET, POST"}}, false, ""},
		{"HEAD", sharedHead("HEAD", path, ""), 405, http.Header{"Allow": {"GET, POST"}}, false, ""},
		{"PUT with a body", sharedHead("PUT", path, "Content-Length: 3\r\n") + "abc", 405, http.Header{"Allow": {"GET, POST"}}, true, ""},
		{"another type of body", sharedHead("POST", path, "Content-Type: text/plain\r\nContent-Length: 3\r\n") + "abc", 415, nil, true, ""},
		{"no type of body", sharedHead("POST", path, ""), 415, nil, false, ""},
		{"chunks", sharedHead("POST", path, message+"Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\n0\r\n\r\n", 411, nil, true, ""},
		{"no body", sharedHead("POST", path, message), 400, nil, false, ""},
		{"a body that is no query", sharedHead("POST", path, message+"Content-Length: 3\r\n") + "abc", 400, nil, false, ""},
		{"a response", postQuery(response), 400, nil, false, ""},
		{"a long body", sharedHead("POST", path, message+"Content-Length: 5000\r\n") + strings.Repeat("a", 5000), 413, nil, true, ""},
		{"a very long body that does not come", sharedHead("POST", path, message+"Content-Length: 4611686018427387\r\n") + strings.Repeat("a", 4097), 413, nil, true, ""},
		{"no parameter", sharedHead("GET", path, ""), 400, nil, false, ""},
		{"no base64", sharedHead("GET", path+"?dns=%25", ""), 400, nil, false, ""},
		{"a long parameter", sharedHead("GET", path+"?dns="+strings.Repeat("A", 6000), ""), 413, nil, false, ""},
		{"another path", sharedHead("GET", "/", ""), 400, nil, true, "malformed-target"},
		{"a longer path", sharedHead("GET", path+"/x?dns=AAAA", ""), 400, nil, true, "malformed-target"},
		{"another Host", strings.Replace(getQuery("allowed.example"), "gateway.example", "other.example", 1), 400, nil, true, "malformed-target"},
		{"no Host", strings.Replace(strings.Replace(getQuery("allowed.example"), "Host: gateway.example\r\n", "", 1), "HTTP/1.1", "HTTP/1.0", 1), 400, nil, true, "malformed-target"},
		{"two lengths", sharedHead("POST", path, message+"Content-Length: 3\r\nContent-Length: 3\r\n") + "abc", 400, nil, true, "malformed-header"},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.share(t, "sidecar")
			resp, body := c.ask(t, row.raw)
			if resp.StatusCode != row.status || resp.Close != row.closes || (len(body) == 0) != strings.HasPrefix(row.raw, "HEAD") {
				t.Errorf("answered %s %v %q, want %d, and to close: %v", resp.Status, resp.Header, body, row.status, row.closes)
			}
			for name, want := range row.fields {
				if got := resp.Header.Get(name); got != want[0] {
					t.Errorf("%s is %q, want %q", name, got, want[0])
				}
			}
			if row.record != "" {
				if r := g.next(t); r.Reason != row.record || r.Wire != "h1" {
					t.Errorf("record %+v, want %s", r, row.record)
				}
			} else if got := g.Stats().DNS.Ignored; got != 1 {
				t.Errorf("%d requests are counted as no queries", got)
			}
			if row.closes {
				c.gone(t)
			} else if got, _ := c.query(t, "allowed.example"); got != allowedAnswer {
				t.Errorf("the next query is answered %s", got)
			} else if r := g.next(t); r.Verdict != "allow" {
				t.Errorf("record %+v", r)
			}
			g.none(t)
		})
	}
}

// TestSharedListenerSpendsTheBudget checks that queries and requests without one spend the
// caller's budget of queries, that the latter end their connection when nothing is left,
// and that other requests on it are not counted there.
func TestSharedListenerSpendsTheBudget(t *testing.T) {
	g := newGateway(t, options{perSecond: 1})
	c := g.share(t, "sidecar")
	for n := 0; ; n++ {
		if n == 50 {
			t.Fatal("50 queries were answered within the limit of one a second")
		}
		got, last := c.query(t, "denied.example")
		r := g.next(t)
		if last {
			t.Fatal("a query ends the connection")
		}
		if got == "REFUSED, ede 18 rate-limited" {
			if r.text() != "deny rate-limited A REFUSED local" || r.Detail != "dns.queries_per_second" {
				t.Errorf("record %+v", r)
			}
			break
		}
	}
	resp, _ := c.ask(t, sharedHead("GET", dns.DoHPath, ""))
	if resp.StatusCode == http.StatusBadRequest { // a second has passed
		resp, _ = c.ask(t, sharedHead("GET", dns.DoHPath, ""))
	}
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" || !resp.Close {
		t.Errorf("answered %s %v", resp.Status, resp.Header)
	}
	c.gone(t)
	c = g.share(t, "sidecar")
	if resp, _ := c.ask(t, "CONNECT denied.example:443 HTTP/1.1\r\nHost: denied.example:443\r\n\r\n"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a CONNECT is answered %s", resp.Status)
	}
	if got := g.Stats().DNS.Shed; got != 0 {
		t.Errorf("%d connections are counted as closed", got)
	}
}

// TestSharedListenerKnowsItsCallers checks callers without an identity, and those whom the
// policy refuses.
func TestSharedListenerKnowsItsCallers(t *testing.T) {
	g := newGateway(t, options{})
	for _, row := range []struct{ name, want, record string }{
		{"", "REFUSED, ede 18 identity-missing", "deny identity-missing A REFUSED local"},
		{"stranger", "NXDOMAIN, soa of example., ede 15 identity-unknown", "deny identity-unknown A NXDOMAIN local"},
		{"legacy", "NXDOMAIN, soa of example., ede 15 quarantined", "deny quarantined A NXDOMAIN local"},
	} {
		c := g.share(t, row.name)
		for range 2 {
			if got, last := c.query(t, "allowed.example"); got != row.want || last {
				t.Errorf("%q is answered %s, closing: %v", row.name, got, last)
			}
			if r := g.next(t); r.text() != row.record || r.Wire != "doh" {
				t.Errorf("record %+v, want %s", r, row.record)
			}
		}
	}
	conn := tls.Client(dialTCP(t, g.both), exploding(t, g.tls(t, "sidecar", "http/1.1")))
	c := &sharedClient{conn, bufio.NewReader(conn)}
	if got, last := c.query(t, "allowed.example"); got != "REFUSED, ede 18 identity-invalid" || !last {
		t.Errorf("a caller with too many names is answered %s, closing: %v", got, last)
	}
	if r := g.next(t); r.Reason != "identity-invalid" {
		t.Errorf("record %+v", r)
	}
	c.gone(t)
}

// TestSharedConnectionOverTheLimitEnds checks that a caller with more connections than it
// may have gets a refusal that names the limit of connections for requests, and that the
// connection then ends.
func TestSharedConnectionOverTheLimitEnds(t *testing.T) {
	for _, row := range []struct {
		options options
		limit   string
	}{
		{options{connections: 1}, "limits.connections_per_source: "},
		{options{requests: 4}, "limits.connections: "}, // one for each identity
	} {
		g := newGateway(t, row.options)
		first := g.share(t, "sidecar")
		first.query(t, "denied.example")
		g.next(t)
		c := g.share(t, "sidecar")
		if got, last := c.query(t, "allowed.example"); got != "REFUSED, ede 18 rate-limited" || !last {
			t.Errorf("answered %s, closing: %v", got, last)
		}
		if r := g.next(t); r.text() != "fail rate-limited A REFUSED local" || !strings.HasPrefix(r.Detail, row.limit) {
			t.Errorf("record %+v, want %s", r, row.limit)
		}
		c.gone(t)
	}
}

// TestStateForbidsQueriesOnASharedConnection checks that a kept connection is decided by
// each new state, and that it stays open: its tunnels and requests are judged one by one.
func TestStateForbidsQueriesOnASharedConnection(t *testing.T) {
	g := newGateway(t, options{})
	c := g.share(t, "other")
	if got, _ := c.query(t, "other.example"); got != "NOERROR, A 93.184.216.36" {
		t.Errorf("answered %s", got)
	}
	spec := policy()
	spec.Entries = spec.Entries[:len(spec.Entries)-1] // without the entry of other
	g.swap(t, spec)
	waitFor(t, "new policy", func() bool { return g.State().Generation > 1 })
	if got, last := c.query(t, "other.example"); got != "NXDOMAIN, soa of example., ede 15 identity-unknown" || last {
		t.Errorf("answered %s, closing: %v", got, last)
	}
	waitFor(t, "end of the queries", func() bool { return g.Registry().Len() == 0 })
}

// TestStateEndsTheLookUpOfAnUnknownCaller checks that a state which does not know the
// caller any more ends its running look-up, and that the query is answered and recorded
// as cut off.
func TestStateEndsTheLookUpOfAnUnknownCaller(t *testing.T) {
	lookup, waiting, _ := holding(t)
	g := newGateway(t, options{lookup: lookup})
	c := g.share(t, "other")
	c.send(t, getQuery("other.example"))
	<-waiting
	if n := g.Registry().Len(); n != 1 {
		t.Errorf("%d entries, want that of the query", n)
	}
	spec := policy()
	spec.Entries = spec.Entries[:len(spec.Entries)-1] // without the entry of other
	g.swap(t, spec)
	resp, body := c.read(t, http.MethodGet)
	if got := said(t, resp, body); got != "SERVFAIL, ede 0 cut-off" || resp.Close {
		t.Errorf("answered %s, closing: %v", got, resp.Close)
	}
	if r := g.next(t); r.text() != "fail cut-off A SERVFAIL local" || r.Generation != 2 {
		t.Errorf("record %+v", r)
	}
	waitFor(t, "end of the query", func() bool { return g.Registry().Len() == 0 })
}

// TestShutdownWaitsForQueriesOnSharedConnections checks that a shutdown waits for a running
// look-up, whose answer is the last one of its connection, and ends idle connections.
func TestShutdownWaitsForQueriesOnSharedConnections(t *testing.T) {
	t.Parallel()
	lookup, waiting, release := holding(t)
	g := newGateway(t, options{lookup: lookup, drain: 2 * patience})
	idle, busy := g.share(t, "sidecar"), g.share(t, "sidecar")
	idle.query(t, "denied.example")
	busy.send(t, getQuery("a.wild.example"))
	<-waiting
	g.stop()
	idle.gone(t) // within a second
	if n := g.Registry().Len(); n != 1 {
		t.Errorf("%d entries, want that of the query, for which the shutdown waits", n)
	}
	release()
	resp, body := busy.read(t, http.MethodGet)
	if got := said(t, resp, body); got != "SERVFAIL, ede 22 resolve-timeout" || !resp.Close {
		t.Errorf("answered %s, closing: %v", got, resp.Close)
	}
	busy.gone(t)
}

// TestUnfinishedQueriesOfStrangersKeepNoSharedSlot checks that a caller without an identity
// makes room for others while the body of its query is missing.
func TestUnfinishedQueriesOfStrangersKeepNoSharedSlot(t *testing.T) {
	g := newGateway(t, options{requests: 16})
	for i := range 8 { // more than all callers without an identity may have
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(10+i))}}
		raw, err := d.DialContext(t.Context(), "tcp", g.both.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = raw.Close() })
		if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		c := &sharedClient{Conn: tls.Client(raw, g.tls(t, "", "http/1.1"))}
		c.send(t, sharedHead("POST", dns.DoHPath, "Content-Type: application/dns-message\r\nContent-Length: 40\r\nExpect: 100-continue\r\n"))
		if _, err := io.ReadFull(c, make([]byte, len("HTTP/1.1 100"))); err != nil { // the request is being read
			t.Fatal(err)
		}
	}
	if got, _ := g.share(t, "other").query(t, "denied.example"); got != deniedAnswer {
		t.Errorf("another caller is answered %s", got)
	}
	if r := g.next(t); r.Reason != allowlist.NotOnAllowlist.String() {
		t.Errorf("record %+v", r)
	}
}
