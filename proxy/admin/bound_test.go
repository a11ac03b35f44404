package admin

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// TestManyConnections opens more than may be open, which say nothing: the oldest
// are closed at once, long before their time is over, and the next one is
// answered.
func TestManyConnections(t *testing.T) {
	s, err := Listen(t.Context(), Config{
		Address: "127.0.0.1:0", NotReady: func() []string { return nil }, Metrics: http.NotFoundHandler(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.http.ReadHeaderTimeout, s.http.ReadTimeout = 0, 0 // which would close them, too
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
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestAConnectionThatEnded makes room for another.
func TestAConnectionThatEnded(t *testing.T) {
	b := bound{most: 2}
	first, second := new(net.TCPConn), new(net.TCPConn)
	b.changed(first, http.StateNew)
	b.changed(second, http.StateNew)
	b.changed(first, http.StateActive)
	b.changed(first, http.StateClosed)
	b.changed(first, http.StateClosed)
	if len(b.open) != 1 || b.open[0] != second {
		t.Errorf("%d are open", len(b.open))
	}
}
