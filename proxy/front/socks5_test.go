package front_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// The messages of SOCKS5 that most tests need.
const (
	greeting = "\x05\x01\x00"
	selected = "\x05\x00" // the answer to a greeting
	command  = "\x05\x01\x00"
	rejected = "\x05\xff" // the answer to a greeting whose methods are not accepted
)

// named returns the address of a request for a name.
func named(name string, port uint16) string {
	return "\x03" + string([]byte{byte(len(name))}) + name + portOf(port)
}

func portOf(port uint16) string { return string(binary.BigEndian.AppendUint16(nil, port)) }

// replyOf returns the reply with a code.
func replyOf(code byte) string { return string([]byte{5, code}) + "\x00\x01\x00\x00\x00\x00\x00\x00" }

// readSOCKS5 is what a handler gets from a front of SOCKS5.
type readSOCKS5 struct {
	Read  read
	Early string
}

func seenSOCKS5(t *testing.T, r *front.Request) readSOCKS5 {
	t.Helper()
	if !r.SOCKS5 || r.Client == nil || r.Stream || r.Query != nil || r.Reader != nil {
		t.Errorf("%s %s does not look like a request of SOCKS5", r.Method, r.Target)
	}
	got := readSOCKS5{seen(r), string(r.Early())}
	if !got.Read.HeadIsNil || got.Read.Plain {
		t.Errorf("%s %s has a head, or is a plain request", r.Method, r.Target)
	}
	got.Read.HeadIsNil = false
	return got
}

// TestRequestsOfSOCKS sends each message at once, and byte by byte, and checks what the handler gets
// and what the client reads.
func TestRequestsOfSOCKS(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 62)+".", 4) + "abc" // 255 bytes, two more than a name may have
	good := strings.Repeat(strings.Repeat("a", 60)+".", 4) + "abcdefghi"
	connect := func(target, dest string) read { return read{Method: "CONNECT", Target: target, Dest: dest} }
	malformed := func(target string, reason allowlist.Reason, detail string) read {
		return read{Method: "CONNECT", Target: target, Reason: reason, Detail: detail}
	}
	denied := selected + replyOf(2) // the handler denies what has no reason
	bad := selected + replyOf(1)
	for _, row := range []struct {
		name, sent string
		want       read
		early      string
		answer     string
	}{
		{"a name", greeting + command + named("a.example", 443), connect("a.example:443", "a.example:443"), "", denied},
		{"a name in capitals, with a dot", greeting + command + named("A.Example.", 80), connect("A.Example.:80", "a.example:80"), "", denied},
		{"an IPv4 address", greeting + command + "\x01\xc0\x00\x02\x01" + portOf(8443), connect("192.0.2.1:8443", "192.0.2.1:8443"), "", denied},
		{"an IPv6 address", greeting + command + "\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + portOf(443), connect("[2001:db8::1]:443", "[2001:db8::1]:443"), "", denied},
		{"an IPv4 address in IPv6", greeting + command + "\x04" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + portOf(443), connect("[::ffff:192.0.2.1]:443", "192.0.2.1:443"), "", denied},
		{"an IPv4 address as a name", greeting + command + named("192.0.2.1", 443), connect("192.0.2.1:443", "192.0.2.1:443"), "", denied},
		{"an IPv6 address as a name", greeting + command + named("2001:DB8:0::1", 443), connect("[2001:DB8:0::1]:443", "[2001:db8::1]:443"), "", denied},
		{"the longest name", greeting + command + named(good, 443), connect(good+":443", good+":443"), "", denied},
		{"several methods", "\x05\x03\x02\x00\x01" + command + named("a.example", 443), connect("a.example:443", "a.example:443"), "", denied},
		{"every method", "\x05\xff" + every(0, 255) + command + named("a.example", 443), connect("a.example:443", "a.example:443"), "", denied},
		{"bytes behind the request", greeting + command + named("a.example", 443) + "\x16\x03\x01", connect("a.example:443", "a.example:443"), "\x16\x03\x01", denied},
		{"the last port", greeting + command + named("a.example", 65535), connect("a.example:65535", "a.example:65535"), "", denied},

		{"too long a name", greeting + command + named(long, 443), malformed(long+":443", allowlist.MalformedTarget, "?"), "", bad},
		{"an empty name", greeting + command + named("", 443), malformed(":443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with an empty label", greeting + command + named("a..example", 443), malformed("a..example:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name of a dot", greeting + command + named(".", 443), malformed(".:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with a zero byte", greeting + command + named("a.example\x00.b", 443), malformed("a.example\x00.b:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with a space", greeting + command + named("a.example ", 443), malformed("a.example :443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with a line end", greeting + command + named("a.example\r\n", 443), malformed("a.example\r\n:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with userinfo", greeting + command + named("u@a.example", 443), malformed("u@a.example:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with a path", greeting + command + named("a.example/x", 443), malformed("a.example/x:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a name with a port", greeting + command + named("a.example:80", 443), malformed("[a.example:80]:443", allowlist.MalformedTarget, "?"), "", bad},
		{"an address in brackets", greeting + command + named("[::1]", 443), malformed("[[::1]]:443", allowlist.MalformedTarget, "?"), "", bad},
		{"an address that ends the brackets", greeting + command + named("::1]:80", 443), malformed("[::1]:80]:443", allowlist.MalformedPort, "?"), "", bad},
		{"an address with a zone", greeting + command + named("fe80::1%eth0", 443), malformed("[fe80::1%eth0]:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a short IPv4 address", greeting + command + named("127.1", 443), malformed("127.1:443", allowlist.MalformedTarget, "?"), "", bad},
		{"a hexadecimal address", greeting + command + named("0x7f000001", 443), malformed("0x7f000001:443", allowlist.MalformedTarget, "?"), "", bad},
		{"port 0", greeting + command + named("a.example", 0), malformed("a.example:0", allowlist.MalformedPort, "?"), "", bad},
		{"an address with port 0", greeting + command + "\x01\xc0\x00\x02\x01" + portOf(0), malformed("192.0.2.1:0", allowlist.MalformedPort, "?"), "", bad},

		{"BIND", greeting + "\x05\x02\x00" + named("a.example", 443), read{
			Method: "BIND", Target: "a.example:443", Dest: "a.example:443", Reason: allowlist.ConnectOnly,
			Detail: "the command 2 of SOCKS5 is not supported: it must be 1, CONNECT",
		}, "", selected + replyOf(7)},
		{"UDP ASSOCIATE", greeting + "\x05\x03\x00\x01\x00\x00\x00\x00" + portOf(0), read{
			Method: "UDP ASSOCIATE", Target: "0.0.0.0:0", Reason: allowlist.ConnectOnly,
			Detail: "the command 3 of SOCKS5 is not supported: it must be 1, CONNECT",
		}, "", selected + replyOf(7)},
		{"an unknown command", greeting + "\x05\xf0\x00" + named("a.example", 443), read{
			Target: "a.example:443", Dest: "a.example:443", Reason: allowlist.ConnectOnly,
			Detail: "the command 240 of SOCKS5 is not supported: it must be 1, CONNECT",
		}, "", selected + replyOf(7)},
		{"an unknown type of address", greeting + command + "\x02", read{
			Method: "CONNECT", Reason: allowlist.MalformedTarget, Detail: "the address type 2 is unknown",
		}, "", selected + replyOf(8)},
		{"an unknown command and type of address", greeting + "\x05\x04\x00\x00", read{
			Reason: allowlist.ConnectOnly, Detail: "the command 4 of SOCKS5 is not supported: it must be 1, CONNECT",
		}, "", selected + replyOf(7)},
		{"another version of the request", greeting + "\x04\x01\x00\x03", read{
			Reason: allowlist.MalformedRequestLine,
			Detail: "the request has the version 4, which must be 5, and the reserved byte 0, which must be 0",
		}, "", bad},
		{"a reserved byte", greeting + "\x05\x01\x01\x03", read{
			Reason: allowlist.MalformedRequestLine,
			Detail: "the request has the version 5, which must be 5, and the reserved byte 1, which must be 0",
		}, "", bad},

		{"only passwords", "\x05\x01\x02", read{
			Reason: allowlist.MalformedHeader, Detail: "the client does not offer to connect without authentication, which is method 0 of SOCKS5",
		}, "", rejected},
		{"no methods", "\x05\x00", read{
			Reason: allowlist.MalformedHeader, Detail: "the client does not offer to connect without authentication, which is method 0 of SOCKS5",
		}, "", rejected},
		{"every other method", "\x05\xff" + every(1, 256), read{
			Reason: allowlist.MalformedHeader, Detail: "the client does not offer to connect without authentication, which is method 0 of SOCKS5",
		}, "", rejected},
		{"SOCKS4", "\x04\x01\x01\xbb\xc0\x00\x02\x01\x00", read{
			Reason: allowlist.UnsupportedVersion, Detail: "SOCKS4 came on a listener that speaks SOCKS5",
		}, "", rejected},
		{"TLS", "\x16\x03\x01\x02\x00", read{
			Reason: allowlist.MalformedRequestLine, Detail: "a TLS ClientHello came on a listener that speaks SOCKS5 without TLS",
		}, "", rejected},
		{"a zero byte", "\x00\x01", read{
			Reason: allowlist.MalformedRequestLine, Detail: "the first byte is 0x00, and 0x05 in SOCKS5",
		}, "", rejected},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, one := range []bool{false, true} {
				asked := make(chan readSOCKS5, 10)
				s := serveBy(t, front.NewSOCKS5(front.Config{}), handler(func(r *front.Request) front.Answer {
					asked <- seenSOCKS5(t, r)
					return refusing(allowlist.NotOnAllowlist)(r)
				}), func(conn net.Conn) net.Conn {
					if one {
						return byBytes{conn.(*net.TCPConn)}
					}
					return conn
				})
				c := s.dial(t)
				c.send(t, row.sent)
				answer, err := io.ReadAll(c)
				if err != nil || string(answer) != row.answer {
					t.Errorf("byte by byte %v: answered %q, %v, want %q", one, answer, err, row.answer)
				}
				_ = c.Close()
				if e := s.end(t); e != (ending{}) || len(asked) != 1 {
					t.Fatalf("byte by byte %v: ended as %+v after %d requests", one, e, len(asked))
				}
				got := <-asked
				if row.want.Detail == "?" && got.Read.Detail != "" { // the text of package allowlist
					got.Read.Detail = "?"
				}
				if one {
					row.early = "" // it waits in the socket
				}
				if diff := cmp.Diff(readSOCKS5{row.want, row.early}, got); diff != "" {
					t.Errorf("byte by byte %v: the handler got (-want +got):\n%s", one, diff)
				}
			}
		})
	}
}

// every returns the bytes from one to below another.
func every(from, below int) string {
	var all []byte
	for b := from; b < below; b++ {
		all = append(all, byte(b))
	}
	return string(all)
}

// byBytes is a connection that is read byte by byte.
type byBytes struct{ *net.TCPConn }

func (c byBytes) Read(p []byte) (int, error) { return c.TCPConn.Read(p[:min(len(p), 1)]) }

// TestSOCKS5ClientThatLeaves ends the client's direction after a part of a good request. The
// handler gets a request to record, unless nothing was sent.
func TestSOCKS5ClientThatLeaves(t *testing.T) {
	whole := greeting + command + named("a.example", 443)
	asked := make(chan readSOCKS5, 10)
	s := serveBy(t, front.NewSOCKS5(front.Config{}), handler(func(r *front.Request) front.Answer {
		asked <- seenSOCKS5(t, r)
		return refusing(allowlist.NotOnAllowlist)(r)
	}), nil)
	for n := range len(whole) {
		c := s.dial(t)
		c.send(t, whole[:n])
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		want := ""
		if n >= len(greeting) {
			want = selected
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("after %d bytes: answered %q, %v, want %q", n, got, err, want)
		}
		_ = c.Close()
		e := s.end(t)
		if n == 0 {
			if e != (ending{}) || len(asked) > 0 {
				t.Errorf("a silent client: %+v, %d requests", e, len(asked))
			}
			continue
		}
		if got := <-asked; e != (ending{}) || got.Read.Reason != allowlist.ClientGone || !strings.HasPrefix(got.Read.Cause, "reading a message, of which ") {
			t.Errorf("after %d bytes: %+v, %+v", n, e, got)
		}
	}
}

// TestSOCKS5HeadTimeout checks that greeting and request together have HeadTimeout, and that
// a silent client gets no record.
func TestSOCKS5HeadTimeout(t *testing.T) {
	const timeout = 5 * time.Second
	for _, row := range []struct {
		name, sent, answer, cause string
	}{
		{"nothing", "", "", ""},
		{"a version", "\x05", rejected, "1 bytes of a message came within 5s"},
		{"a list that never comes", "\x05\x02\x00", rejected, "3 bytes of a message came within 5s"},
		{"a greeting", greeting, selected + replyOf(1), "0 bytes of a message came within 5s"},
		{"half a request", greeting + command + named("a.example", 443)[:4], selected + replyOf(1), "7 bytes of a message came within 5s"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []readSOCKS5
				c, ended := inBubbleOf(t, front.NewSOCKS5(front.Config{HeadTimeout: timeout}), handler(func(r *front.Request) front.Answer {
					asked = append(asked, seenSOCKS5(t, r))
					return refused(r.Reason)
				}))
				begin := time.Now()
				go func() { _, _ = io.WriteString(c, row.sent) }()
				got, err := io.ReadAll(c)
				if took := time.Since(begin); err != nil || string(got) != row.answer || took != timeout {
					t.Errorf("after %s came %q, %v, want %q", took, got, err, row.answer)
				}
				if e := <-ended; e != (ending{}) {
					t.Errorf("ended as %+v", e)
				}
				switch {
				case row.cause == "":
					if len(asked) > 0 {
						t.Errorf("the handler got %+v", asked)
					}
				case len(asked) != 1 || asked[0].Read.Reason != allowlist.HeadTimeout || asked[0].Read.Cause != row.cause:
					t.Errorf("the handler got %+v", asked)
				}
			})
		})
	}
}

// TestSOCKS5Tunnel checks the order of a tunnel: the client is told, Done is called, and the
// tunnel runs with the early bytes.
func TestSOCKS5Tunnel(t *testing.T) {
	var o outcome
	s := serveBy(t, front.NewSOCKS5(front.Config{}), handler(func(r *front.Request) front.Answer {
		client := r.Client
		var early []byte
		return front.Answer{
			Kind: front.Opened,
			Done: func(err error) { o.done(err); early = r.Early() },
			Run: func() {
				_, _ = client.Write(early)
				_, _ = io.Copy(client, client)
			},
		}
	}), nil)
	c := s.dial(t)
	c.send(t, greeting+command+named("a.example", 443)+"early, ")
	c.send(t, "late")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	want := selected + replyOf(0) + "early, late"
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Errorf("the client got %q, %v, want %q", got, err, want)
	}
	if e := s.end(t); e != (ending{tunnel: true}) {
		t.Errorf("ended as %+v", e)
	}
	o.check(t, "a tunnel", true)
}

// TestSOCKS5Refusals checks the replies to a good request, by the reason of its refusal.
func TestSOCKS5Refusals(t *testing.T) {
	unroutable := front.Answer{Refusal: refusal.Refusal{Reason: allowlist.DialFailed, Cause: allowlist.CauseUnroutable}}
	for _, row := range []struct {
		name       string
		disclosure refusal.Disclosure
		answer     front.Answer
		want       string
	}{
		{"denied", refusal.Full, refused(allowlist.NotOnAllowlist), replyOf(2)},
		{"refused by the origin", refusal.Full, refused(allowlist.DialRefused), replyOf(5)},
		{"refused by the origin, which is not disclosed", refusal.None, refused(allowlist.DialRefused), replyOf(4)},
		{"no route", refusal.Full, unroutable, replyOf(4)},
		{"the zero answer", refusal.Full, front.Answer{}, replyOf(1)},
		{"no answer can be sent", refusal.Full, refused(allowlist.ClientGone), ""},
		{"an answer of HTTP", refusal.Full, front.Answer{Kind: front.Local, Response: front.Response{Status: 200}}, ""},
		{"after a panic of the handler", refusal.Full, front.Answer{Kind: front.Forwarded}, ""},
		{"after another one", refusal.Full, front.Answer{Kind: front.Forwarded, End: front.Abort}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var o outcome
			s := serveBy(t, front.NewSOCKS5(front.Config{Disclosure: row.disclosure}), handler(func(*front.Request) front.Answer {
				a := row.answer
				a.Done = o.done
				return a
			}), nil)
			c := s.dial(t)
			c.send(t, greeting+command+named("a.example", 443))
			got, err := io.ReadAll(c)
			aborted := row.answer.End == front.Abort
			if (err != nil) != aborted || string(got) != selected+row.want && !aborted {
				t.Errorf("answered %q, %v, want %q", got, err, selected+row.want)
			}
			_ = c.Close()
			e := s.end(t)
			if e.tunnel || e.panicked != nil || (e.aborted == 1) != aborted {
				t.Errorf("ended as %+v", e)
			}
			if row.answer.Kind == front.Refused {
				o.check(t, row.name, true)
			}
		})
	}
}

// TestSOCKS5OfAnotherReason checks that a reply for a fault of the request is not given for
// another reason.
func TestSOCKS5OfAnotherReason(t *testing.T) {
	s := serveBy(t, front.NewSOCKS5(front.Config{}), refusingAll(allowlist.Busy), nil)
	for _, sent := range []string{greeting + command + "\x09", greeting + "\x05\x02\x00" + named("a.example", 443)} {
		c := s.dial(t)
		c.send(t, sent)
		if got, err := io.ReadAll(c); err != nil || string(got) != selected+replyOf(1) {
			t.Errorf("answered %q, %v", got, err)
		}
		_ = c.Close()
		s.end(t)
	}
}

// refusingAll returns a handler that refuses every request for one reason.
func refusingAll(reason allowlist.Reason) handler {
	return func(*front.Request) front.Answer { return refused(reason) }
}

// TestSOCKS5GetsHTTP checks that a client of HTTP can read what is wrong.
func TestSOCKS5GetsHTTP(t *testing.T) {
	s := serveBy(t, front.NewSOCKS5(front.Config{}), handler(func(r *front.Request) front.Answer {
		a := refused(r.Reason)
		a.Refusal.Detail = r.Detail
		return a
	}), nil)
	for _, text := range []string{connect, plain, "connect a.example:443 HTTP/1.1\r\n\r\n"} {
		c := s.dial(t)
		a := c.ask(t, text)
		if a.StatusCode != http.StatusBadRequest || a.reason() != "malformed-request-line" || !a.Close || !strings.Contains(a.Status, "speaks SOCKS5 and not HTTP: write socks5h://") {
			t.Errorf("%q was answered %s, %q", text, a.Status, a.reason())
		}
		c.gone(t)
		_ = c.Close()
		s.end(t)
	}
}

// TestSOCKS5WriteThatFails checks that Done is called with the error of an answer that cannot
// be written, and that no tunnel runs.
func TestSOCKS5WriteThatFails(t *testing.T) {
	for name, a := range map[string]front.Answer{
		"opened":  {Kind: front.Opened, Run: func() { panic("the tunnel must not run") }},
		"refused": refused(allowlist.NotOnAllowlist),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var o outcome
				a.Done = o.done
				c, ended := inBubbleOf(t, front.NewSOCKS5(front.Config{HeadTimeout: time.Second}), handler(func(*front.Request) front.Answer { return a }))
				c.send(t, greeting)
				if _, err := io.ReadFull(c, make([]byte, len(selected))); err != nil {
					t.Fatal(err)
				}
				c.send(t, command+named("a.example", 443)) // and does not read
				if e := <-ended; e != (ending{cut: 1}) {
					t.Errorf("ended as %+v", e)
				}
				o.check(t, name, false)
			})
		})
	}
	t.Run("the answer to the greeting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var asked []readSOCKS5
			c, ended := inBubbleOf(t, front.NewSOCKS5(front.Config{HeadTimeout: time.Second}), handler(func(r *front.Request) front.Answer {
				asked = append(asked, seenSOCKS5(t, r))
				return refused(r.Reason)
			}))
			c.send(t, greeting) // and does not read
			if e := <-ended; e != (ending{cut: 1}) || len(asked) != 1 || asked[0].Read.Reason != allowlist.ClientGone {
				t.Errorf("ended as %+v, the handler got %+v", e, asked)
			}
		})
	})
	t.Run("a panic", func(t *testing.T) {
		var o outcome
		s := serveBy(t, front.NewSOCKS5(front.Config{}), handler(func(r *front.Request) front.Answer {
			a := refused(r.Reason)
			a.Done = o.done
			return a
		}), func(conn net.Conn) net.Conn { return broken{conn} })
		c := s.dial(t)
		c.send(t, "\x04")
		if e := s.end(t); !errors.Is(e.panicked.(error), errPanic) {
			t.Errorf("ended as %+v", e)
		}
		o.check(t, "a panic", false)
	})
}

// TestSOCKS5Drain checks that a drain ends connections on which nothing has come after a
// second, that Stop ends them at once, and that neither ends one whose message has begun.
func TestSOCKS5Drain(t *testing.T) {
	for _, row := range []struct {
		name, sent string
		stop, late bool // Stop is called, too; the connection comes after Drain
		want       time.Duration
	}{
		{"it is silent", "", false, false, time.Second},
		{"it is silent, and came late", "", false, true, time.Second},
		{"it is silent at the end", "", true, false, 0},
		{"it comes at the end", "", true, true, 0},
		{"it has begun", "\x05", false, false, front.DefaultHeadTimeout},
		{"it has begun at the end", "\x05", true, false, front.DefaultHeadTimeout},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := front.NewSOCKS5(front.Config{})
				drain := func() {
					f.Drain()
					if row.stop {
						f.Stop()
					}
				}
				if row.late {
					drain()
				}
				c, ended := inBubbleOf(t, f, refusing(allowlist.Draining))
				if row.sent != "" {
					c.send(t, row.sent)
				}
				synctest.Wait()
				begin := time.Now()
				if !row.late {
					drain()
				}
				_, err := io.ReadAll(c)
				if took := time.Since(begin); err != nil || took != row.want {
					t.Errorf("it ended after %s, %v, want %s", took, err, row.want)
				}
				if e := <-ended; e != (ending{}) {
					t.Errorf("ended as %+v", e)
				}
			})
		})
	}
}

// TestReplyCode checks the reply for every reason, and for refusals of other gateways.
func TestReplyCode(t *testing.T) {
	for _, row := range []struct {
		status     int
		proxyError string
		want       byte
	}{
		{403, "http_request_denied", 2},
		{403, "destination_ip_prohibited", 2},
		{403, "", 2},
		{407, "http_request_denied", 2},
		{429, "connection_limit_reached", 2},
		{405, "http_request_error", 7},
		{502, "connection_refused", 5},
		{502, "dns_error", 4},
		{502, "destination_unavailable", 4},
		{502, "destination_ip_unroutable", 4},
		{502, "", 4},
		{504, "connection_timeout", 6},
		{504, "dns_timeout", 6},
		{504, "connection_refused", 6},
		{503, "connection_limit_reached", 1},
		{503, "connection_refused", 1},
		{500, "proxy_internal_error", 1},
		{400, "http_request_error", 1},
		{408, "http_request_error", 1},
		{200, "", 1},
		{0, "", 1},
	} {
		if got := front.ReplyCode(row.status, row.proxyError); got != row.want {
			t.Errorf("%d %s: %d, want %d", row.status, row.proxyError, got, row.want)
		}
	}
	for _, reason := range allowlist.Reasons() {
		if code := front.ReplyCode(reason.Info().Status, reason.ProxyError(allowlist.NoCause)); code == 0 {
			t.Errorf("%s: the reply says that the tunnel is open", reason)
		}
	}
}

// FuzzSOCKS5 sends any bytes in pieces of any size. The handler gets one request at most, with
// a destination or a reason. Another reading of the bytes, which is written here, gives the
// same destination, and no byte behind the request is lost.
func FuzzSOCKS5(f *testing.F) {
	for _, sent := range []string{
		greeting + command + named("a.example", 443) + "early",
		greeting + command + "\x01\xc0\x00\x02\x01\x01\xbb",
		greeting + command + "\x04" + strings.Repeat("\x20", 16) + "\x01\xbb",
		greeting + command + named("2001:db8::1", 443),
		greeting + command + named("A.example.", 1),
		"\x05\x02\x02\x00" + command + named("a.example", 0),
		greeting + "\x05\x03\x00" + named("a.example", 443),
		greeting + command + "\x02",
		"\x05\x01\x02", "\x04\x01", "\x16\x03", "GET / HTTP/1.1\r\n\r\n", "",
	} {
		f.Add([]byte(sent), uint8(0))
		f.Add([]byte(sent), uint8(1))
	}
	f.Fuzz(func(t *testing.T, sent []byte, piece uint8) {
		conn := &scripted{rest: sent, piece: int(piece)}
		var asked []*front.Request
		front.NewSOCKS5(front.Config{}).Serve(context.Background(), front.Conn{Conn: conn, Cut: func() {}, Abort: func() {}}, handler(func(r *front.Request) front.Answer {
			asked = append(asked, r)
			return refusing(allowlist.NotOnAllowlist)(r)
		}))
		if len(sent) == 0 {
			if len(asked) > 0 || len(conn.wrote) > 0 {
				t.Errorf("a silent client: %d requests, %q", len(asked), conn.wrote)
			}
			return
		}
		if len(asked) != 1 {
			t.Fatalf("%d requests", len(asked))
		}
		const most = 2 + 255 + 262 // a greeting and a request
		if read := len(sent) - len(conn.rest); read > most {
			t.Errorf("%d bytes were read", read)
		}
		r := asked[0]
		dest, behind, ok := reread(sent)
		if ok != (r.Reason == allowlist.NoReason) {
			t.Fatalf("the reason is %q, of a good request: %v", r.Reason, ok)
		}
		if !ok {
			return
		}
		if r.Method != http.MethodConnect || r.Asked.Dest != dest || r.Asked.Dest.Port == 0 {
			t.Errorf("%s of %s, want %s", r.Method, r.Asked.Dest, dest)
		}
		if got := string(r.Early()) + string(conn.rest); got != string(behind) {
			t.Errorf("behind the request came %q, want %q", got, behind)
		}
		if want := selected + replyOf(2); string(conn.wrote) != want {
			t.Errorf("answered %q, want %q", conn.wrote, want)
		}
	})
}

// reread reads a greeting and a request. ok is false if they must be refused.
func reread(sent []byte) (dest allowlist.Destination, behind []byte, ok bool) {
	take := func(n int) (part []byte) {
		if n > len(sent) {
			sent = nil
			return make([]byte, 255) // no part of any good message
		}
		part, sent = sent[:n], sent[n:]
		return part
	}
	if begin := take(2); begin[0] != 5 || !slices.Contains(take(int(begin[1])), 0) {
		return dest, nil, false
	}
	fixed := take(4)
	if string(fixed[:3]) != command {
		return dest, nil, false
	}
	var host allowlist.Host
	var err error
	switch fixed[3] {
	case 1:
		host = allowlist.HostOf(netip.AddrFrom4([4]byte(take(4))))
	case 3:
		host, err = allowlist.ParseHost(string(take(int(take(1)[0]))))
	case 4:
		host = allowlist.HostOf(netip.AddrFrom16([16]byte(take(16))))
	default:
		return dest, nil, false
	}
	port := binary.BigEndian.Uint16(take(2))
	if err != nil || port == 0 {
		return dest, nil, false
	}
	return allowlist.Destination{Host: host, Port: port}, sent, true
}

// scripted is a connection whose client has sent everything at once and then left.
type scripted struct {
	net.Conn // nil: nothing else is called

	rest  []byte
	piece int // most bytes that a Read returns; 0 means any number
	wrote []byte
}

func (c *scripted) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	if c.piece > 0 {
		p = p[:min(len(p), c.piece)]
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *scripted) Write(p []byte) (int, error) {
	c.wrote = append(c.wrote, p...)
	return len(p), nil
}

func (*scripted) SetReadDeadline(time.Time) error  { return nil }
func (*scripted) SetWriteDeadline(time.Time) error { return nil }
