package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// goSession returns a connection of Go's client.
func (g *gateway) goSession(t *testing.T) *http.ClientConn {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
		return g.call(t, "builder").Conn, nil
	}}
	conn, err := transport.NewClientConn(t.Context(), "https", "gateway.example:443")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// openWithGo opens a tunnel, or is refused, as a Go program does it. The writer sends into the
// tunnel.
func openWithGo(ctx context.Context, t *testing.T, conn *http.ClientConn, target string) (*http.Response, *io.PipeWriter) {
	t.Helper()
	upload, send := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://"+target, upload)
	if err != nil {
		t.Fatal(err)
	}
	res, err := conn.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return res, send
}

// TestAGoClientReadsMuch downloads with Go's client in small pieces. It returns credit for
// each, for the stream and for the connection, and reads the last megabytes when the origin
// has long sent them.
func TestAGoClientReadsMuch(t *testing.T) {
	g := newGateway(t, options{})
	res, send := openWithGo(t.Context(), t, g.goSession(t), g.at("allowed.example"))
	origin := g.origin.next(t)
	const size, unread = 60 << 20, 4<<20 - 100
	sent := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		chunk := strings.Repeat("x", 1<<20)
		for range size >> 20 {
			_, _ = io.WriteString(origin, chunk)
		}
		<-sent
		_, _ = io.WriteString(origin, strings.Repeat("x", unread))
		_ = origin.CloseWrite()
	})
	piece := make([]byte, 4<<10)
	if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(res.Body, size), piece); err != nil || n != size {
		t.Fatalf("%d bytes, and %v", n, err)
	}
	close(sent)
	sending.Wait()
	if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, piece); err != nil || n != unread {
		t.Errorf("%d bytes of the last ones, and %v", n, err)
	}
	_ = send.Close()
	_ = res.Body.Close()
}

// TestAGoClientIsRefusedOften sends many requests that are refused, one after the other, while
// a tunnel of the same connection is open.
func TestAGoClientIsRefusedOften(t *testing.T) {
	g := newGateway(t, options{})
	conn := g.goSession(t)
	tunnel, send := openWithGo(t.Context(), t, conn, g.at("allowed.example"))
	origin := g.origin.next(t)
	for n := range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		res, upload := openWithGo(ctx, t, conn, "secret.example:443")
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusForbidden {
			t.Fatalf("request %d: answered %d, and then %v", n, res.StatusCode, err)
		}
		_ = res.Body.Close()
		_ = upload.Close()
		cancel()
	}
	_, _ = io.WriteString(origin, "still here")
	_ = origin.CloseWrite()
	if got, err := io.ReadAll(tunnel.Body); string(got) != "still here" {
		t.Errorf("got %q and %v", got, err)
	}
	_ = send.Close()
}

// TestCreditForSingleBytes returns credit for one byte at a time, for each of which the
// gateway has to send a frame.
func TestCreditForSingleBytes(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	s.Keeps = true
	stream, origin := s.tunnel(t, "allowed.example")
	var sending sync.WaitGroup
	sending.Go(func() { _, _ = io.WriteString(origin, strings.Repeat("x", 1<<20)) })
	defer sending.Wait()
	defer func() { _ = origin.Close() }()
	const most = 10_000
	for range most {
		if s.WriteWindowUpdate(stream, 1) != nil {
			return
		}
		switch e := s.Next(t); {
		case e.Kind == h2test.Ended, e.Kind == h2test.GoAway && e.Code == http2.ErrCodeEnhanceYourCalm:
			return
		case e.Kind != h2test.Data:
			t.Fatalf("got %+v", e)
		}
	}
	t.Errorf("the gateway has sent %d frames of one byte", most)
}
