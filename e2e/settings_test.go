package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// setting is exeat with one key of the configuration set that the other tests leave at
// its default.
type setting struct {
	prodSite
	process *process
	port    int // port of the origin
}

// client is a connection to a listener.
type client struct {
	net.Conn

	reader *bufio.Reader
}

func (s *setting) dial(t *testing.T, listener string) *client {
	t.Helper()
	conn := s.process.dial(t, listener)
	return &client{conn, bufio.NewReader(conn)}
}

// say sends a text.
func (c *client) say(t *testing.T, raw string) {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
}

// answer reads the answer to a request with that method.
func (c *client) answer(t *testing.T, method string) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(c.reader, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// ask sends a CONNECT for a host and the origin's port, and reads the answer.
func (s *setting) ask(t *testing.T, host string, fields ...string) (*client, *http.Response) {
	t.Helper()
	c := s.dial(t, "own")
	c.say(t, s.connectTo(host, fields...))
	return c, c.answer(t, http.MethodConnect)
}

func (s *setting) connectTo(host string, fields ...string) string {
	return fmt.Sprintf("CONNECT %s:%d HTTP/1.0\r\n%s\r\n", host, s.port, strings.Join(append(fields, ""), "\r\n"))
}

// limited sends CONNECTs until one is refused by a limit, and checks the reason. Some may
// get no answer: far beyond a limit the gateway closes connections at once, and a closed
// connection still counts for a moment.
func (s *setting) limited(t *testing.T, host string, status int, reason string) {
	t.Helper()
	eventually(t, reason, func() bool {
		c := s.dial(t, "own")
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, s.connectTo(host))
		resp, err := http.ReadResponse(c.reader, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == status && strings.Contains(resp.Header.Get("Proxy-Status"), "reason="+reason)
	})
}

// plain returns a plain request to the origin.
func (s *setting) plain(method, host string, fields ...string) string {
	return fmt.Sprintf("%s http://%s:%d/ HTTP/1.1\r\nHost: %[2]s:%[3]d\r\n%s\r\n", method, host, s.port, strings.Join(append(fields, ""), "\r\n"))
}

// ends waits for the end of a tunnel, and checks its reason.
func (s *setting) ends(t *testing.T, why string) {
	t.Helper()
	if r := s.process.record(t, "tunnel.close", 0); r.CloseReason != why {
		t.Errorf("the tunnel ended with %+v, want %s", r, why)
	}
}

// gone waits until a connection ends.
func (c *client) gone(t *testing.T) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c.reader); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the connection does not end")
	}
}

// lookup asks for the address of a name over TCP, and returns the code of the answer, or
// -1 if there is none.
func (s *setting) lookup(t *testing.T) int {
	t.Helper()
	c := s.dial(t, "names")
	query := "\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x07example\x00\x00\x01\x00\x01"
	_, _ = io.WriteString(c, string(binary.BigEndian.AppendUint16(nil, uint16(len(query))))+query)
	head := make([]byte, 14)
	if _, err := io.ReadFull(c.reader, head); err != nil {
		return -1 // the connection was closed at once
	}
	return int(head[5] & 0xf)
}

// TestSettings sets one key of the configuration after the other, and checks that it has
// its effect in the program. Package config tests how keys are parsed.
func TestSettings(t *testing.T) {
	const traceparent = "Traceparent: 00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	names := `  - {name: names, address: "127.0.0.1:0", protocol: dns, identity: fixed, id: "` + builder + `"}` + "\n"
	for name, row := range map[string]struct {
		old, config string // config replaces old, or is appended if old is empty
		try         func(t *testing.T, s *setting)
	}{
		"listeners[].trace_parent": {"name: own,", "name: own, trace_parent: accept,", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "secret.example", traceparent)
			s.process.stdout.line(t, regexp.MustCompile(`"event":"decision".*"trace_id":"0123456789abcdef0123456789abcdef"`))
		}},
		"listeners[].proxy_protocol": {"name: own,", "name: own, proxy_protocol: 127.0.0.0/8,", func(t *testing.T, s *setting) {
			t.Helper()
			s.dial(t, "own").say(t, "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\nCONNECT secret.example:443 HTTP/1.0\r\n\r\n")
			s.process.stdout.line(t, regexp.MustCompile(`"event":"decision".*"client":"192\.0\.2\.7:4711"`))
		}},
		"listeners[].socket_mode": {"name: socket,", `name: socket, socket_mode: "0666",`, func(t *testing.T, s *setting) {
			t.Helper()
			s.process.stderr.line(t, regexp.MustCompile(`listening listener=socket`))
			if info, err := os.Stat(filepath.Join(s.dir, "exeat.sock")); err != nil || info.Mode().Perm() != 0o666 {
				t.Errorf("the socket: %v, %v", info, err)
			}
		}},
		"metrics.identities": {"", "admin: {address: '127.0.0.1:0'}\nmetrics: {identities: 1}\n", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "secret.example")
			eventually(t, "a series of the identity", func() bool {
				_, text := s.process.admin(t, "metrics")
				return strings.Contains(text, `identity="`+gateway+`"`)
			})
		}},
		"resolver.nat64": {"    example.com: [127.0.0.1]\n", "    example.com: ['2001:db8:64::a00:1']\n  nat64: 2001:db8:64::/96\n", func(t *testing.T, s *setting) {
			t.Helper()
			if _, resp := s.ask(t, "example.com"); resp.StatusCode != http.StatusForbidden {
				t.Errorf("answered %s", resp.Status)
			}
			s.process.stdout.line(t, regexp.MustCompile(`"event":"decision".*"address_class":"private"`))
		}},
		"dns.queries_per_second": {"listeners:\n", "dns: {queries_per_second: 1}\nlisteners:\n" + names, func(t *testing.T, s *setting) {
			t.Helper()
			eventually(t, "REFUSED", func() bool { return s.lookup(t) == 5 })
		}},
		"dns.connections_per_identity": {"listeners:\n", "dns: {connections_per_identity: 1}\nlisteners:\n" + names, func(t *testing.T, s *setting) {
			t.Helper()
			idle := s.dial(t, "names")
			eventually(t, "an answer on another connection", func() bool { return s.lookup(t) == 3 })
			idle.gone(t)
		}},
		"records.collapse": {"", "records: {collapse: 2s}\n", func(t *testing.T, s *setting) {
			t.Helper()
			eventually(t, "a record that stands for others", func() bool {
				s.ask(t, "secret.example")
				return strings.Contains(s.process.stdout.String(), `"event":"decision.collapsed"`)
			})
		}},
		"records.sinks[].file after SIGHUP": {"", "records: {sinks: [{name: a, file: a.jsonl, only: denials}]}\n", func(t *testing.T, s *setting) {
			t.Helper()
			path := filepath.Join(s.dir, "a.jsonl")
			has := func() bool { data, _ := os.ReadFile(path); return strings.Contains(string(data), `"verdict":"deny"`) }
			s.ask(t, "secret.example")
			eventually(t, "a record", has)
			if err := os.Rename(path, path+".moved"); err != nil {
				t.Fatal(err)
			}
			s.process.signal(t, syscall.SIGHUP)
			eventually(t, "a record in the new file", func() bool { s.ask(t, "secret.example"); return has() })
		}},
		"refusals.disclosure": {"", "refusals: {disclosure: none}\n", func(t *testing.T, s *setting) {
			t.Helper()
			_, resp := s.ask(t, "secret.example")
			if body, _ := io.ReadAll(resp.Body); strings.Contains(resp.Status+string(body), "secret") || resp.Header.Get("X-Exeat-Decision") != "" {
				t.Errorf("answered %s %v\n%s", resp.Status, resp.Header, body)
			}
		}},
		"http": {"", "http: {via: false, forwarded: pass}\n", func(t *testing.T, s *setting) {
			t.Helper()
			c := s.dial(t, "own")
			c.say(t, s.plain("GET", "allowed.example", "X-Forwarded-For: 192.0.2.7"))
			if h := c.answer(t, "GET").Header; h.Get("Got-Via") != "" || h.Get("Via") != "" || h.Get("Got-Forwarded") != "192.0.2.7" {
				t.Errorf("fields %v", h)
			}
		}},
		"timeouts.handshake": {"timeouts:\n", "timeouts:\n  handshake: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			c := s.dial(t, "mtls")
			c.say(t, "\x16\x03\x01\x02\x00\x01\x00")
			c.gone(t)
		}},
		"timeouts.head": {"timeouts:\n", "timeouts:\n  head: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			c := s.dial(t, "own")
			c.say(t, "CONNECT ")
			if resp := c.answer(t, "GET"); resp.StatusCode != http.StatusRequestTimeout {
				t.Errorf("answered %s", resp.Status)
			}
		}},
		"timeouts.client_hello": {"timeouts:\n", "timeouts:\n  client_hello: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			s.process.generation(t, 1)
			write(t, s.dir, map[string]string{"policy.yaml": strings.ReplaceAll(sitePolicy([]int{s.port}), "addresses:", "tls: require, addresses:")})
			s.process.generation(t, 2)
			s.ask(t, "allowed.example")
			s.process.stdout.line(t, regexp.MustCompile(`"event":"decision".*"reason":"not-tls"`))
		}},
		"timeouts.keep_alive": {"timeouts:\n", "timeouts:\n  keep_alive: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			c := s.dial(t, "own")
			c.say(t, s.plain("GET", "allowed.example"))
			if resp := c.answer(t, "GET"); resp.StatusCode != http.StatusOK || resp.Close {
				t.Errorf("answered %s, close %v", resp.Status, resp.Close)
			}
			c.gone(t)
		}},
		"timeouts.body": {"timeouts:\n", "timeouts:\n  body: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			c := s.dial(t, "own")
			c.say(t, s.plain("POST", "allowed.example", "Content-Length: 10")+"some")
			c.gone(t)
			s.process.stdout.line(t, regexp.MustCompile(`"event":"decision".*"reason":"client-gone"`))
		}},
		"timeouts.response": {"timeouts:\n", "timeouts:\n  response: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			c := s.dial(t, "own")
			c.say(t, s.plain("DELETE", "allowed.example"))
			if resp := c.answer(t, "DELETE"); resp.StatusCode != http.StatusGatewayTimeout {
				t.Errorf("answered %s", resp.Status)
			}
		}},
		"timeouts.tunnel_idle": {"timeouts:\n", "timeouts:\n  tunnel_idle: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "allowed.example")
			s.ends(t, "idle")
		}},
		"timeouts.tunnel_max": {"timeouts:\n", "timeouts:\n  tunnel_max: 1s\n", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "allowed.example")
			s.ends(t, "max-duration")
		}},
		"timeouts.drain_delay": {"  drain_delay: 0s\n", "  drain_delay: 1h\nadmin: {address: '127.0.0.1:0'}\n", func(t *testing.T, s *setting) {
			t.Helper()
			s.process.generation(t, 1)
			if code, text := s.process.admin(t, "readyz"); code != http.StatusOK {
				t.Errorf("not ready at first: %s", text)
			}
			s.process.signal(t, syscall.SIGTERM)
			s.process.stderr.line(t, regexp.MustCompile(`msg=draining`))
			if code, text := s.process.admin(t, "readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "draining") {
				t.Errorf("readiness while it serves on: %d %s", code, text)
			}
			if _, resp := s.ask(t, "allowed.example"); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %s while it serves on", resp.Status)
			}
			eventually(t, "the end after a second signal, which counts a moment after the first", func() bool {
				_ = s.process.Signal(syscall.SIGTERM)
				select {
				case <-s.process.Ended():
					return true
				default:
					return false
				}
			})
			if code := s.process.exit(t); code == 0 {
				t.Error("exit code 0 after a second signal")
			}
		}},
		"timeouts.drain_timeout": {"drain_delay: 0s", "{drain_delay: 0s, drain_timeout: 1s}", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "allowed.example")
			s.process.signal(t, syscall.SIGTERM)
			s.ends(t, "drain")
		}},
		"limits.connections": {"limits: {", "limits: {connections: 2, ", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "allowed.example")
			s.limited(t, "allowed.example", http.StatusServiceUnavailable, "busy")
		}},
		"limits.head_bytes": {"limits: {", "limits: {head_bytes: 1024, ", func(t *testing.T, s *setting) {
			t.Helper()
			if _, resp := s.ask(t, "allowed.example", "X: "+strings.Repeat("a", 1024)); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("answered %s", resp.Status)
			}
		}},
		"limits.streams_per_connection": {"limits: {", "limits: {streams_per_connection: 1, ", func(t *testing.T, s *setting) {
			t.Helper()
			p := h2test.NewPeer(t, s.process.dial(t, "own"))
			to := fmt.Sprintf("allowed.example:%d", s.port)
			p.Connect(t, 1, to)
			if got := p.Status(t, 1); got != "200" {
				t.Errorf("the first stream is answered %s", got)
			}
			p.Connect(t, 3, to)
			if end := p.On(t, 3); end.Kind != h2test.Reset || end.Code != http2.ErrCodeRefusedStream {
				t.Errorf("the second stream gets %+v", end)
			}
		}},
		"limits.connections_per_source": {"limits: {", "limits: {connections_per_source: 2, ", func(t *testing.T, s *setting) {
			t.Helper()
			s.dial(t, "own")
			s.dial(t, "own")
			s.limited(t, "allowed.example", http.StatusTooManyRequests, "rate-limited")
		}},
		"limits.handshakes_per_source": {"limits: {", "limits: {handshakes_per_source: 1, ", func(t *testing.T, s *setting) {
			t.Helper()
			eventually(t, "a handshake too many", func() bool {
				_, _ = io.WriteString(s.dial(t, "mtls"), "\x16")
				return strings.Contains(s.process.stdout.String(), `"reason":"rate-limited"`)
			})
		}},
		"limits.requests_per_identity": {"requests_per_identity: 100000", "requests_per_identity: 2", func(t *testing.T, s *setting) {
			t.Helper()
			s.limited(t, "secret.example", http.StatusTooManyRequests, "rate-limited")
		}},
		"limits.connects_per_second": {"connects_per_second: 100000", "connects_per_second: 1", func(t *testing.T, s *setting) {
			t.Helper()
			s.limited(t, "allowed.example", http.StatusTooManyRequests, "rate-limited")
		}},
		"limits.tunnels": {"limits: {", "limits: {tunnels: 1, ", func(t *testing.T, s *setting) {
			t.Helper()
			s.ask(t, "allowed.example")
			s.limited(t, "allowed.example", http.StatusTooManyRequests, "tunnel-limit")
		}},
		"limits.upload_per_hour": {"limits: {", "limits: {upload_per_hour: 1KiB, ", func(t *testing.T, s *setting) {
			t.Helper()
			c, _ := s.ask(t, "allowed.example")
			_, _ = c.Write(make([]byte, 1<<16))
			s.ends(t, "limit")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetting(t)
			config := siteConfig + row.config
			if row.old != "" {
				config = strings.Replace(siteConfig, row.old, row.config, 1)
			}
			if config == siteConfig {
				t.Fatalf("the configuration has no %q", row.old)
			}
			write(t, s.dir, map[string]string{"exeat.yaml": config})
			s.process = start(t, s.dir, "serve")
			row.try(t, s)
		})
	}
}

// newSetting has an origin that returns header fields that it got, and does not answer
// DELETE.
func newSetting(t *testing.T) *setting {
	t.Helper()
	done := make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			<-done
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Got-Via", r.Header.Get("Via"))
		w.Header().Set("Got-Forwarded", r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(func() {
		close(done)
		origin.Close()
	})
	return &setting{prodSite: newSite(t, portOf(t, origin)), port: portOf(t, origin)}
}
