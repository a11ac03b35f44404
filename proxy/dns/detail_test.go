package dns_test

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dns"
)

// TestARecordSaysWhatIsWrongWithAQuery checks details that the response code does not
// show.
func TestARecordSaysWhatIsWrongWithAQuery(t *testing.T) {
	g := newGateway(t, options{})
	c := g.dial(t, "tcp", "sidecar")
	for name, want := range map[string]string{
		"a header alone":                       "its question is cut short or has a name that is none",
		"two questions":                        "it has not one question and one OPT at most",
		"an additional record of another type": "what stands behind its question is no OPT",
		"a byte behind the message":            "bytes stand behind its end",
		"EDNS version 1":                       "EDNS version 1",
		"the operation UPDATE":                 "it is no query but another operation",
		"class CHAOS":                          "it is of another class than IN",
	} {
		bad, ok := badPackets()[name]
		if !ok {
			t.Fatal(name)
		}
		if _, err := c.ask(bad.msg); err != nil {
			t.Fatal(err)
		}
		if r := g.next(t); r.RCode != bad.want || r.Detail != want {
			t.Errorf("%s: %s, detail %q, want %q", name, r.RCode, r.Detail, want)
		}
	}
	for name, bad := range badPackets() { // of every kind
		if bad.want == "" {
			continue
		}
		if _, err := c.ask(bad.msg); err != nil {
			t.Fatal(err)
		}
		if r := g.next(t); r.Detail == "" && (r.Verdict == "fail" || strings.HasPrefix(r.Reason, "malformed") || r.Reason == "unsupported-version" || r.RCode == "NOTIMP") {
			t.Errorf("%s: no detail in %+v", name, r)
		}
	}
	ask(t, c, "bad-alias.example")
	if r := g.next(t); r.Reason != "denied-by-rule" || r.Detail != "it leads to denied.wild.example" {
		t.Errorf("record %+v", r)
	}
}

// TestARecordNamesTheLimitOfQueries checks that a record names the key that sets the
// limit.
func TestARecordNamesTheLimitOfQueries(t *testing.T) {
	limited := func(own, shared int) func(*allowlist.Spec) {
		return func(spec *allowlist.Spec) {
			spec.Entries[0].Limits.DNSPerSecond, spec.Entries[0].SharedLimits.DNSPerSecond = own, shared
		}
	}
	for want, row := range map[string]struct {
		o      options
		change func(*allowlist.Spec)
	}{
		"dns.queries_per_second":       {options{perSecond: 1}, limited(0, 0)},
		"limits.dns_per_second":        {options{}, limited(1, 0)},
		"shared_limits.dns_per_second": {options{}, limited(0, 1)},
	} {
		t.Run(want, func(t *testing.T) {
			g := newGateway(t, row.o)
			spec := policy()
			row.change(&spec)
			g.swap(t, spec)
			c := g.dial(t, "tcp", "sidecar")
			for range 50 {
				ask(t, c, "denied.example")
				if r := g.next(t); r.Reason == "rate-limited" {
					if r.Detail != want {
						t.Errorf("detail %q, want %q", r.Detail, want)
					}
					return
				}
			}
			t.Error("50 queries were answered within the limit of one a second")
		})
	}
	for want, limits := range map[string]dns.Limits{"dns.lookups_per_identity": {InFlight: 1}, "dns.lookups": {Total: 1}} {
		t.Run(want, func(t *testing.T) {
			lookup, waiting, release := holding(t)
			g := newGateway(t, options{limits: limits, lookup: lookup})
			c := g.dial(t, "dot", "sidecar").(*streamClient)
			if _, err := c.Write(framed(must(question("a.wild.example").Pack()))); err != nil {
				t.Fatal(err)
			}
			<-waiting
			ask(t, c, "b.wild.example")
			if r := g.next(t); r.Detail != want {
				t.Errorf("detail %q, want %q", r.Detail, want)
			}
			release()
			g.next(t)
		})
	}
	t.Run("limits.connections_per_source", func(t *testing.T) {
		g := newGateway(t, options{connections: 1})
		ask(t, g.dial(t, "tcp", "sidecar"), "denied.example")
		g.next(t)
		ask(t, g.dial(t, "tcp", "sidecar"), "denied.example")
		if r := g.next(t); r.Reason != "rate-limited" || !strings.HasPrefix(r.Detail, "limits.connections_per_source: ") {
			t.Errorf("record %+v", r)
		}
	})
}

// TestUnsentAnswerIsNotRecordedAsSent checks a client that leaves, also over HTTP, where
// the answer is first written into a buffer.
func TestUnsentAnswerIsNotRecordedAsSent(t *testing.T) {
	query := base64.RawURLEncoding.EncodeToString(must(question("a.wild.example").Pack()))
	for name, leave := range map[string]func(t *testing.T, g *gateway, waiting chan string){
		"h1": func(t *testing.T, g *gateway, waiting chan string) {
			t.Helper()
			raw := dialTCP(t, g.doh)
			conn := tls.Client(raw, g.tls(t, "sidecar", "http/1.1"))
			if _, err := fmt.Fprintf(conn, "GET %s?dns=%s HTTP/1.1\r\nHost: gateway.example\r\n\r\n", dns.DoHPath, query); err != nil {
				t.Fatal(err)
			}
			<-waiting
			if err := errors.Join(raw.SetLinger(0), raw.Close()); err != nil {
				t.Fatal(err)
			}
		},
		"h2": func(t *testing.T, g *gateway, waiting chan string) {
			t.Helper()
			f := g.frames(t, "sidecar")
			get := func(query string) error {
				return f.request(":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", dns.DoHPath+"?dns="+query)
			}
			if err := get(query); err != nil {
				t.Fatal(err)
			}
			<-waiting
			denied := base64.RawURLEncoding.EncodeToString(must(question("denied.example").Pack()))
			if err := errors.Join(f.WriteRSTStream(1, http2.ErrCodeCancel), get(denied)); err != nil {
				t.Fatal(err)
			}
			f.until(t, http2.FrameData) // of the second query: the server has read the reset before it
			g.next(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			lookup, waiting, release := holding(t)
			g := newGateway(t, options{lookup: lookup})
			leave(t, g, waiting)
			release()
			if r := g.next(t); r.Wire != "doh" || r.Host != "a.wild.example" || r.RCode != "" || r.Answers != nil {
				t.Errorf("record %+v", r)
			}
			g.none(t)
		})
	}
}
