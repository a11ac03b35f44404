package dns_test

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/dns"
)

// closedByIt waits for the other end to close a connection, and reports whether it has.
func closedByIt(t *testing.T, c client) bool {
	t.Helper()
	conn := c.(*streamClient)
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(make([]byte, 1))
	return n == 0 && !errors.Is(err, os.ErrDeadlineExceeded)
}

// TestManyStreamsAtOnce checks that the queries of forty clients at the same time are
// answered, and those of 256 connections of one identity. Over TLS, at most 16 handshakes
// run at the same time, because each may take no more than dns.HandshakeTimeout.
func TestManyStreamsAtOnce(t *testing.T) {
	for wire, atOnce := range map[string]int{"tcp": 256, "dot": 16} {
		for _, n := range []int{40, 256} {
			g := newGateway(t, options{perSecond: 1 << 20})
			answers, opening := make([]string, n), make(chan struct{}, atOnce)
			var asking sync.WaitGroup
			for i := range answers {
				asking.Go(func() {
					opening <- struct{}{}
					c := g.dial(t, wire, "sidecar")
					if secure, ok := c.(*streamClient).Conn.(*tls.Conn); ok {
						answers[i] = fmt.Sprint(secure.Handshake())
					}
					<-opening
					raw, err := c.ask(must(question("allowed.example").Pack()))
					answers[i] += fmt.Sprint(len(raw) > 12 && raw[3]&0xf == 0, err)
				})
			}
			asking.Wait()
			for i, got := range answers {
				if strings.TrimPrefix(got, "<nil>") != "true <nil>" {
					t.Fatalf("%s, %d at once: number %d is answered: %s", wire, n, i, got)
				}
			}
		}
	}
}

// TestIdleStreamIsClosedForANewOne checks that an idle connection is closed when an
// identity opens more than it may have, and not one with a waiting query, nor that of
// another identity.
func TestIdleStreamIsClosedForANewOne(t *testing.T) {
	lookup, waiting, release := holding(t)
	g := newGateway(t, options{limits: dns.Limits{Streams: 2}, lookup: lookup})
	other := g.dial(t, "dot", "other")
	ask(t, other, "denied.example")
	busy, idle := g.dial(t, "dot", "sidecar").(*streamClient), g.dial(t, "dot", "sidecar")
	if _, err := busy.Write(framed(must(question("b.wild.example").Pack()))); err != nil {
		t.Fatal(err)
	}
	<-waiting
	ask(t, idle, "denied.example")
	var third client
	waitFor(t, "room for a third connection", func() bool { // the connection is idle a moment after its answer
		third = g.dial(t, "dot", "sidecar")
		return say(ask(t, third, "denied.example")) == "NXDOMAIN, soa of example., ede 15 not-on-allowlist"
	})
	if !closedByIt(t, idle) {
		t.Error("the idle one stays")
	}
	release()
	if _, err := readMessage(busy); err != nil {
		t.Errorf("the one with a query: %v", err)
	}
	for name, c := range map[string]client{"the third": third, "another identity's": other} {
		if _, err := c.ask(must(question("denied.example").Pack())); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := g.cuts("dot"); got != "caller 1" {
		t.Errorf("counted %q", got)
	}
	waitFor(t, "summary", func() bool {
		r := g.next(t)
		return r.Event == "summary" && r.Listener == "dot" && r.Count == 1
	})
}

// TestQueryIsRefusedWhenAllStreamsAreBusy checks that if no connection is idle, the first
// query on one more is refused and recorded, whatever it asks, and this connection ends,
// while another identity is answered.
func TestQueryIsRefusedWhenAllStreamsAreBusy(t *testing.T) {
	for _, row := range []struct {
		name     string
		options  options
		busy     []string // identities that have a query waiting
		answer   string
		reason   string
		answered string // an identity that has room
	}{
		{"all streams of an identity", options{limits: dns.Limits{Streams: 2}}, []string{"sidecar", "sidecar"}, "REFUSED, ede 18 rate-limited", "fail rate-limited", "other"},
		{"all streams of the listeners", options{streams: 5, limits: dns.Limits{Streams: 2}}, []string{"other", "other", "stranger", "stranger"}, "REFUSED, ede 18 busy", "fail busy", ""},
	} {
		for _, wire := range []string{"dot", "doh"} {
			t.Run(row.name+" over "+wire, func(t *testing.T) {
				lookup, waiting, release := holding(t)
				o := row.options
				o.lookup = lookup
				g := newGateway(t, o)
				var asking sync.WaitGroup
				t.Cleanup(func() {
					release()
					asking.Wait()
				})
				spec := policy()
				spec.Entries = append(spec.Entries, entry("stranger", to("*.wild.example")))
				for i := range spec.Entries {
					spec.Entries[i].Allow = append(spec.Entries[i].Allow, to("*.wild.example"))
				}
				g.swap(t, spec)
				waitFor(t, "new policy", func() bool { return g.State().Generation > 1 })
				for i, who := range row.busy {
					c := g.dial(t, "dot", who).(*streamClient)
					if _, err := c.Write(framed(must(question(fmt.Sprintf("b%d.wild.example", i)).Pack()))); err != nil {
						t.Fatal(err)
					}
					<-waiting
				}
				one := g.dial(t, wire, "sidecar")
				if got := say(ask(t, one, "denied.example")); got != row.answer {
					t.Errorf("%s, want %s", got, row.answer)
				}
				r := g.next(t)
				for r.Event != "decision" { // skips records of connections that the policy has ended
					r = g.next(t)
				}
				if got := r.Verdict + " " + r.Reason; got != row.reason || r.RCode != "REFUSED" {
					t.Errorf("record %+v, want %s", r, row.reason)
				}
				if wire == "dot" && !closedByIt(t, one) {
					t.Error("it is refused and stays")
				}
				if row.answered != "" {
					if got := say(ask(t, g.dial(t, wire, row.answered), "denied.example")); got != "NXDOMAIN, soa of example., ede 15 not-on-allowlist" {
						t.Errorf("another identity: %s", got)
					}
					g.next(t)
				}
			})
		}
	}
}

// TestRefusalOfARequestWithoutAQueryIsRecordedAtTheEnd checks an HTTP request without a
// query from a caller over its limit. Its answer does not count as the refusal of the
// caller, which is recorded when the connection ends.
func TestRefusalOfARequestWithoutAQueryIsRecordedAtTheEnd(t *testing.T) {
	g := newGateway(t, options{connections: 2})
	for range 2 {
		ask(t, g.dial(t, "dot", "sidecar"), "denied.example")
		g.next(t)
	}
	c := g.dialDoH(t, "sidecar")
	req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+g.doh.String()+"/", http.NoBody))
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode != http.StatusNotFound {
		t.Errorf("status %d", resp.StatusCode)
	}
	c.CloseIdleConnections()
	if r := g.next(t); r.Wire != "doh" || r.Verdict+" "+r.Reason != "fail rate-limited" || r.RCode != "" || r.QType != "" {
		t.Errorf("record %+v", r)
	}
}

// TestSilentStreamOverTheLimitIsRecordedOnce checks that a caller over its limit that
// sends nothing has one record of its refusal, whether or not it got an answer.
func TestSilentStreamOverTheLimitIsRecordedOnce(t *testing.T) {
	for _, wire := range []string{"tcp", "dot"} {
		g := newGateway(t, options{connections: 2})
		first, second := g.dial(t, wire, "sidecar"), g.dial(t, wire, "sidecar")
		for _, c := range []client{first, second} {
			ask(t, c, "denied.example")
			g.next(t)
		}
		third := g.dial(t, wire, "sidecar").(*streamClient)
		if wire == "dot" {
			if _, err := third.Write(nil); err != nil { // makes the handshake
				t.Fatal(err)
			}
		}
		if err := third.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if !closedByIt(t, third) { // it stops counting only now; the next connection would be closed without an answer before
			t.Errorf("%s: it stays", wire)
		}
		r := g.next(t)
		if r.Event != "decision" || r.Protocol != "dns" || r.Wire != wire || r.Verdict+" "+r.Reason != "fail rate-limited" ||
			r.RCode != "" || r.QType != "" || r.Detail == "" || r.Identity != id("sidecar").String() {
			t.Errorf("%s: record %+v", wire, r)
		}
		told := g.dial(t, wire, "sidecar")
		if got := say(ask(t, told, "allowed.example")); got != "REFUSED, ede 18 rate-limited" {
			t.Errorf("%s: %s", wire, got)
		}
		if r := g.next(t); r.Verdict+" "+r.Reason != "fail rate-limited" || r.RCode != "REFUSED" {
			t.Errorf("%s: record %+v", wire, r)
		}
		if rest, err := io.ReadAll(told.(*streamClient)); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: % x, %v", wire, rest, err)
		}
		g.stop()
		waitFor(t, "end", func() bool { return g.Registry().Len() == 0 })
		g.none(t)
	}
}

// TestUnsentAnswerKeepsItsConnection checks that an answer for which an HTTP/2 client has
// no window keeps its connection, because its request has been decided.
func TestUnsentAnswerKeepsItsConnection(t *testing.T) {
	g := newGateway(t, options{limits: dns.Limits{Streams: 1}})
	f := g.frames(t, "sidecar")
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize}); err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString(must(question("denied.example").Pack()))
	if err := f.request(":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", "/dns-query?dns="+text); err != nil {
		t.Fatal(err)
	}
	f.until(t, http2.FrameHeaders) // the handler has returned
	if got := say(ask(t, g.dial(t, "doh", "sidecar"), "denied.example")); got != "REFUSED, ede 18 rate-limited" {
		t.Errorf("one more while the answer waits: %s", got)
	}
	if err := f.WriteWindowUpdate(1, 1<<16); err != nil {
		t.Fatal(err)
	}
	data := f.until(t, http2.FrameData).(*http2.DataFrame)
	if data.Header().Length == 0 || !data.StreamEnded() {
		t.Errorf("the answer: %v", data)
	}
	waitFor(t, "room for one more", func() bool {
		return say(ask(t, g.dial(t, "doh", "sidecar"), "denied.example")) == "NXDOMAIN, soa of example., ede 15 not-on-allowlist"
	})
}

// TestUnfinishedRequestsOfStrangersKeepNoSlot checks that a caller without an identity, or
// over its share, makes room for others even while the body of its request or the window
// for its answer is missing.
func TestUnfinishedRequestsOfStrangersKeepNoSlot(t *testing.T) {
	text := base64.RawURLEncoding.EncodeToString(must(question("denied.example").Pack()))
	for name, begin := range map[string]func(t *testing.T, c *tls.Conn){
		"a body that does not come": func(t *testing.T, c *tls.Conn) {
			t.Helper()
			const head = "POST /dns-query HTTP/1.1\r\nHost: gateway.example\r\nContent-Type: application/dns-message\r\nContent-Length: 40\r\nExpect: 100-continue\r\n\r\n"
			if _, err := io.WriteString(c, head); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, len("HTTP/1.1 100"))); err != nil { // the request is being read
				t.Fatal(err)
			}
		},
		"an answer without room": func(t *testing.T, c *tls.Conn) {
			t.Helper()
			f := newFramer(t, c)
			if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize}); err != nil {
				t.Fatal(err)
			}
			if err := f.request(":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", "/dns-query?dns="+text); err != nil {
				t.Fatal(err)
			}
			f.until(t, http2.FrameHeaders)
		},
	} {
		for _, caller := range []string{"", "sidecar"} { // sidecar keeps one connection, and the others are over its share
			t.Run(name+" "+caller, func(t *testing.T) {
				g := newGateway(t, options{streams: 16, limits: dns.Limits{Streams: 1}})
				protocol := "http/1.1"
				if strings.HasPrefix(name, "an answer") {
					protocol = "h2"
				}
				for i := range 6 { // more than all callers without an identity may have
					d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(10+i))}}
					raw, err := d.DialContext(t.Context(), "tcp", g.doh.String())
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = raw.Close() })
					if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
						t.Fatal(err)
					}
					begin(t, tls.Client(raw, g.tls(t, caller, protocol)))
				}
				if got := say(ask(t, g.dial(t, "dot", "other"), "denied.example")); got != "NXDOMAIN, soa of example., ede 15 not-on-allowlist" {
					t.Errorf("another caller is answered: %s", got)
				}
			})
		}
	}
}

// TestResetStreamsKeepNoSlot checks that an HTTP/2 client which has reset its streams
// makes room for another connection when their handlers have returned.
func TestResetStreamsKeepNoSlot(t *testing.T) {
	lookup, waiting, release := holding(t)
	g := newGateway(t, options{limits: dns.Limits{Streams: 1}, lookup: lookup})
	f := g.frames(t, "sidecar")
	text := base64.RawURLEncoding.EncodeToString(must(question("b.wild.example").Pack()))
	for range 3 {
		stream := f.stream
		if err := f.request(":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", "/dns-query?dns="+text); err != nil {
			t.Fatal(err)
		}
		<-waiting
		if err := f.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	release()
	waitFor(t, "room for one more", func() bool {
		return say(ask(t, g.dial(t, "doh", "sidecar"), "denied.example")) == "NXDOMAIN, soa of example., ede 15 not-on-allowlist"
	})
}

// until reads frames up to one of a type, and returns that.
func (f *framer) until(t *testing.T, typ http2.FrameType) http2.Frame {
	t.Helper()
	if err := f.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if frame.Header().Type == typ {
			return frame
		}
	}
}

// TestConnectionOverTheLimitWithoutAQueryIsRecorded checks that over HTTP a caller over
// its limit that sends much but no query has a record, and that its first answer is the
// last one.
func TestConnectionOverTheLimitWithoutAQueryIsRecorded(t *testing.T) {
	t.Parallel()
	for name, say := range map[string]func(*framer) error{
		"a request that is no query": func(f *framer) error {
			return f.request(":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", "/")
		},
		"pings": func(f *framer) error {
			for range 200 {
				if err := f.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return f.WriteGoAway(0, http2.ErrCodeNo, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t, options{connections: 1})
			first := g.dial(t, "dot", "sidecar")
			ask(t, first, "denied.example")
			g.next(t)
			f := g.frames(t, "sidecar")
			ended := f.drain()
			if err := say(f); err != nil {
				t.Fatal(err)
			}
			r := g.next(t)
			if r.Event != "decision" || r.Wire != "doh" || r.Verdict+" "+r.Reason != "fail rate-limited" || r.RCode != "" {
				t.Errorf("record %+v", r)
			}
			_ = f.conn.SetReadDeadline(time.Now().Add(patience))
			<-ended
			g.stop()
			waitFor(t, "end", func() bool { return g.Registry().Len() == 0 })
			g.none(t)
		})
	}
}
