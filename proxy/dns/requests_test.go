package dns_test

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// enough is more than the callers of these tests may send, who have the budget of one
// second.
const enough = 300

// TestRequestsWithoutAQuerySpendTheBudget checks, over both versions of HTTP, that each
// request without a query spends a query of the budget, that the connection ends when none
// is left, and that other callers are not affected.
func TestRequestsWithoutAQuerySpendTheBudget(t *testing.T) {
	text := base64.RawURLEncoding.EncodeToString(must(question("allowed.example").Pack()))
	response := must(question("allowed.example").Pack())
	response[2] |= 0x80
	for name, row := range map[string]struct {
		method, path, contentType string
		body                      []byte
		want                      int
	}{
		"another path":                  {"GET", "/?dns=" + text, "", nil, 404},
		"another method":                {"DELETE", "/dns-query", "", nil, 405},
		"another type of body":          {"POST", "/dns-query", "text/plain", []byte("x"), 415},
		"no base64":                     {"GET", "/dns-query?dns=%25", "", nil, 400},
		"no parameter":                  {"GET", "/dns-query", "", nil, 400},
		"a long parameter":              {"GET", "/dns-query?dns=" + strings.Repeat("A", 6000), "", nil, 413},
		"a long body":                   {"POST", "/dns-query", "application/dns-message", make([]byte, 5000), 413},
		"no body":                       {"POST", "/dns-query", "application/dns-message", nil, 400},
		"a response":                    {"POST", "/dns-query", "application/dns-message", response, 400},
		"half a header":                 {"GET", "/dns-query?dns=AAAA", "", nil, 400},
		"OPTIONS for the server itself": {"OPTIONS", "*", "", nil, 404},
		"the path in capitals":          {"GET", "/DNS-QUERY?dns=" + text, "", nil, 404},
	} {
		for _, version := range []int{1, 2} {
			if version == 2 && row.path == "*" {
				continue // the client cannot write this request
			}
			g := newGateway(t, options{perSecond: 1})
			c := g.dialDoH(t, "sidecar")
			if version == 1 {
				transport := c.Transport.(*http.Transport)
				transport.ForceAttemptHTTP2, transport.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
			}
			large := len(row.body)+len(row.path) > 1000 // its bytes alone exceed the budget
			answers := map[int]int{}
			for i := 0; i < enough && answers[429] == 0; i++ {
				req := must(http.NewRequestWithContext(t.Context(), row.method, "https://"+g.doh.String()+"/", bytes.NewReader(row.body)))
				if row.path == "*" {
					req.URL.Opaque = "*"
				} else {
					req.URL = must(req.URL.Parse(row.path))
				}
				if row.contentType != "" {
					req.Header.Set("Content-Type", row.contentType)
				}
				resp, err := c.Do(req)
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				if large && (err != nil || resp.Close) { // the response may be lost when the connection closes
					answers[row.want], answers[429] = 1, 1
					break
				}
				if err != nil {
					t.Fatalf("%s: %.200s", name, err)
				}
				answers[resp.StatusCode]++
				if limited := resp.StatusCode == 429; limited != (resp.Header.Get("Retry-After") != "") || version == 1 && limited != resp.Close {
					t.Errorf("%s, HTTP/%d: %s %v", name, version, resp.Status, resp.Header)
				}
			}
			if answers[429] != 1 || answers[row.want] == 0 || len(answers) != 2 {
				t.Errorf("%s, HTTP/%d: answered %v, want %d and then 429", name, version, answers, row.want)
			}
			if got := g.Stats().DNS; large && got.Ignored+got.Shed == 0 || !large && got.Ignored != uint64(answers[row.want]+1) {
				t.Errorf("%s, HTTP/%d: %+v are counted of %v", name, version, got, answers)
			}
			g.none(t)
			if got := say(ask(t, g.dial(t, "doh", "other"), "other.example")); got != "NOERROR, A 93.184.216.36" {
				t.Errorf("%s: another identity is told %s", name, got)
			}
		}
	}
}

// framer writes and reads HTTP/2 frames.
type framer struct {
	*http2.Framer

	conn   *tls.Conn
	stream uint32
}

func (g *gateway) frames(t *testing.T, name string) *framer {
	t.Helper()
	return newFramer(t, tls.Client(dialTCP(t, g.doh), g.tls(t, name, "h2")))
}

// newFramer begins HTTP/2 on a connection.
func newFramer(t *testing.T, conn *tls.Conn) *framer {
	t.Helper()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := &framer{Framer: http2.NewFramer(conn, conn), conn: conn, stream: 1}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// request opens a stream with the given header fields, and ends it.
func (f *framer) request(fields ...string) error { return f.open(true, fields...) }

// open opens a stream with the given header fields.
func (f *framer) open(whole bool, fields ...string) error {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: f.stream, BlockFragment: block.Bytes(), EndStream: whole, EndHeaders: true})
	f.stream += 2
	return err
}

// drain reads until the connection ends.
func (f *framer) drain() (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, f.conn)
	}()
	return ended
}

// TestHTTP2FramesSpendTheBudget checks that the bytes of what net/http answers or refuses
// itself spend the budget, and that the connection is closed when nothing is left.
func TestHTTP2FramesSpendTheBudget(t *testing.T) {
	get := []string{":method", "GET", ":scheme", "https", ":authority", "x"}
	long := append([]string{":path", "/dns-query"}, get...)
	for range 10 { // all but the first take one byte each (RFC 7541 section 6.1)
		long = append(long, "x", strings.Repeat("y", 3000))
	}
	for name, write := range map[string]func(f *framer) error{
		"a stream without a path": func(f *framer) error { return f.request(get...) },
		"a field twice":           func(f *framer) error { return f.request(append(get, ":path", "/", ":path", "/")...) },
		"capital letters":         func(f *framer) error { return f.request(append(get, ":path", "/", "X", "y")...) },
		"a head that is too long": func(f *framer) error { return f.request(long...) },
		"pings":                   func(f *framer) error { return f.WritePing(false, [8]byte{}) },
		"settings":                func(f *framer) error { return f.WriteSettings() },
		"windows":                 func(f *framer) error { return f.WriteWindowUpdate(0, 1) },
		"an unknown frame":        func(f *framer) error { return f.WriteRawFrame(99, 0, 0, []byte("x")) },
	} {
		g := newGateway(t, options{perSecond: 1})
		f := g.frames(t, "sidecar")
		ended := f.drain()
		var err error
		for i := 0; i < 50_000 && err == nil; i++ {
			err = write(f)
		}
		select { // the sockets may have had room for all of it before the gateway has read any
		case <-ended:
		case <-time.After(patience / 2): // before the deadline of the connection
			t.Errorf("%s: the connection stays open", name)
			continue
		}
		if got := g.Stats().DNS.Shed; got == 0 {
			t.Errorf("%s: that it was closed is not counted", name)
		}
		g.none(t)
	}
}

// TestRequestsSpendTheBudgetOnce checks that a caller can send as many requests on a
// connection as its budget has queries, if their heads have the usual size.
func TestRequestsSpendTheBudgetOnce(t *testing.T) {
	const queries = 100
	g := newGateway(t, options{perSecond: queries + 10})
	for _, padding := range []string{"", strings.Repeat("x", 600)} {
		c := g.dialDoH(t, "sidecar")
		for range queries / 2 {
			req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, c.url, bytes.NewReader(must(question("allowed.example").Pack()))))
			req.Header.Set("Content-Type", "application/dns-message")
			req.Header.Set("X-Padding", padding)
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if r := g.next(t); r.Reason != "" || resp.StatusCode != 200 {
				t.Fatalf("%s, %+v", resp.Status, r)
			}
		}
	}
	if got := g.Stats().DNS; got.Shed != 0 || got.Ignored != 0 {
		t.Errorf("%+v", got)
	}
}

// TestBurstIsAnswered checks that requests over HTTP/2 which come in one piece, and exceed
// the caller's budget, are all answered on a connection that stays open.
func TestBurstIsAnswered(t *testing.T) {
	const queries = 60
	g := newGateway(t, options{perSecond: 1})
	f := g.frames(t, "sidecar")
	var burst bytes.Buffer
	writer := &framer{Framer: http2.NewFramer(&burst, nil), stream: 1}
	path := "/dns-query?dns=" + base64.RawURLEncoding.EncodeToString(must(question("allowed.example").Pack()))
	for range queries {
		if err := writer.request(":method", "GET", ":scheme", "https", ":authority", "gateway.example", ":path", path,
			"accept", "application/dns-message", "user-agent", strings.Repeat("x", 200)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.conn.Write(burst.Bytes()); err != nil {
		t.Fatal(err)
	}
	for answered := 0; answered < queries; {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("after %d answers of %d: %v", answered, queries, err)
		}
		if frame.Header().Type == http2.FrameData && frame.Header().Flags.Has(http2.FlagDataEndStream) {
			answered++
		}
	}
	if got := g.Stats().DNS; got.Shed != 0 || got.Ignored != 0 {
		t.Errorf("%+v", got)
	}
}

// TestResetStreamsSpendTheBudget checks that a query whose stream is reset at once spends
// the budget.
func TestResetStreamsSpendTheBudget(t *testing.T) {
	g := newGateway(t, options{perSecond: 1})
	f := g.frames(t, "sidecar")
	f.drain()
	path := "/dns-query?dns=" + base64.RawURLEncoding.EncodeToString(must(question("denied.example").Pack()))
	tcp := g.dial(t, "tcp", "")
	for range enough {
		for range 4 {
			stream := f.stream
			if err := f.request(":method", "GET", ":scheme", "https", ":authority", "x", ":path", path); err != nil {
				t.Fatal(err)
			}
			if err := f.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(say(ask(t, tcp, "allowed.example")), "rate-limited") {
			return
		}
	}
	t.Error("queries that were reset cost nothing")
}
