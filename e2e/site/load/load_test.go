package load_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

func TestEachDoesAllOnce(t *testing.T) {
	var sum atomic.Int64
	err := load.Each(t.Context(), 100, 4, func(_ context.Context, i int) error {
		sum.Add(int64(i))
		return nil
	})
	if err != nil || sum.Load() != 4950 {
		t.Errorf("sum %d, %v", sum.Load(), err)
	}
}

func TestEachReturnsTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	var done atomic.Int64
	err := load.Each(t.Context(), 1000, 2, func(context.Context, int) error {
		done.Add(1)
		return broken
	})
	if !errors.Is(err, broken) || done.Load() > 2 {
		t.Errorf("%v after %d", err, done.Load())
	}
}

func TestEachStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := load.Each(ctx, 10, 2, func(context.Context, int) error { return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPingKeepsItsPace(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		_, _ = io.Copy(server, server)
	}()
	took, err := load.Ping(t.Context(), []net.Conn{client}, 16, 20*time.Millisecond, 100*time.Millisecond)
	if err != nil || len(took) == 0 || len(took) > 5 {
		t.Errorf("%d round trips in 5 intervals, %v", len(took), err)
	}
}

func TestQuantile(t *testing.T) {
	values := []time.Duration{1, 2, 3, 4}
	for part, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 4, 1: 4} {
		if got := load.Quantile(values, part); got != want {
			t.Errorf("quantile %v: got %v, want %v", part, got, want)
		}
	}
	if got := load.Quantile(nil, 0.5); got != 0 {
		t.Errorf("of no values: got %v", got)
	}
}

// serve accepts one connection and calls speak with it. It returns the listener's
// address.
func serve(t *testing.T, speak func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := l.Accept(); err == nil {
			speak(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestProxyWithoutTLSGetsAConnect(t *testing.T) {
	c := load.Client{Proxy: serve(t, func(conn net.Conn) {
		const head = "CONNECT origin:1 HTTP/1.1\r\nHost: origin:1\r\n\r\n"
		if got := make([]byte, len(head)); read(conn, got) == head {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		}
		_, _ = io.Copy(conn, conn)
	})}
	if err := load.Exchange(t.Context(), &c, "origin:1", 64); err != nil {
		t.Error(err)
	}
}

func TestForwarderGetsNoConnect(t *testing.T) {
	addr := serve(t, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
	if err := load.Exchange(t.Context(), new(load.Client), addr, 64); err != nil {
		t.Error(err)
	}
}

func TestAnUploadThatDidNotArriveIsAnError(t *testing.T) {
	addr := serve(t, func(conn net.Conn) { _ = read(conn, make([]byte, 1000)) })
	if err := load.Up(t.Context(), new(load.Client), addr, 2000); err == nil {
		t.Error("no error")
	}
}

func read(conn net.Conn, p []byte) string {
	n, _ := io.ReadFull(conn, p)
	return string(p[:n])
}
