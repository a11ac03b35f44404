package admin

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestManyConnections opens more connections than may be open and sends nothing on
// them. It checks that the oldest are closed at once, long before they time out, and
// that the next connection is answered.
func TestManyConnections(t *testing.T) {
	var cut atomic.Int32
	s, err := Listen(t.Context(), Config{
		Address: "127.0.0.1:0", NotReady: func() []string { return nil }, Metrics: http.NotFoundHandler(),
		Shed: func(limit.Cause) { cut.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.http.ReadHeaderTimeout, s.http.ReadTimeout = 0, 0 // these timeouts would close connections, too
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	conns := make([]net.Conn, DefaultConnections+10)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", s.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conns[i].Close() }()
	}
	last := conns[len(conns)-1]
	if _, err := io.WriteString(last, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(last), nil)
	if err != nil {
		t.Fatalf("the last one: %v", err)
	}
	_ = resp.Body.Close()
	const patience = 10 * time.Second
	for i, conn := range conns[:10] {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d is open: %v", i, err)
		}
	}
	if n := cut.Load(); n != 10 {
		t.Errorf("%d are counted, want 10", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestTheOldestWithARequest checks that the oldest request gives way if every
// connection has one, so that clients which keep their connections lock nobody out.
func TestTheOldestWithARequest(t *testing.T) {
	closed := map[*net.TCPConn]limit.Cause{}
	var current *net.TCPConn
	b := newConnSlots(DefaultConnections, func(cause limit.Cause) { closed[current] = cause })
	conns := make([]*net.TCPConn, DefaultConnections+1)
	for i := range conns {
		conns[i] = new(net.TCPConn)
		current = conns[i]
		b.changed(conns[i], http.StateNew)
		b.changed(conns[i], http.StateActive)
	}
	if want := map[*net.TCPConn]limit.Cause{current: limit.CauseSource}; !maps.Equal(closed, want) {
		t.Errorf("closed for others: %v, want one for the last", closed)
	}
	if b.slot(conns[0]).GivenUp() == limit.NoCause || b.slot(conns[1]).GivenUp() != limit.NoCause {
		t.Error("it is not the oldest that was closed")
	}
	b.changed(conns[1], http.StateIdle)
	b.changed(new(net.TCPConn), http.StateNew)
	if b.slot(conns[1]).GivenUp() == limit.NoCause || b.slot(conns[2]).GivenUp() != limit.NoCause {
		t.Error("one with a request is closed, and one without is there")
	}
}

// TestAConnectionThatEnded checks that a connection that has ended gives its slot back
// and is forgotten.
func TestAConnectionThatEnded(t *testing.T) {
	b := newConnSlots(2, func(limit.Cause) {})
	first, second := new(net.TCPConn), new(net.TCPConn)
	b.changed(first, http.StateNew)
	b.changed(second, http.StateNew)
	b.changed(first, http.StateActive)
	b.changed(first, http.StateClosed)
	b.changed(first, http.StateClosed)
	if len(b.open) != 1 || b.slots.InUse() != 1 {
		t.Errorf("%d are open, %d slots are in use", len(b.open), b.slots.InUse())
	}
}
