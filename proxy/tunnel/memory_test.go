package tunnel

import (
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// expectLent waits until n buffers are lent. Relays give buffers back after the bytes
// have arrived, so that there is nothing else to wait for.
func expectLent(t *testing.T, want int64) {
	t.Helper()
	for begin := time.Now(); buffers.lent.Load() != want; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatalf("got %d buffers lent, want %d", buffers.lent.Load(), want)
		}
	}
}

// TestQuietTunnelHoldsNoBuffer checks that a tunnel without traffic holds no buffer.
func TestQuietTunnelHoldsNoBuffer(t *testing.T) {
	for _, kind := range []string{"tcp", "unix", "tls"} {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "early")
			expect(t, r.origin, "early")
			expectLent(t, 0)
			for _, size := range []int{1, 512, 40_000} {
				text := strings.Repeat("x", size)
				send(t, r.client, text)
				expect(t, r.origin, text)
				send(t, r.origin, text)
				expect(t, r.client, text)
				expectLent(t, 0)
			}
			finish(t, r.origin) // the other direction holds no buffer either
			expectEnd(t, r.client, "")
			expectLent(t, 0)
		})
	}
}

func TestQuietTunnelInMidRecordHoldsNoBuffer(t *testing.T) {
	r, s := newScribe(t)
	record := s.record(t, applicationData, "cut in two")
	r.wire.Write(record[:9])
	expectLent(t, 0)
	r.wire.Write(record[9:])
	expect(t, r.origin, "cut in two")
	expectLent(t, 0)
}

// TestOtherConnectionsHoldABufferEachWay checks that a tunnel between connections that
// are not sockets holds a buffer for each direction.
func TestOtherConnectionsHoldABufferEachWay(t *testing.T) {
	client, down := net.Pipe()
	origin, up := net.Pipe()
	tunnel, done := New(down, up, Config{}), make(chan Result)
	go func() { done <- tunnel.Run(nil) }()
	send(t, client, "x")
	expect(t, origin, "x")
	expectLent(t, 2)
	tunnel.Close(Drain)
	<-done
	expectLent(t, 0)
}

func TestAllBuffersComeBack(t *testing.T) {
	for _, kind := range kinds {
		r := startRig(t, kind, Config{}, "early")
		reset(t, r.origin)
		r.wait(t)
	}
	expectLent(t, 0)
}

// TestAllocations checks the number of allocations for a message each way.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool throws buffers away")
	}
	// The relay allocates nothing, since the callbacks are built by Wrap, buffers are
	// pooled, and crypto/tls pools what it writes through. Over TLS each try to
	// read a record makes crypto/tls allocate a reader of 24 bytes: 1 in the
	// test's client, 2 in the tunnel for the record, 3 in the tunnel for
	// finding that there is no other before it waits.
	for kind, want := range map[string]float64{"tcp": 0, "unix": 0, "tls": 3} {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			p := make([]byte, 512)
			pingPong := func() {
				r.client.Write(p)
				readFull(r.origin, p)
				r.origin.Write(p)
				readFull(r.client, p)
			}
			pingPong()
			if got := testing.AllocsPerRun(200, pingPong); got > want {
				t.Errorf("got %v allocations for a message each way, want %v", got, want)
			}
		})
	}
}

func readFull(c net.Conn, p []byte) {
	for n := 0; n < len(p); {
		m, err := c.Read(p[n:])
		if err != nil {
			panic(err)
		}
		n += m
	}
}
