package dns_test

import (
	"context"
	"encoding/base64"
	"log/slog"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/dns"
)

// pausing is a log handler that blocks the message about the drain until proceed is
// closed.
type pausing struct{ begun, proceed chan struct{} }

func (*pausing) Enabled(context.Context, slog.Level) bool { return true }
func (p *pausing) WithAttrs([]slog.Attr) slog.Handler     { return p }
func (p *pausing) WithGroup(string) slog.Handler          { return p }

func (p *pausing) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "draining" {
		close(p.begun)
		<-p.proceed
	}
	return nil
}

// TestAnswerOverHTTP2AnnouncesTheDrain checks that an answer while load balancers notice
// the drain announces the end of the connection, both on an earlier and on a later
// connection.
func TestAnswerOverHTTP2AnnouncesTheDrain(t *testing.T) {
	log := &pausing{make(chan struct{}), make(chan struct{})}
	proceed := sync.OnceFunc(func() { close(log.proceed) })
	g := newGateway(t, options{log: log})
	t.Cleanup(proceed)
	query := []string{
		":method", "GET", ":scheme", "https", ":authority", "gateway.example",
		":path", dns.DoHPath + "?dns=" + base64.RawURLEncoding.EncodeToString(must(question("denied.example").Pack())),
	}
	before := g.frames(t, "sidecar")
	if err := before.request(query...); err != nil {
		t.Fatal(err)
	}
	before.until(t, http2.FrameData)
	g.stop()
	<-log.begun
	for name, f := range map[string]*framer{"later": g.frames(t, "sidecar"), "before": before} {
		sent := f.request(query...)
		answered, last := false, false
		for !last || name == "later" && !answered {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("%s: asked: %v, answered: %v, the last: %v, %v", name, sent, answered, last, err)
			}
			answered = answered || frame.Header().Type == http2.FrameData
			last = last || frame.Header().Type == http2.FrameGoAway
		}
	}
	proceed()
}

// TestDrainOverHTTP2DoesNotWaitForABody checks that a drain answers a request over HTTP/2
// whose body is not complete, and does not wait for the body.
func TestDrainOverHTTP2DoesNotWaitForABody(t *testing.T) {
	g := newGateway(t, options{drain: 10 * time.Second})
	f := g.frames(t, "sidecar")
	err := f.open(false, ":method", "POST", ":scheme", "https", ":authority", "gateway.example", ":path", dns.DoHPath,
		"content-type", "application/dns-message", "content-length", "40")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteData(1, false, []byte("half of it")); err != nil {
		t.Fatal(err)
	}
	if err := f.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	for { // until the server has read the request
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if frame.Header().Type == http2.FramePing {
			break
		}
	}
	began := time.Now()
	g.stop()
	f.until(t, http2.FrameData) // the body of the answer
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("answered after %s, want at once", took)
	}
}
