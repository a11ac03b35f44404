package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// put puts the policy in force after change was applied to it.
func (g *gateway) put(t *testing.T, enforcer states, change func(*allowlist.Spec)) {
	t.Helper()
	spec := g.policy()
	change(&spec)
	policy, err := allowlist.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	enforcer.put(t.Context(), policy)
}

// endings returns the ways in which the gateway ends a request that is under way.
func endings() map[string]func(*testing.T, *gateway, states) {
	return map[string]func(*testing.T, *gateway, states){
		"revoked": func(t *testing.T, g *gateway, e states) {
			t.Helper()
			g.put(t, e, func(s *allowlist.Spec) { s.Entries = s.Entries[1:] })
		},
		"quarantined": func(t *testing.T, g *gateway, e states) {
			t.Helper()
			g.put(t, e, func(s *allowlist.Spec) {
				s.Quarantine = []allowlist.Quarantined{{Pattern: s.Entries[0].Pattern, Reason: "INC-77"}}
			})
		},
		"drain": func(_ *testing.T, g *gateway, _ states) { g.registry.EndAll(tunnel.Drain) },
	}
}

// whys returns the reason in the close record for each ending.
func whys() map[string]string {
	return map[string]string{"revoked": "identity-unknown", "quarantined": "quarantined", "drain": ""}
}

// TestRequestCutOffAtTheOriginIsNotRecordedAsDenied checks that a request which has
// reached the origin, at least in part, is not refused any more. The answer and the
// records of the decision and of the end must say what happened.
func TestRequestCutOffAtTheOriginIsNotRecordedAsDenied(t *testing.T) {
	for ending, end := range endings() {
		for name, row := range map[string]struct{ request, arrived string }{
			"a request that waits for its answer": {get("http://DEST/"), ""},
			"half a body":                         {"POST http://DEST/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", "half"},
			"half a body of chunks":               {"POST http://DEST/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half"},
			"an upgrade that waits":               {get("http://WS/", "Connection: Upgrade", "Upgrade: websocket"), ""},
		} {
			t.Run(name+" "+ending, func(t *testing.T) {
				t.Parallel()
				g := newGateway(t, options{})
				c := g.call(t, "builder")
				c.send(t, strings.NewReplacer("DEST", g.at("allowed.example"), "WS", g.at("ws.example")).Replace(row.request))
				conn := g.origin.next(t)
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(req.Body, make([]byte, len(row.arrived))); err != nil {
					t.Fatal(err)
				}
				end(t, g, g.enforcer())
				a := c.answer(t)
				if a.status != 502 || a.reason() != "cut-off" || !strings.Contains(a.header.Get("Proxy-Status"), "error=connection_terminated;") ||
					!strings.Contains(a.phrase, "("+ending+")") {
					t.Errorf("answered %s, %v", a.phrase, a.header)
				}
				r := g.next(t, audit.EventDecision)
				if r.Verdict != "fail" || r.Reason != "cut-off" || r.Detail != ending || r.Status != 502 {
					t.Errorf("record %+v, want what happened", r)
				}
				if r := g.next(t, audit.EventTunnelClose); r.CloseReason != ending || r.Reason != whys()[ending] {
					t.Errorf("record %+v", r)
				}
				_ = c.Close()
				if left := g.rest(t); len(left) > 0 {
					t.Errorf("records too many: %+v", left)
				}
			})
		}
	}
}

// TestCutAnswerKeepsItsDecision checks an exchange that is ended after the head of its
// answer has gone out: the decision keeps its status, and the close record has the reason.
func TestCutAnswerKeepsItsDecision(t *testing.T) {
	all := endings()
	all["limit"] = nil // the upload, which goes on during the answer, reaches its limit
	for ending, end := range all {
		t.Run(ending, func(t *testing.T) {
			g := newGateway(t, options{})
			if end == nil {
				g.limited(t, allowlist.Limits{UploadPerHour: 1000}, allowlist.Limits{})
			}
			c := g.call(t, "builder")
			c.send(t, "POST http://"+g.at("allowed.example")+"/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nhalf")
			conn := g.origin.next(t)
			req, err := http.ReadRequest(bufio.NewReader(conn))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(req.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(c.reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Status != 200 || r.Reason != "" {
				t.Errorf("record %+v", r)
			}
			why := "upload-limit"
			if end != nil {
				why = whys()[ending]
				end(t, g, g.enforcer())
			} else {
				c.send(t, strings.Repeat("b", 2000))
			}
			if rest, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("the client got %q and no error", rest)
			}
			if r := g.next(t, audit.EventTunnelClose); r.CloseReason != ending || r.Reason != why {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestUpgradeForbiddenWhenTheOriginAgreesIsCutOff forbids a request after the origin has
// agreed to its upgrade.
func TestUpgradeForbiddenWhenTheOriginAgreesIsCutOff(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	c.send(t, get("http://"+g.at("ws.example")+"/", "Connection: Upgrade", "Upgrade: websocket"))
	conn, _ := g.asked(t)
	spec := g.policy()
	spec.Entries = spec.Entries[1:]
	g.swap(t, spec) // the exchange is not ended from outside: it must check the state itself
	if _, err := io.WriteString(conn, agreed); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != 502 || a.reason() != "cut-off" {
		t.Errorf("answered %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "fail" || r.Reason != "cut-off" || r.Detail != "revoked" || r.Status != 502 {
		t.Errorf("record %+v", r)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Reason != "identity-unknown" {
		t.Errorf("record %+v", r)
	}
	_ = c.Close()
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records too many: %+v", left)
	}
}

// slowLookup is the duration from which a look-up has a span of its own, which begins when
// the connection exists and the request has not gone out.
const slowLookup = 60 * time.Millisecond

// TestRequestEndedBeforeItWentOutIsRefused checks that a request which a state ends during
// the look-up is refused, because it has not gone out.
func TestRequestEndedBeforeItWentOutIsRefused(t *testing.T) {
	for ending, want := range map[string]string{
		"revoked": "deny identity-unknown 403", "quarantined": "deny quarantined 403", "drain": "fail draining 503",
	} {
		for name, ask := range map[string]func(string) string{
			"CONNECT": func(dest string) string { return connectTo(dest) },
			"GET":     func(dest string) string { return get("http://" + dest + "/") },
			"POST": func(dest string) string {
				return "POST http://" + dest + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"
			},
		} {
			check := func(t *testing.T, g *gateway, c *caller) {
				t.Helper()
				close(g.names.answer)
				a := c.answer(t)
				r := g.next(t, audit.EventDecision)
				if got := fmt.Sprint(r.Verdict, " ", r.Reason, " ", r.Status); got != want || a.status != r.Status {
					t.Errorf("answered %s, record %s, want %s", a.phrase, got, want)
				}
				_ = c.Close()
				if left := g.rest(t); len(left) > 0 {
					t.Errorf("records too many: %+v", left)
				}
			}
			t.Run(name+" "+ending, func(t *testing.T) {
				t.Parallel()
				g := newGateway(t, options{})
				c := g.call(t, "builder")
				c.send(t, ask(g.at("held.example")))
				<-g.names.asked
				endings()[ending](t, g, g.enforcer())
				check(t, g, c)
			})
			t.Run(name+" "+ending+" when it is connected", func(t *testing.T) {
				t.Parallel()
				g := newGateway(t, options{})
				enforcer := g.enforcer()
				g.begun = func(span string) {
					if span == "resolve" {
						endings()[ending](t, g, enforcer)
					}
				}
				c := g.call(t, "builder")
				c.send(t, ask(g.at("held.example")))
				<-g.names.asked
				<-time.After(slowLookup)
				check(t, g, c)
			})
		}
	}
}

// TestUnsentStatusIsNotRecorded checks that the record of a refusal has no status if the
// answer could not be written.
func TestUnsentStatusIsNotRecorded(t *testing.T) {
	for name, head := range map[string]string{
		"a CONNECT": connectTo("unlisted.example:443"), "a GET": get("http://unlisted.example/"), "a malformed head": "CONNECT\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{})
			client, server, conn := hook(t)
			server.answering = func() { _ = server.Close() }
			if _, err := io.WriteString(client, head); err != nil {
				t.Fatal(err)
			}
			g.proxy.Serve(t.Context(), conn)
			if r := g.next(t, audit.EventDecision); r.Verdict != "deny" || r.Reason == "" || r.Status != 0 {
				t.Errorf("record %+v", r)
			}
		})
	}
}

// TestRequestForbiddenForAMomentIsTriedAgain checks that a request is tried again if a
// state forbids it only for a moment, during the look-up or when it is connected.
func TestRequestForbiddenForAMomentIsTriedAgain(t *testing.T) {
	forbid := func(t *testing.T, g *gateway, enforcer states) {
		t.Helper() // a state that is no longer in force when the door checks it
		g.put(t, enforcer, func(s *allowlist.Spec) { s.Entries = s.Entries[1:] })
	}
	for name, body := range map[string]struct{ fields, text string }{
		"a body":           {"Content-Length: 4", "body"},
		"a body of chunks": {"Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n"},
	} {
		start := func(t *testing.T) (*gateway, states, *caller) {
			t.Helper()
			g := newGateway(t, options{})
			return g, g.another(t), g.call(t, "builder")
		}
		ask := func(t *testing.T, g *gateway, c *caller) {
			t.Helper()
			c.send(t, "POST http://"+g.at("held.example")+"/ HTTP/1.1\r\nHost: x\r\n"+body.fields+"\r\n\r\n"+body.text)
			<-g.names.asked
		}
		t.Run(name+", while it is looked up", func(t *testing.T) {
			g, enforcer, c := start(t)
			ask(t, g, c)
			forbid(t, g, enforcer)
			<-g.names.asked // again, while the first look-up still waits
			close(g.names.answer)
			triedAgain(t, g, c)
		})
		t.Run(name+", when it is connected", func(t *testing.T) {
			g, enforcer, c := start(t)
			var once sync.Once
			g.begun = func(span string) {
				if span == "resolve" {
					once.Do(func() { forbid(t, g, enforcer) })
				}
			}
			ask(t, g, c)
			<-time.After(slowLookup)
			g.names.answer <- struct{}{}
			<-g.names.asked
			close(g.names.answer)
			triedAgain(t, g, c)
		})
	}
}

// triedAgain is the origin of a request with a body, which is sent on in the second try.
func triedAgain(t *testing.T, g *gateway, c *caller) {
	t.Helper()
	conn := g.origin.next(t)
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if errors.Is(err, io.EOF) { // the connection of the first try
		conn = g.origin.next(t)
		req, err = http.ReadRequest(bufio.NewReader(conn))
	}
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(req.Body); err != nil || string(body) != "body" {
		t.Errorf("the origin got %q, %v", body, err)
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if a := c.answer(t); a.status != 204 {
		t.Errorf("answered %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.Verdict != "allow" || r.Status != 204 {
		t.Errorf("record %+v", r)
	}
}
