package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
)

// goClient is the HTTP/2 client of net/http, which opens tunnels on one connection.
type goClient struct {
	transport *http.Transport
	gateway   *url.URL
}

// goClients returns a client for the listener mtls, and one for the listener own, which
// speaks HTTP/2 by prior knowledge.
func (s prodSite) goClients(t *testing.T, p *process) map[string]goClient {
	t.Helper()
	clients := make(map[string]goClient)
	for listener, scheme := range map[string]string{"mtls": "https", "own": "http"} {
		transport := &http.Transport{
			Protocols:       new(http.Protocols),
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), Certificates: s.pair(t, "builder")},
		}
		transport.Protocols.SetHTTP2(scheme == "https")
		transport.Protocols.SetUnencryptedHTTP2(scheme == "http")
		t.Cleanup(transport.CloseIdleConnections)
		clients[listener] = goClient{transport, &url.URL{Scheme: scheme, Host: p.listening(t, listener).String()}}
	}
	return clients
}

// goTunnel is a tunnel on a stream.
type goTunnel struct {
	io.Writer
	io.Reader

	up   *io.PipeWriter // the body of the request
	down io.Closer      // the body of the answer
}

// CloseWrite ends the direction to the origin.
func (tunnel goTunnel) CloseWrite() error { return tunnel.up.Close() }

// Close ends the tunnel. If both directions are open, it resets the stream.
func (tunnel goTunnel) Close() {
	_ = tunnel.down.Close()
	_ = tunnel.up.Close()
}

// connect opens a tunnel, or returns the answer that refuses it.
func (c goClient) connect(ctx context.Context, target string) (goTunnel, *http.Response, error) {
	r, w := io.Pipe()
	resp, err := c.transport.RoundTrip((&http.Request{
		Method: http.MethodConnect, URL: c.gateway, Host: target, Header: make(http.Header), Body: r, ContentLength: -1,
	}).WithContext(ctx))
	if err != nil {
		return goTunnel{}, nil, err
	}
	return goTunnel{Writer: w, Reader: resp.Body, up: w, down: resp.Body}, resp, nil
}

// tunnel opens a tunnel, which must be allowed. It is closed when the test ends.
func (c goClient) tunnel(t *testing.T, target string) goTunnel {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	tunnel, resp, err := c.connect(ctx, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tunnel.Close)
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
		t.Fatalf("answered %s %s", resp.Proto, resp.Status)
	}
	return tunnel
}

// accept returns the next connection to an origin.
func accept(t *testing.T, l net.Listener) *net.TCPConn {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// send writes a text and must succeed.
func send(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// TestGoTunnelsOverHTTP2 opens tunnels with net/http's client for HTTP/2. Each side ends
// its direction first once, and the origin resets its connection once.
func TestGoTunnelsOverHTTP2(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	s := newSite(t, port)
	p := start(t, s.dir, "serve")
	target := net.JoinHostPort("allowed.example", strconv.Itoa(port))
	for listener, client := range s.goClients(t, p) {
		t.Run(listener+", the client ends first", func(t *testing.T) {
			tunnel := client.tunnel(t, target)
			origin := accept(t, l)
			send(t, tunnel, "up")
			if err := tunnel.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(origin); err != nil || string(got) != "up" {
				t.Errorf("the origin got %q, %v", got, err)
			}
			send(t, origin, "down")
			_ = origin.Close()
			if got, err := io.ReadAll(tunnel); err != nil || string(got) != "down" {
				t.Errorf("the client got %q, %v", got, err)
			}
		})
		t.Run(listener+", the origin ends first", func(t *testing.T) {
			tunnel := client.tunnel(t, target)
			origin := accept(t, l)
			send(t, origin, "down")
			if err := origin.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(tunnel); err != nil || string(got) != "down" {
				t.Errorf("the client got %q, %v", got, err)
			}
			send(t, tunnel, "up")
			_ = tunnel.CloseWrite()
			if got, err := io.ReadAll(origin); err != nil || string(got) != "up" {
				t.Errorf("the origin got %q, %v", got, err)
			}
		})
		t.Run(listener+", the origin resets", func(t *testing.T) {
			tunnel := client.tunnel(t, target)
			origin := accept(t, l)
			send(t, origin, "down")
			if _, err := io.ReadFull(tunnel, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			_ = origin.SetLinger(0)
			_ = origin.Close()
			rest, err := io.ReadAll(tunnel)
			if reset, ok := errors.AsType[http2.StreamError](err); !ok || reset.Code != http2.ErrCodeConnect {
				t.Errorf("the client got %q, %v; want CONNECT_ERROR", rest, err)
			}
		})
		t.Run(listener+", refused", func(t *testing.T) {
			tunnel, resp, err := client.connect(t.Context(), "secret.example:443")
			if err != nil {
				t.Fatal(err)
			}
			defer tunnel.Close()
			body, err := io.ReadAll(resp.Body)
			id := resp.Header.Get("X-Exeat-Decision")
			want := "secret.example:443 is not allowed for "
			if err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), want) || !strings.Contains(string(body), id) ||
				!strings.Contains(resp.Header.Get("Proxy-Status"), want) || id == "" {
				t.Errorf("answered %s %v: %q, %v", resp.Status, resp.Header, body, err)
			}
		})
	}
	connections := make(map[string]string) // the client's address by the listener
	for _, r := range p.decisions(t, 8) {
		if other := connections[r.Listener]; r.Wire != "h2" || other != "" && other != r.Client {
			t.Errorf("record %+v, want the connection %s", r, other)
		}
		connections[r.Listener] = r.Client
	}
}

// TestGoTunnelsShareAConnection opens 200 tunnels at once on one connection, and then
// hundreds one after another. Go resets the stream of each tunnel that it closes, which
// must not look like a flood.
func TestGoTunnelsShareAConnection(t *testing.T) {
	port := newEcho(t)
	s := newSite(t, port)
	p := start(t, s.dir, "serve")
	target := net.JoinHostPort("allowed.example", strconv.Itoa(port))
	for listener, client := range s.goClients(t, p) {
		t.Run(listener, func(t *testing.T) {
			t.Parallel()
			client.exchange(t, target, "the first tunnel") // Go learns here how many streams are allowed
			var exchanges sync.WaitGroup
			var open sync.WaitGroup
			const atOnce, after = 200, 600
			open.Add(atOnce)
			for i := range atOnce {
				exchanges.Go(func() {
					tunnel, resp, err := client.connect(t.Context(), target)
					open.Done()
					if err != nil || resp.StatusCode != http.StatusOK {
						t.Errorf("tunnel %d: %v, %v", i, resp, err)
						return
					}
					defer tunnel.Close()
					open.Wait()
					text := strings.Repeat(strconv.Itoa(i)+" ", 5000)
					go func() {
						_, _ = io.WriteString(tunnel, text)
						_ = tunnel.CloseWrite()
					}()
					if got, err := io.ReadAll(tunnel); err != nil || string(got) != text {
						t.Errorf("tunnel %d: got %d bytes of %d, %v", i, len(got), len(text), err)
					}
				})
			}
			exchanges.Wait()
			for range after {
				client.exchange(t, target, "another tunnel")
			}
			const tunnels = 1 + atOnce + after
			p.recorded(t, "the last tunnel", tunnels-1, func(r record) bool { return r.Event == "decision" && r.Listener == listener })
			seen := make(map[string]int)
			for _, r := range p.decisions(t, tunnels) {
				if r.Listener == listener && r.Verdict == "allow" {
					seen[r.Client]++
				}
			}
			if len(seen) != 1 {
				t.Errorf("the tunnels came over several connections: %v", seen)
			}
		})
	}
}

// exchange sends a text through a tunnel, reads it back, and closes the tunnel while both
// directions are open, which resets its stream.
func (c goClient) exchange(t *testing.T, target, text string) {
	t.Helper()
	tunnel, resp, err := c.connect(t.Context(), target)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %v, %v", resp, err)
	}
	defer tunnel.Close()
	send(t, tunnel, text)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(tunnel, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v", got, err)
	}
}

// TestGoTunnelOutlivesTheNotice stops the process while a tunnel of Go's client is open. The
// client hears that it may open no more streams, and the tunnel goes on to its end.
func TestGoTunnelOutlivesTheNotice(t *testing.T) {
	port := newEcho(t)
	s := newSite(t, port)
	p := start(t, s.dir, "serve")
	target := net.JoinHostPort("allowed.example", strconv.Itoa(port))
	client := s.goClients(t, p)["mtls"]
	tunnel := client.tunnel(t, target)
	p.signal(t, syscall.SIGTERM)
	p.stderr.line(t, regexp.MustCompile(`msg=draining tunnels=1`))
	waitRefused(t, p.listening(t, "mtls").String())
	if other, resp, err := client.connect(t.Context(), target); err == nil {
		other.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("another tunnel is answered with %s", resp.Status)
		}
	}
	send(t, tunnel, "still here")
	_ = tunnel.CloseWrite()
	if got, err := io.ReadAll(tunnel); err != nil || string(got) != "still here" {
		t.Errorf("the tunnel brings %q, %v", got, err)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if r := p.record(t, "tunnel.close", 0); r.Wire != "h2" || r.Up != r.Down || r.CloseReason != "client" {
		t.Errorf("record %+v", r)
	}
}

// heard keeps the bytes that a connection has brought.
type heard struct {
	net.Conn

	bytes *bytes.Buffer
}

// Read implements net.Conn.
func (h heard) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.bytes.Write(p[:n])
	return n, err
}

// TestGoClientOfHTTP1IsSentNoHTTP2 offers h2 in ALPN and writes HTTP/1.1 behind it, as Go
// programs with HTTPS_PROXY do. The first byte from the gateway must belong to its answer:
// a SETTINGS frame before it would end the request.
func TestGoClientOfHTTP1IsSentNoHTTP2(t *testing.T) {
	port := newEcho(t)
	s := newSite(t, port)
	p := start(t, s.dir, "serve")
	for _, head := range []string{
		"CONNECT allowed.example:" + strconv.Itoa(port) + " HTTP/1.1\r\nHost: allowed.example:" + strconv.Itoa(port) + "\r\n\r\n",
		"CONNECT secret.example:443 HTTP/1.1\r\nHost: secret.example:443\r\n\r\n",
	} {
		conn, err := tls.Dial("tcp", p.listening(t, "mtls").String(), &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), Certificates: s.pair(t, "builder"), NextProtos: []string{"h2", "http/1.1"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
			t.Fatalf("negotiated %q, so that this test shows nothing", got)
		}
		h := heard{conn, new(bytes.Buffer)}
		send(t, conn, head)
		resp, err := http.ReadResponse(bufio.NewReader(h), &http.Request{Method: http.MethodConnect})
		if err != nil || resp.ProtoMajor != 1 || !strings.HasPrefix(h.bytes.String(), "HTTP/1.1 ") {
			t.Errorf("got %q, %v", h.bytes, err)
		}
	}
	for n, status := range []int{http.StatusOK, http.StatusForbidden} {
		if r := p.record(t, "decision", n); r.Wire != "h1" || r.Status != status {
			t.Errorf("record %+v", r)
		}
	}
}
