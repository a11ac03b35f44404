package dns_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// h2Client is a client of HTTP/2.
type h2Client struct {
	*framer

	decoder *hpack.Decoder
	got     response // response that is being read
	leaving bool     // the server has sent GOAWAY
}

// response is an answer on a stream.
type response struct {
	interim, status, reason string
	body                    []byte
}

// sharedFrames begins HTTP/2 on a connection to the listener for CONNECT and DoH.
func (g *gateway) sharedFrames(t *testing.T, name string) *h2Client {
	t.Helper()
	c := &h2Client{framer: newFramer(t, tls.Client(dialTCP(t, g.both), g.tls(t, name, "h2")))}
	c.decoder = hpack.NewDecoder(4096, func(field hpack.HeaderField) {
		switch {
		case field.Name == ":status" && field.Value < "200":
			c.got.interim = field.Value
		case field.Name == ":status":
			c.got.status = field.Value
		case field.Name == "proxy-status":
			_, rest, _ := strings.Cut(field.Value, "; reason=")
			c.got.reason, _, _ = strings.Cut(rest, ";")
		}
	})
	return c
}

// response reads frames until the stream with a number has ended, or was reset. No other
// stream may be answered before.
func (f *h2Client) response(t *testing.T, stream uint32) response {
	t.Helper()
	f.got = response{}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("stream %d: %v", stream, err)
		}
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			if _, err := f.decoder.Write(frame.HeaderBlockFragment()); err != nil {
				t.Fatal(err)
			}
			if frame.StreamID == stream && frame.StreamEnded() {
				return f.got
			}
		case *http2.DataFrame:
			if frame.StreamID == stream {
				f.got.body = append(f.got.body, frame.Data()...)
				if frame.StreamEnded() {
					return f.got
				}
			}
		case *http2.GoAwayFrame:
			f.leaving = true
		case *http2.RSTStreamFrame:
			if frame.StreamID == stream {
				return f.got
			}
		}
	}
}

// queryFields returns the pseudo-header fields of a GET for a name.
func queryFields(name string) []string {
	return []string{
		":method", "GET", ":scheme", "https", ":authority", "gateway.example",
		":path", dns.DoHPath + "?dns=" + base64.RawURLEncoding.EncodeToString(must(question(name).Pack())),
	}
}

// postFields returns the head of a POST with more fields.
func postFields(more ...string) []string {
	return append([]string{
		":method", "POST", ":scheme", "https", ":authority", "gateway.example", ":path", dns.DoHPath, "content-type", "application/dns-message",
	}, more...)
}

// TestSharedListenerReadsQueriesOverHTTP2 checks which streams are queries, and that the
// others are refused as they are on any listener, all on one connection.
func TestSharedListenerReadsQueriesOverHTTP2(t *testing.T) {
	g := newGateway(t, options{})
	msg := string(must(question("denied.example").Pack()))
	length := fmt.Sprint(len(msg))
	replaced := func(name, value string) []string {
		fields := queryFields("denied.example")
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == name {
				fields[i+1] = value
			}
		}
		return fields
	}
	f := g.sharedFrames(t, "sidecar")
	for _, row := range []struct {
		name   string
		fields []string
		body   string // "" means that the head ends the stream
		status string
		record string // wire and reason; "" means that there is no record
	}{
		{"GET", queryFields("denied.example"), "", "200", "doh not-on-allowlist"},
		{"a Host beside :authority", append(queryFields("denied.example"), "host", "GATEWAY.example"), "", "200", "doh not-on-allowlist"},
		{"POST", postFields("content-length", length), msg, "200", "doh not-on-allowlist"},
		{"POST without a length", postFields(), msg, "200", "doh not-on-allowlist"},
		{"a body that is shorter than its length", postFields("content-length", "100"), msg, "400", ""},
		{"a body that is longer than its length", postFields("content-length", "20"), msg, "400", ""},
		{"a length and no body", postFields("content-length", length), "", "400", "h2 malformed-header"},
		{"a body that is awaited", postFields("content-length", length, "expect", "100-continue"), msg, "200", "doh not-on-allowlist"},
		{"no body", postFields(), "", "400", ""},
		{"a long body", postFields(), strings.Repeat("a", 5000), "413", ""},
		{"another method", replaced(":method", "DELETE"), "", "405", ""},
		{"HEAD", replaced(":method", "HEAD"), "", "405", ""},
		{"another authority", replaced(":authority", "other.example"), "", "400", "h2 malformed-target"},
		{"another port", replaced(":authority", "gateway.example:1"), "", "400", "h2 malformed-target"},
		{"another Host", append(queryFields("denied.example"), "host", "other.example"), "", "400", "h2 authority-mismatch"},
		{"another path", replaced(":path", "/"), "", "400", "h2 malformed-target"},
		{"another scheme", replaced(":scheme", "http"), "", "403", "h2 not-on-allowlist"}, // a plain request to gateway.example
	} {
		stream := f.stream
		if err := f.open(row.body == "", row.fields...); err != nil {
			t.Fatal(err)
		}
		if row.body != "" {
			if err := f.WriteData(stream, true, []byte(row.body)); err != nil {
				t.Fatal(err)
			}
		}
		got := f.response(t, stream)
		if got.status != row.status {
			t.Errorf("%s: answered %s %s %.100q, want %s", row.name, got.status, got.reason, got.body, row.status)
		}
		if awaited := strings.Contains(row.name, "awaited"); (got.interim == "100") != awaited {
			t.Errorf("%s: the interim answer is %q", row.name, got.interim)
		}
		if got.status == "200" {
			var a mdns.Msg
			if err := a.Unpack(got.body); err != nil || say(&a) != deniedAnswer {
				t.Errorf("%s: answered %v, %v", row.name, &a, err)
			}
		}
		if row.record == "" {
			g.none(t)
		} else if r := g.next(t); r.Wire+" "+r.Reason != row.record || r.Listener != "both" {
			t.Errorf("%s: record %+v, want %s", row.name, r, row.record)
		}
	}
	waitFor(t, "end of the queries", func() bool { return g.Registry().Len() == 0 })
}

// TestResetQueryBlamesNoServer checks that a query whose stream is reset during its look-up
// is recorded as one whose client has left, and that other streams are not affected.
func TestResetQueryBlamesNoServer(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	g := newGateway(t, options{lookup: func(resolver lookup) lookup {
		return func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error) {
			if q.Name.String() == "alias.example" {
				held <- struct{}{}
				select {
				case <-release:
				case <-ctx.Done():
				}
			}
			return resolver(ctx, a, q)
		}
	}})
	f := g.sharedFrames(t, "sidecar")
	reset := f.stream
	if err := f.request(queryFields("alias.example")...); err != nil {
		t.Fatal(err)
	}
	<-held
	if err := f.WriteRSTStream(reset, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	stream := f.stream
	if err := f.request(queryFields("allowed.example")...); err != nil {
		t.Fatal(err)
	}
	if got := f.response(t, stream); got.status != "200" {
		t.Errorf("another stream is answered %s", got.status)
	}
	if r := g.next(t); r.Host != "allowed.example" || r.Verdict != "allow" {
		t.Errorf("record %+v", r)
	}
	close(release)
	if r := g.next(t); r.Host != "alias.example" || r.Verdict+" "+r.Reason != "fail client-gone" || r.RCode != "" {
		t.Errorf("record %+v", r)
	}
}

// TestQueryWithoutASlotLeavesItsConnection checks that a query on a stream for which there
// is no slot is refused as busy, and that the connection goes on.
func TestQueryWithoutASlotLeavesItsConnection(t *testing.T) {
	lookup, waiting, release := holding(t)
	g := newGateway(t, options{requests: 8, lookup: lookup}) // three for an identity
	f := g.sharedFrames(t, "sidecar")
	for i := range 2 {
		if err := f.request(queryFields(fmt.Sprintf("a%d.wild.example", i))...); err != nil {
			t.Fatal(err)
		}
		<-waiting
	}
	stream := f.stream
	if err := f.request(queryFields("denied.example")...); err != nil {
		t.Fatal(err)
	}
	var a mdns.Msg
	if got := f.response(t, stream); a.Unpack(got.body) != nil || say(&a) != "REFUSED, ede 18 busy" {
		t.Errorf("answered %s %v", got.status, &a)
	}
	if r := g.next(t); r.text() != "fail busy A REFUSED local" || !strings.HasPrefix(r.Detail, "limits.connections") {
		t.Errorf("record %+v", r)
	}
	release()
	for range 2 {
		g.next(t)
	}
	waitFor(t, "a slot for another stream", func() bool {
		stream := f.stream
		if err := f.request(queryFields("denied.example")...); err != nil {
			t.Fatal(err)
		}
		got := f.response(t, stream)
		g.next(t)
		return got.status == fmt.Sprint(http.StatusOK) && a.Unpack(got.body) == nil && say(&a) == deniedAnswer
	})
	if f.leaving {
		t.Error("the connection is to end")
	}
}

// TestQueriesOverTheLimitEndTheirConnection checks that a request without a query that is
// over the budget of its caller makes the server leave the connection.
func TestQueriesOverTheLimitEndTheirConnection(t *testing.T) {
	g := newGateway(t, options{perSecond: 1})
	f := g.sharedFrames(t, "sidecar")
	for range 50 {
		stream := f.stream
		if err := f.request(postFields()...); err != nil {
			t.Fatal(err)
		}
		if got := f.response(t, stream); got.status == fmt.Sprint(http.StatusTooManyRequests) {
			break
		}
	}
	for !f.leaving {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("no GOAWAY: %v", err)
		}
		_, f.leaving = frame.(*http2.GoAwayFrame)
	}
}
