package tunnel

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// linkKinds are the kinds of connections below a Link.
var linkKinds = []string{"tcp", "unix", "tls", "tls over tcp unwrapped", "pipe"}

// writeCounter counts the writes to a socket.
type writeCounter struct {
	*net.TCPConn
	writes atomic.Int64
}

func (c *writeCounter) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.TCPConn.Write(p)
}

// newLink returns a Link and the peer's end of its connection.
func newLink(t *testing.T, kind string) (*Link, net.Conn) {
	t.Helper()
	var peer, conn net.Conn
	if kind == "pipe" {
		peer, conn = net.Pipe()
		t.Cleanup(func() { _ = peer.Close() })
	} else {
		r := newRig(t, kind, Config{})
		peer, conn = r.client, r.Tunnel.client.conn
	}
	link, err := NewLink(conn)
	if err != nil {
		t.Fatal(err)
	}
	return link, peer
}

// TestLinkReadsAllThatHasCome reads through a Link until its end.
func TestLinkReadsAllThatHasCome(t *testing.T) {
	for _, kind := range linkKinds {
		t.Run(kind, func(t *testing.T) {
			link, peer := newLink(t, kind)
			text := strings.Repeat("0123456789", 20_000)
			go func() {
				_, _ = io.WriteString(peer, text)
				if w, ok := peer.(closeWriter); ok {
					_ = w.CloseWrite()
					return
				}
				_ = peer.Close()
			}()
			var got strings.Builder
			p := make([]byte, 64<<10)
			for {
				err := link.Wait()
				n := 0
				if err == nil {
					n, err = link.Fill(p)
				}
				got.Write(p[:n])
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Errorf("ended with %v", err)
					}
					break
				}
			}
			if got.String() != text {
				t.Errorf("got %d bytes, want %d", got.Len(), len(text))
			}
			link.Close(false)
			expectLent(t, 0)
		})
	}
}

// TestLinkWaitsWithoutABuffer lets a Link wait, until a deadline ends that.
func TestLinkWaitsWithoutABuffer(t *testing.T) {
	for _, kind := range []string{"tcp", "unix", "tls"} {
		t.Run(kind, func(t *testing.T) {
			link, peer := newLink(t, kind)
			got := make(chan string)
			go func() {
				defer close(got)
				for p := make([]byte, 64<<10); link.Wait() == nil; {
					if n, _ := link.Fill(p); n > 0 {
						got <- string(p[:n])
					}
				}
			}()
			for _, text := range []string{"a", strings.Repeat("b", 5000)} {
				send(t, peer, text)
				come := ""
				for len(come) < len(text) {
					come += <-got
				}
				if come != text {
					t.Errorf("got %d bytes, want %d", len(come), len(text))
				}
				expectLent(t, 0)
			}
			_ = link.SetReadDeadline(time.Unix(1, 0))
			if _, open := <-got; open {
				t.Error("a deadline does not end the wait")
			}
		})
	}
}

// TestLinkGathersWrites counts the writes to the socket below TLS.
func TestLinkGathersWrites(t *testing.T) {
	wire, accepted := pair(t, "tcp")
	counted := &writeCounter{TCPConn: accepted.(*net.TCPConn)}
	client, server := secure(t, wire, Wrap(counted))
	link, err := NewLink(server)
	if err != nil {
		t.Fatal(err)
	}
	before := counted.writes.Load()
	text := strings.Repeat("x", 16<<10)
	link.Gather()
	for range 4 {
		if _, err := link.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if n := counted.writes.Load() - before; n != 0 {
		t.Errorf("%d writes before Flush", n)
	}
	done := make(chan error, 1)
	go func() { done <- link.Flush() }()
	expect(t, client, strings.Repeat(text, 4))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := counted.writes.Load() - before; n != 1 {
		t.Errorf("%d writes, want one", n)
	}
	if _, err := link.Write([]byte("later")); err != nil {
		t.Fatal(err)
	}
	expect(t, client, "later")
	if n := counted.writes.Load() - before; n != 2 {
		t.Errorf("%d writes, want two", n)
	}
}

// TestLinkTriesToFlush flushes to a peer that does not read, until the socket is full. The
// rest is written by Flush, in order with what is written meanwhile.
func TestLinkTriesToFlush(t *testing.T) {
	wire, accepted := pair(t, "tcp")
	client, server := secure(t, wire, Wrap(accepted))
	link, err := NewLink(server)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 64<<10)
	want, all := 0, true
	for all {
		link.Gather()
		if _, err := link.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		want += len(text)
		if all, err = link.TryFlush(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := link.Write([]byte("the end")); err != nil { // it is kept, or it would overtake the rest
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- link.Flush() }()
	expect(t, client, strings.Repeat("x", want)+"the end")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	link.Gather()
	if _, err := link.Write([]byte("later")); err != nil {
		t.Fatal(err)
	}
	if all, err := link.TryFlush(); !all || err != nil {
		t.Errorf("all written: %v, %v", all, err)
	}
	expect(t, client, "later")
}
