package h2_test

import (
	"net"
	"syscall"
	"testing"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestAnswersBeyondTheSocketArrive sends more PING frames than the answers of which the
// sockets have room for, and reads the answers only then. The reader of the connection may
// not wait for that, and nothing of what it could not write at once may be lost.
func TestAnswersBeyondTheSocketArrive(t *testing.T) {
	const pings = 900 // fewer than the connection takes for a flood
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // before the window is announced
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	near, err := small.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := far.(*net.TCPConn).SetWriteBuffer(1); err != nil {
		t.Fatal(err)
	}
	p := h2test.NewPeer(t, near)
	_, ended := run(t, h2.Config{Serve: func(*h2.Stream, h2.Head) func() { return nil }}, tunnel.Wrap(far))
	for i := range byte(pings / 4) {
		for n := range byte(4) {
			p.Send(t, func() error { return p.WritePing(false, [8]byte{i, n}) })
		}
	}
	for got := 0; got < pings/4*4; {
		e := p.Any(t)
		if e.Kind == h2test.Ping {
			got++
		} else if e.Kind != h2test.Setting && e.Kind != h2test.Window {
			t.Fatalf("%+v after %d answers", e, got)
		}
	}
	_ = near.Close()
	ended()
}
