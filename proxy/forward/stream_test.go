package forward

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// TestOriginGetsTheRequestOfAStream checks what an origin receives, byte for byte.
func TestOriginGetsTheRequestOfAStream(t *testing.T) {
	for name, row := range map[string]struct {
		method string
		length int64
		fields []string
		body   []string // writes of the client
		want   string
	}{
		"no body": {
			"GET", 0,
			[]string{"user-agent", "x/1", "x-two", "1", "x-two", "2", "cookie", "a=b", "cookie", "c=d"},
			nil,
			"GET / HTTP/1.1\r\nHost: a.example\r\nUser-Agent: x/1\r\nCookie: a=b; c=d\r\nVia: 2.0 exeat\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n",
		},
		"a Host of its own": {
			"GET", 0,
			[]string{"host", "evil.example"},
			nil,
			"GET / HTTP/1.1\r\nHost: a.example\r\nVia: 2.0 exeat\r\n\r\n",
		},
		"a length": {
			"POST", 5,
			[]string{"content-length", "5"},
			[]string{"hello"},
			"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nVia: 2.0 exeat\r\n\r\nhello",
		},
		"a length and many writes": {
			"POST", 5,
			[]string{"content-length", "5"},
			[]string{"h", "el", "lo"},
			"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nVia: 2.0 exeat\r\n\r\nhello",
		},
		"a length of zero": {
			"POST", 0,
			[]string{"content-length", "0"},
			nil,
			"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nVia: 2.0 exeat\r\n\r\n",
		},
		"no length": {
			"POST", head.Chunked, nil,
			[]string{"hel", "lo"},
			"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nVia: 2.0 exeat\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
		},
		"no length and no bytes": {
			"GET", head.Chunked, nil, nil,
			"GET / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nVia: 2.0 exeat\r\n\r\n0\r\n\r\n",
		},
		"bytes that look like chunks": {
			"POST", head.Chunked, nil,
			[]string{"0\r\n\r\n"},
			"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nVia: 2.0 exeat\r\n\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n",
		},
		"fields that are not sent on": {
			"POST", head.Chunked,
			[]string{"te", "trailers", "trailer", "x-sum", "proxy-authorization", "Basic x", "x-exeat-trace", "x", "forwarded", "for=10.1.2.3"},
			nil,
			"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nVia: 2.0 exeat\r\n\r\n0\r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			c := r.request(t, row.method, "http://a.example/", row.length, row.fields...)
			r.start(t.Context(), c)
			go func() {
				for _, p := range row.body {
					_, _ = io.WriteString(c.client, p)
				}
				_ = c.client.Close()
			}()
			conn, _ := r.accept(t)
			got := make([]byte, len(row.want))
			if n, err := io.ReadFull(conn, got); err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			}
			if diff := cmp.Diff(row.want, string(got)); diff != "" {
				t.Errorf("the origin got (+), want (-): %s", diff)
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			res := c.result(t)
			if want := "HEAD 200 | Content-Length: 2 | Via: 1.1 exeat\nDATA ok\nTRAILER"; c.answer() != want || !res.Complete || res.Cut || res.Linger || res.Reusable {
				t.Errorf("%+v", res)
			}
			if res.Up != int64(len(row.want)) {
				t.Errorf("%d bytes up, want %d", res.Up, len(row.want))
			}
		})
	}
}

// TestStreamGetsTheAnswer checks what is written to a stream.
func TestStreamGetsTheAnswer(t *testing.T) {
	before := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler)) // net/http logs bytes behind an answer
	t.Cleanup(func() { slog.SetDefault(before) })
	for name, row := range map[string]struct{ method, origin, want string }{
		"a length":                      {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HEAD 200 | Content-Length: 2 | Via: 1.1 exeat\nDATA ok\nTRAILER"},
		"more bytes than the length":    {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", "HEAD 200 | Content-Length: 2 | Via: 1.1 exeat\nDATA ok\nTRAILER"},
		"HEAD":                          {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", "HEAD 200 END | Content-Length: 5000 | Via: 1.1 exeat"},
		"HEAD without a length":         {"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n", "HEAD 200 END | Via: 1.1 exeat"},
		"204":                           {"GET", "HTTP/1.1 204 No Content\r\n\r\n", "HEAD 204 END | Via: 1.1 exeat"},
		"304 with a length":             {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "HEAD 304 END | Content-Length: 7 | Via: 1.1 exeat"},
		"an empty body":                 {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HEAD 200 END | Content-Length: 0 | Via: 1.1 exeat"},
		"chunks":                        {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "HEAD 200 | Via: 1.1 exeat\nDATA abcde\nTRAILER"},
		"no chunk but the last":         {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HEAD 200 | Via: 1.1 exeat\nTRAILER"},
		"trailers":                      {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Also, Set-Cookie\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a=b\r\nX-Late: 8\r\nContent-Length: 1\r\n\r\n", "HEAD 200 | Trailer: X-Also, X-Sum | Via: 1.1 exeat\nDATA abc\nTRAILER | X-Late: 8 | X-Sum: 7"},
		"nominated trailers":            {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-sum\r\nTrailer: X-Sum\r\n\r\n0\r\nX-Sum: 7\r\n\r\n", "HEAD 200 | Via: 1.1 exeat\nTRAILER"},
		"until the connection ends":     {"GET", "HTTP/1.1 200 OK\r\n\r\nabc", "HEAD 200 | Via: 1.1 exeat\nDATA abc\nTRAILER"},
		"HTTP/1.0":                      {"GET", "HTTP/1.0 200 OK\r\n\r\nabc", "HEAD 200 | Via: 1.0 exeat\nDATA abc\nTRAILER"},
		"HTTP/1.0 with a length":        {"GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", "HEAD 200 | Content-Length: 3 | Via: 1.0 exeat\nDATA abc\nTRAILER"},
		"interim answers":               {"GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-gone\r\nX-Gone: 1\r\nContent-Length: 3\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "HEAD 103 | Link: </a> | Via: 1.1 exeat\nHEAD 204 END | Via: 1.1 exeat"},
		"fields of the connection":      {"GET", "HTTP/1.1 204 No Content\r\nConnection: X-Gone, keep-alive\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Status: forged\r\nProxy-Support: Session-Based-Authentication\r\nUpgrade: h2c\r\nTE: trailers\r\nAlt-Svc: h3\r\nX: 1\r\n\r\n", "HEAD 204 END | Via: 1.1 exeat | X: 1"},
		"a malformed name":              {"GET", "HTTP/1.1 204 No Content\r\nX : a\r\nX Y: a\r\nZ: 1\r\n\r\n", "HEAD 204 END | Via: 1.1 exeat | Z: 1"},
		"a malformed name in a hint":    {"GET", "HTTP/1.1 103 Early Hints\r\nX : a\r\nZ: 1\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "HEAD 103 | Via: 1.1 exeat | Z: 1\nHEAD 204 END | Via: 1.1 exeat"},
		"a challenge for the request":   {"GET", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"NTLM\"\r\nContent-Length: 0\r\n\r\n", "HEAD 401 END | Content-Length: 0 | Via: 1.1 exeat | Www-Authenticate: Basic realm=\"NTLM\""},
		"the last step of a login":      {"GET", "HTTP/1.1 200 OK\r\nWWW-Authenticate: Negotiate x\r\nContent-Length: 0\r\n\r\n", "HEAD 200 END | Content-Length: 0 | Via: 1.1 exeat | Www-Authenticate: Negotiate x"},
		"a challenge for a connection":  {"GET", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x, NTLM\r\nContent-Length: 0\r\n\r\n", "HEAD 401 END | Content-Length: 0 | Proxy-Status: exeat; details=\"HTTP/2 cannot carry a login that belongs to a connection (Negotiate, NTLM): use HTTP/1.1\" | Via: 1.1 exeat | Www-Authenticate: Basic realm=x, NTLM"},
		"a refusal by the origin":       {"GET", "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nProxy-Authenticate: Negotiate\r\n\r\n", "HEAD 407 END | Content-Length: 0 | Via: 1.1 exeat"},
		"a body of an error, in chunks": {"POST", "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", "HEAD 500 | Via: 1.1 exeat\nDATA no\nTRAILER"},
	} {
		t.Run(name, func(t *testing.T) {
			got, res := newRig(t, Config{}).get(t, row.method, row.origin)
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("the stream got (+), want (-): %s", diff)
			}
			if !res.Complete || res.Cut || res.Linger || res.Reusable || res.Err != nil || res.Down == 0 {
				t.Errorf("result %+v", res)
			}
		})
	}
}

// TestIncompleteAnswerHasNoEnd checks that a stream gets no end of an answer that is
// incomplete, and that it is to be reset.
func TestIncompleteAnswerHasNoEnd(t *testing.T) {
	for name, origin := range map[string]string{
		"fewer bytes than the length": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
		"a missing chunk":             "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"a malformed chunk":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nx\r\n",
		"half a trailer":              "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n3\r\nabc\r\n0\r\nX: 1",
	} {
		t.Run(name, func(t *testing.T) {
			got, res := newRig(t, Config{}).get(t, "GET", origin)
			if !strings.HasSuffix(got, "\nDATA abc") {
				t.Errorf("the stream got %q", got)
			}
			if res.Complete || !res.Cut || res.Linger || res.Reusable || res.Err == nil {
				t.Errorf("result %+v", res)
			}
		})
	}
	t.Run("an exchange that is ended", func(t *testing.T) {
		r := newRig(t, Config{})
		c := r.request(t, "GET", "http://a.example/", 0)
		_ = c.client.Close()
		ctx, end := context.WithCancel(t.Context())
		defer end()
		r.start(ctx, c)
		conn, reader := r.accept(t)
		if _, err := http.ReadRequest(reader); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nabc")
		head, body := c.next(t), c.next(t)
		end()
		res := c.result(t)
		if rest := c.answer(); head != "HEAD 200 | Via: 1.1 exeat" || body != "DATA abc" || rest != "" || res.Complete || !res.Cut {
			t.Errorf("the stream got %q, %q and %q, result %+v", head, body, rest, res)
		}
	})
}

// TestInvalidAnswerReachesNoClient checks that an invalid answer of an origin reaches neither
// a client of HTTP/1.1 nor a stream, and has the same reason for both.
func TestInvalidAnswerReachesNoClient(t *testing.T) {
	for name, origin := range map[string]string{
		"nothing":                         "",
		"half a head":                     "HTTP/1.1 200 OK\r\nContent-",
		"something else":                  "220 mail.example ESMTP\r\n",
		"lengths that differ":             "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
		"a head without end":              "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 80<<10) + "\r\n\r\n",
		"chunks in HTTP/1.0":              "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"a coding with a space":           "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"another version":                 "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"257 fields":                      "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Repeat("X:\r\n", 256) + "\r\n",
		"a status of one digit":           "HTTP/1.1 007 x\r\nContent-Length: 0\r\n\r\n",
		"33 interim answers":              strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 33) + "HTTP/1.1 204 No Content\r\n\r\n",
		"a protocol nobody had asked for": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			answer, overStream := r.get(t, "GET", origin)
			if answer != "" || overStream.Reason != allowlist.ResponseFailed || overStream.Down != 0 || !overStream.Sent {
				t.Errorf("the stream got %q, result %+v", answer, overStream)
			}
			near, far := net.Pipe()
			t.Cleanup(func() { _, _ = near.Close(), far.Close() })
			h, err := head.Parse([]byte("GET http://a.example/ HTTP/1.1\r\nHost: x\r\n\r\n"))
			if err != nil {
				t.Fatal(err)
			}
			ex := r.exchange(t, h, 0)
			ex.Client, ex.Reader = near, head.NewReader(near, 0)
			go func() {
				conn := <-r.conns
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				_, _ = io.WriteString(conn, origin)
				_ = conn.Close()
			}()
			overH1 := r.Forward(t.Context(), ex) // a write to the client would not return
			if overH1.Reason != overStream.Reason || overH1.Err == nil || overH1.Err.Error() != overStream.Err.Error() {
				t.Errorf("HTTP/1.1 has %v, %v; the stream has %v, %v", overH1.Reason, overH1.Err, overStream.Reason, overStream.Err)
			}
		})
	}
}

// TestStreamsShareNoLogin checks that a connection to an origin on which a login was offered,
// begun or done is closed after the exchange, even if the streams have Logins in common, and
// that other connections are kept.
func TestStreamsShareNoLogin(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
	for name, row := range map[string]struct {
		credentials, origin string
		problem             string
		kept                bool
	}{
		"no login":                      {"", ok, "", true},
		"a login of the request":        {"Basic dTpw", ok, "", true},
		"a challenge":                   {"", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nContent-Length: 0\r\n", loginNeedsH1, false},
		"a second challenge":            {"NTLM type-1", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM type-2\r\nContent-Length: 0\r\n", loginNeedsH1, false},
		"a login in one step":           {"Negotiate x", ok, "", false},
		"an unknown scheme":             {"X-Corporate x", ok, "", false},
		"an origin that says logged in": {"", ok + "Persistent-Auth: true\r\n", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			var shared Logins
			defer shared.Close()
			var fields []string
			if row.credentials != "" {
				fields = []string{"authorization", row.credentials}
			}
			c := r.request(t, "GET", "http://a.example/", 0, fields...)
			_ = c.client.Close()
			c.Logins = &shared
			told := "Answer was not called"
			c.Answer = func(_ int, problem string, write func() error) error {
				told = problem
				return write()
			}
			r.start(t.Context(), c)
			first, reader := r.accept(t)
			if _, err := http.ReadRequest(reader); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(first, row.origin+"\r\n")
			if res := c.result(t); !res.Complete || told != row.problem {
				t.Errorf("told %q, want %q; result %+v", told, row.problem, res)
			}
			next := r.request(t, "GET", "http://a.example/next", 0)
			_ = next.client.Close()
			next.Logins = &shared
			r.start(t.Context(), next)
			conn := first
			if !row.kept {
				if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
					t.Errorf("the first connection: %v, want its end", err)
				}
				conn, reader = r.accept(t)
			}
			if req, err := http.ReadRequest(reader); err != nil || req.URL.Path != "/next" {
				t.Errorf("the next request: %v", err)
			}
			_, _ = io.WriteString(conn, ok+"\r\n")
			if res := next.result(t); !res.Complete || len(r.conns) > 0 {
				t.Errorf("%d more connections, result %+v", len(r.conns), res)
			}
		})
	}
}
