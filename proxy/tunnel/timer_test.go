package tunnel

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// overPipes runs a tunnel over net.Pipe, for a synctest bubble.
func overPipes(t *testing.T, cfg Config) (client, origin net.Conn, result <-chan Result) {
	t.Helper()
	client, down := net.Pipe()
	origin, up := net.Pipe()
	ended := make(chan Result, 1)
	go func() { ended <- New(down, up, cfg).Run(nil) }()
	t.Cleanup(func() {
		client.Close()
		origin.Close()
	})
	return client, origin, ended
}

// TestIdle checks that a tunnel ends when no byte was relayed either way for the idle
// time.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, origin, result := overPipes(t, Config{Idle: 10 * time.Minute})
		for range 3 { // bytes either way keep the tunnel
			<-time.After(9 * time.Minute)
			send(t, client, "x")
			expect(t, origin, "x")
			<-time.After(9 * time.Minute)
			send(t, origin, "yy")
			expect(t, client, "yy")
		}
		got := <-result
		if want := (Result{Up: 3, Down: 6, Duration: 64 * time.Minute, Reason: Idle}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		expectEnd(t, client, "")
		expectEnd(t, origin, "")
	})
}

// TestIdleCountsWhileAWriteIsStuck checks that a tunnel ends as idle if a peer does not
// read what was sent to it.
func TestIdleCountsWhileAWriteIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, result := overPipes(t, Config{})
		<-time.After(time.Minute)
		send(t, client, "nobody reads this")
		got := <-result
		if want := (Result{Duration: time.Minute + DefaultIdle, Reason: Idle}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// TestMaxDuration checks that a tunnel ends after its greatest duration, although bytes
// are relayed.
func TestMaxDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, origin, result := overPipes(t, Config{})
		go func() {
			for {
				if _, err := origin.Read(make([]byte, 10)); err != nil {
					return
				}
			}
		}()
		for {
			<-time.After(7 * time.Minute)
			if _, err := client.Write([]byte("x")); err != nil {
				break
			}
		}
		got := <-result
		if want := (Result{Up: 102, Duration: DefaultMax, Reason: MaxDuration}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

type report struct {
	At       time.Duration
	Up, Down int64
}

// TestProgress checks that progress is reported at most once a minute, at once after
// ProgressBytes, and not while nothing is relayed.
func TestProgress(t *testing.T) {
	var got []report
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		cfg := Config{ProgressBytes: 100, Progress: func(up, down int64) {
			got = append(got, report{time.Since(start), up, down})
		}}
		client, origin, result := overPipes(t, cfg)
		exchange := func(n int) {
			send(t, client, string(make([]byte, n)))
			expect(t, origin, string(make([]byte, n)))
			synctest.Wait()
		}
		<-time.After(30 * time.Second)
		exchange(10) // reported at the end of the minute
		<-time.After(45 * time.Second)
		exchange(100) // reported at once, since it is ProgressBytes
		exchange(99)
		<-time.After(10*time.Minute + time.Second) // the last bytes are reported after a minute, and then nothing until others come
		exchange(1)
		<-result
	})
	want := []report{
		{60 * time.Second, 10, 0},
		{75 * time.Second, 110, 0},
		{135 * time.Second, 209, 0},
		{735 * time.Second, 210, 0},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got -, want +\n%s", diff)
	}
}

// TestTheEndOfOneWayEndsBothWithoutCloseWrite checks that the end of one direction ends
// the tunnel if a connection has no CloseWrite.
func TestTheEndOfOneWayEndsBothWithoutCloseWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, origin, result := overPipes(t, Config{})
		send(t, origin, "x")
		expect(t, client, "x")
		origin.Close()
		got := <-result
		if want := (Result{Down: 1, Reason: Upstream}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		expectEnd(t, client, "")
	})
}
