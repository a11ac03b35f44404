package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var closings = []Reason{Idle, MaxDuration, Denied, Revoked, Quarantined, Limit, Drain, Error}

func check(t *testing.T, got, want Result) {
	t.Helper()
	if diff := cmp.Diff(got, want, cmpopts.IgnoreFields(Result{}, "Duration", "Err")); diff != "" {
		t.Errorf("result: got -, want +\n%s", diff)
	}
	if got.Duration <= 0 || (got.Err != nil) != (want.Err != nil) {
		t.Errorf("got duration %v, error %v, want error %v", got.Duration, got.Err, want.Err)
	}
}

func TestEarlyBytesComeFirst(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind, Config{})
			send(t, r.client, "then this")
			r.start(t, "early, ")
			expect(t, r.origin, "early, then this")
		})
	}
}

func TestOriginSpeaksFirst(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			send(t, r.origin, "220 ready")
			expect(t, r.client, "220 ready")
			send(t, r.client, "HELO")
			expect(t, r.origin, "HELO")
			if up, down := r.Counts(); up > 4 || down > 9 {
				t.Errorf("got counts %d, %d", up, down)
			}
		})
	}
}

func TestClientFinishesAndTheOriginDrains(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "early")
			send(t, r.client, "question")
			finish(t, r.client)
			expectEnd(t, r.origin, "earlyquestion")
			send(t, r.origin, "late answer")
			finish(t, r.origin)
			expectEnd(t, r.client, "late answer")
			check(t, r.wait(t), Result{Up: 13, Down: 11, Reason: Client})
		})
	}
}

func TestOriginFinishesAndTheClientDrains(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			send(t, r.origin, "all there is")
			finish(t, r.origin)
			expectEnd(t, r.client, "all there is")
			send(t, r.client, "thanks")
			finish(t, r.client)
			expectEnd(t, r.origin, "thanks")
			check(t, r.wait(t), Result{Up: 6, Down: 12, Reason: Upstream})
		})
	}
}

// TestClientLeavesWithoutWaiting checks that a client which closes its connection before
// the origin's answer ends the tunnel without an error.
func TestClientLeavesWithoutWaiting(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			send(t, r.client, "bye")
			r.client.Close()
			expectEnd(t, r.origin, "bye")
			// The first of these bytes makes the client's system answer RST, a
			// later one meets that RST. A client that has left is no error.
			for {
				if _, err := r.origin.Write(make([]byte, 1<<10)); err != nil {
					break
				}
			}
			got := r.wait(t)
			got.Down = 0
			check(t, got, Result{Up: 3, Reason: Client})
		})
	}
}

// TestResetOfTheOrigin checks that a reset of the origin ends the tunnel as an error,
// and is not shown to the client as an orderly end.
func TestResetOfTheOrigin(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			send(t, r.origin, "half an ans")
			expect(t, r.client, "half an ans")
			reset(t, r.origin)
			got := r.wait(t)
			check(t, got, Result{Down: 11, Reason: Error, Err: got.Err})
			if !errors.Is(got.Err, syscall.ECONNRESET) {
				t.Errorf("got error %v, want %v", got.Err, syscall.ECONNRESET)
			}
			// A bare FIN follows, without the close_notify of an orderly end.
			if rest, err := io.ReadAll(r.wire); len(rest) != 0 || err != nil {
				t.Errorf("got %q, %v, want the end and nothing before", rest, err)
			}
		})
	}
}

func TestResetOfTheClient(t *testing.T) {
	for _, kind := range []string{"tcp", "tls"} {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			send(t, r.client, "x")
			expect(t, r.origin, "x")
			reset(t, r.wire)
			got := r.wait(t)
			check(t, got, Result{Up: 1, Reason: Error, Err: got.Err})
			if !errors.Is(got.Err, syscall.ECONNRESET) {
				t.Errorf("got error %v, want %v", got.Err, syscall.ECONNRESET)
			}
			expectEnd(t, r.origin, "")
		})
	}
}

func reset(t *testing.T, c net.Conn) {
	t.Helper()
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T cannot be reset", c)
	}
	tcp.SetLinger(0)
	tcp.Close()
}

// TestCloseWhileBothPeersAreStalled checks that Close ends a tunnel although both peers
// send and do not read.
func TestCloseWhileBothPeersAreStalled(t *testing.T) {
	flood := make([]byte, 64<<20)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			for _, reason := range closings {
				t.Run(reason.String(), func(t *testing.T) {
					t.Parallel()
					r := startRig(t, kind, Config{}, "")
					var full sync.WaitGroup
					for _, peer := range []net.Conn{r.wire, r.origin} {
						peer.SetWriteDeadline(time.Now().Add(60 * time.Millisecond))
					}
					for _, peer := range []net.Conn{r.client, r.origin} {
						full.Go(func() {
							if n, err := peer.Write(flood); err == nil {
								t.Errorf("wrote %d bytes though nobody reads", n)
							}
						})
					}
					full.Wait()
					r.Close(reason)
					r.Close(Limit) // a second reason is ignored
					got := r.wait(t)
					got.Up, got.Down = 0, 0
					check(t, got, Result{Reason: reason})
				})
			}
		})
	}
}

func TestCloseOfAnIdleTunnel(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			send(t, r.client, "x")
			expect(t, r.origin, "x")
			r.Close(Denied)
			check(t, r.wait(t), Result{Up: 1, Reason: Denied})
			expectEnd(t, r.origin, "")
			expectEnd(t, r.client, "")
		})
	}
}

// TestCloseWithoutAReason checks that Close without a reason ends a tunnel as an error.
func TestCloseWithoutAReason(t *testing.T) {
	r := startRig(t, "tcp", Config{}, "")
	r.Close(None)
	check(t, r.wait(t), Result{Reason: Error})
}

func TestCloseBeforeRun(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind, Config{})
			r.Close(Quarantined)
			r.start(t, "must not be sent")
			check(t, r.wait(t), Result{Reason: Quarantined})
			expectEnd(t, r.origin, "")
			expectEnd(t, r.client, "")
			r.Close(Denied) // Close after Run does nothing
		})
	}
}

func TestCloseBeforeRunWithAPeerThatDoesNotRead(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind, Config{})
			// Fill the socket below TLS, so that no close_notify fits.
			below := r.Tunnel.client.conn
			if s := r.Tunnel.client.secure; s != nil {
				below = s.NetConn()
			}
			below.SetWriteDeadline(time.Now().Add(60 * time.Millisecond))
			if n, err := below.Write(make([]byte, 64<<20)); err == nil {
				t.Fatalf("wrote %d bytes though nobody reads", n)
			}
			r.Close(Drain)
			got := r.Run(nil)
			check(t, got, Result{Reason: Drain})
			if got.Duration > time.Second {
				t.Errorf("Run took %v", got.Duration)
			}
		})
	}
}

func TestConcurrentCloses(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			for range 20 {
				r := newRig(t, kind, Config{})
				var storm sync.WaitGroup
				begin := make(chan struct{})
				for _, reason := range closings {
					storm.Go(func() {
						<-begin
						r.Close(reason)
						r.Counts()
					})
				}
				storm.Go(func() {
					<-begin
					finish(t, r.client)
				})
				close(begin)
				r.start(t, "early")
				got := r.wait(t)
				storm.Wait()
				if got.Reason == None || got.Reason == Upstream {
					t.Errorf("got %+v, want a reason that was given", got)
				}
				if _, err := io.ReadAll(r.origin); err != nil {
					t.Errorf("reading the origin's end: %v", err)
				}
			}
		})
	}
}

func TestDeadlinesFromBeforeTheTunnelAreLifted(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind, Config{})
			r.Tunnel.client.conn.SetDeadline(time.Now().Add(-time.Second))
			r.upstream.conn.SetDeadline(time.Now().Add(-time.Second))
			r.start(t, "")
			send(t, r.client, "x")
			expect(t, r.origin, "x")
		})
	}
}

// TestReasonTokens checks the text of each reason for which a tunnel ends.
func TestReasonTokens(t *testing.T) {
	var got []string
	for r := range Error + 2 {
		got = append(got, fmt.Sprint(r))
	}
	want := []string{"none", "client", "upstream", "idle", "max-duration", "denied", "revoked", "quarantined", "limit", "drain", "error", "unknown"}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got -, want +\n%s", diff)
	}
}
