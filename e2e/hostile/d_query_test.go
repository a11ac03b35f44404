package hostile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// queryHead returns the head of a query over HTTPS, without its last line. The caller is
// not allowed to look up the name, which is secret.example.
func queryHead(method, target, host string, fields ...string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(fields, ""), "\r\n")
}

const secretQuery = "/dns-query?dns=AAABAAABAAAAAAAABnNlY3JldAdleGFtcGxlAAABAAE"

func queryRows() []row {
	const message = "Content-Type: application/dns-message"
	hosts := []scenario{
		onShared("HTTP/1.0 without Host", "GET "+secretQuery+" HTTP/1.0\r\n\r\n"),
		{name: "a listener for CONNECT alone", only: h1, run: func(t *testing.T, g *gateway) {
			ask{head: queryHead("GET", secretQuery, trustDomain) + "\r\n", reason: allowlist.MalformedTarget, host: anyHost}.on(t, g, g.call(t, "builder"))
		}},
	}
	for _, host := range []string{
		"other.example", "allowed.example", "127.0.0.1", "localhost", "", "test.example:443", "test.example:", "test.example:0SHARED", "test.example..", "*.test.example",
		"a.test.example", "user@test.example", "test.example/", "test.example, other.example", "[::1]", "\xef\xbd\x94est.example",
	} {
		hosts = append(hosts, onShared("Host "+printable(host), queryHead("GET", secretQuery, host)+"\r\n"))
	}
	for _, target := range []string{
		"/", "/dns-query/", "/dns-query/..", "//dns-query", "/DNS-QUERY", "/dns%2dquery", "/dns-query#?dns=AAAA", "/dns-query;a", "*", "dns-query", "https://test.example/dns-query",
	} {
		hosts = append(hosts, onShared(target, queryHead("GET", target, trustDomain)+"\r\n"))
	}
	return []row{
		{"D34", "a DNS query over HTTPS on a listener for CONNECT and DoH, whose Host does not name the listener as its certificate does, or has another port; another path; a query on a listener for CONNECT alone", "400 `malformed-target`; nothing is looked up", hosts},
		{"D35", "a request as the body of such a query: too long, of another type, in chunks, behind a method that has none", "the query is answered, or refused with a 4xx status; the connection closes, and the bytes are never read as a request", []scenario{
			bodyOf("GET", secretQuery, 200),
			bodyOf("HEAD", "/dns-query", 405),
			bodyOf("DELETE", "/dns-query", 405),
			bodyOf("POST", "/dns-query", 415),
			bodyOf("POST", "/dns-query", 411, message, "Transfer-Encoding: chunked"),
			bodyOf("POST", "/dns-query", 413, message, fmt.Sprintf("Content-Length: %d", 1<<20)),
		}},
		{"D36", "queries, plain requests and CONNECTs in one segment", "each is decided and recorded on its own", []scenario{{name: "in one segment", only: h1, run: inTurn}}},
	}
}

// onShared returns the case of a request in origin form that is no query, on the listener
// for CONNECT and DoH. SHARED stands for the port of that listener.
func onShared(name, head string) scenario {
	return scenario{name: name, only: h1, run: func(t *testing.T, g *gateway) {
		head := strings.ReplaceAll(head, "SHARED", fmt.Sprint(g.shared.Port()))
		ask{head: head, reason: allowlist.MalformedTarget, host: anyHost}.on(t, g, g.callShared(t, "builder"))
	}}
}

// bodyOf returns a case that sends a valid CONNECT as the body of a query.
func bodyOf(method, target string, status int, fields ...string) scenario {
	return scenario{name: method + " " + strings.Join(fields, ", "), only: h1, run: func(t *testing.T, g *gateway) {
		body := g.fill(connectTo("allowed.example:PORT"))
		all := fields
		if len(fields) == 0 {
			all = []string{fmt.Sprintf("Content-Length: %d", len(body))}
		}
		if status == 413 { // what the gateway reads of it ends within a request
			body = strings.Repeat(body, 1+4096/len(body))
		}
		before := g.counts()
		c := g.callShared(t, "builder")
		c.send(t, queryHead(method, target, trustDomain, all...)+"\r\n"+body)
		got, err := c.tryAnswerTo(method)
		if err != nil || got.status != status || !got.close {
			t.Errorf("answered %s, closing: %v, %v; want %d", got.phrase, got.close, err, status)
		}
		_, _ = c.Write([]byte(body))
		c.ended(t)
		if status == 200 { // a query that has a body beside it
			g.next(t, audit.EventDecision)
		}
		if g.counts() != before {
			t.Error("a lookup or a dial for a body")
		}
	}}
}

// inTurn sends requests of each kind in one segment. None of them is allowed.
func inTurn(t *testing.T, g *gateway) {
	query := queryHead("GET", secretQuery, trustDomain) + "\r\n"
	plain := "GET http://secret.example/ HTTP/1.1\r\nHost: secret.example\r\n\r\n"
	before := g.counts()
	c := g.callShared(t, "builder")
	c.send(t, query+plain+query+connectTo("secret.example:443")+query)
	for _, want := range []struct {
		status   int
		protocol string
	}{{200, "dns"}, {403, "http"}, {200, "dns"}, {403, "connect"}} {
		got, err := c.tryAnswerTo("GET")
		if err != nil || got.status != want.status || got.close != (want.protocol == "connect") {
			t.Errorf("%s: answered %s, closing: %v, %v", want.protocol, got.phrase, got.close, err)
		}
		if r := g.next(t, audit.EventDecision); r.Protocol != want.protocol || r.Host != "secret.example" || r.Reason != "not-on-allowlist" || r.Identity != id("builder") {
			t.Errorf("record %+v, want one of %s", r, want.protocol)
		}
	}
	c.ended(t) // and the query behind the CONNECT is not read
	if g.counts() != before {
		t.Error("a lookup or a dial for what is denied")
	}
}
