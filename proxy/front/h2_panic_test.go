package front_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestAPanicEndsOneStream lets a handler panic in each of its functions. The panic ends the
// stream, and neither the connection nor the process.
func TestAPanicEndsOneStream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	panics := make(chan any, 10)
	h := handler(func(r *front.Request) front.Answer {
		switch r.Target {
		case "handle.example:443":
			panic("handle")
		case "done.example:443":
			a := refused(allowlist.NotOnAllowlist)
			a.Done = func(error) { panic("done") }
			return a
		case "opened.example:443":
			return front.Answer{Kind: front.Opened, Done: func(error) { panic("opened") }}
		}
		return refused(allowlist.NotOnAllowlist)
	})
	var serving sync.WaitGroup
	serving.Go(func() {
		defer func() { _ = server.Close() }()
		front.NewH1(front.Config{}).Serve(context.WithoutCancel(t.Context()), front.Conn{
			Conn: server, Cut: func() {}, Abort: func() {},
			Panicked: func(cause any, _ []byte) { panics <- cause },
		}, h)
	})
	defer serving.Wait()
	defer func() { _ = client.Close() }()
	p := h2test.NewPeer(t, client)
	for n, name := range []string{"handle", "done", "opened"} {
		id := uint32(2*n + 1)
		p.Connect(t, id, name+".example:443")
		if _, end := p.Rest(t, id); name != "done" && (end.Kind != h2test.Reset || end.Code != http2.ErrCodeInternal) {
			t.Errorf("%s: the stream ended by %+v, want a reset", name, end)
		}
		if got := <-panics; got != name {
			t.Errorf("%s: the panic %v was reported", name, got)
		}
	}
	p.Connect(t, 99, "other.example:443")
	if got := p.Status(t, 99); got != "403" {
		t.Errorf("another stream was answered %q", got)
	}
}
