package tunnel

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// expectPipes waits until n pipes are lent.
func expectPipes(t *testing.T, want int64) {
	t.Helper()
	for begin := time.Now(); pipes.lent.Load() != want; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatalf("got %d pipes lent, want %d", pipes.lent.Load(), want)
		}
	}
}

// flood sends bytes from the origin until no more can be sent. The client reads nothing,
// so that the relay is stuck with some bytes in a pipe or a buffer.
func flood(t *testing.T, r *rig) []byte {
	t.Helper()
	all := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{1}).Read(all)
	r.origin.SetWriteDeadline(time.Now().Add(60 * time.Millisecond))
	n, err := r.origin.Write(all)
	if err == nil {
		t.Fatalf("wrote %d bytes though nobody reads", n)
	}
	r.origin.SetDeadline(time.Now().Add(patience))
	return all[:n]
}

func TestBulkBetweenSocketsIsSpliced(t *testing.T) {
	for _, kind := range []string{"tcp", "unix"} {
		t.Run(kind, func(t *testing.T) {
			r := startRig(t, kind, Config{}, "")
			var reading sync.WaitGroup
			reading.Go(func() { io.Copy(io.Discard, r.client) })
			reading.Go(func() {
				for p := make([]byte, 1<<20); ; {
					if _, err := r.origin.Write(p); err != nil {
						return // the test has closed the connection
					}
				}
			})
			expectPipes(t, 1)
			r.Close(Drain)
			reading.Wait()
			r.wait(t)
			expectPipes(t, 0)
		})
	}
}

func TestStuckBytesArriveWhenTheClientReads(t *testing.T) {
	r := startRig(t, "tcp", Config{}, "")
	sent := flood(t, r)
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(r.client, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes arrived, %v; equal: %v", n, len(sent), err, bytes.Equal(got, sent))
	}
	send(t, r.origin, "a little")
	expect(t, r.client, "a little")
	expectPipes(t, 0)
	expectLent(t, 0)
	finish(t, r.origin)
	expectEnd(t, r.client, "")
	finish(t, r.client)
	check(t, r.wait(t), Result{Down: int64(len(sent)) + 8, Reason: Upstream})
}

// TestCloseCountsWhatArrives checks that a closed tunnel counts exactly the bytes that
// arrive.
func TestCloseCountsWhatArrives(t *testing.T) {
	r := startRig(t, "tcp", Config{}, "")
	sent := flood(t, r)
	r.Close(Denied)
	got := r.wait(t)
	if got.Reason != Denied || got.Down == 0 || got.Down > int64(len(sent)) {
		t.Errorf("got %+v of %d bytes", got, len(sent))
	}
	expectPipes(t, 0)
	arrived, _ := io.ReadAll(r.client)
	if !bytes.HasPrefix(sent, arrived) || int64(len(arrived)) != got.Down {
		t.Errorf("%d bytes arrived, %d were counted; they are those that were sent: %v",
			len(arrived), got.Down, bytes.HasPrefix(sent, arrived))
	}
}

// TestAPeerThatLeavesGivesThePipeBack checks that a tunnel gives its pipe back when the
// client resets its connection.
func TestAPeerThatLeavesGivesThePipeBack(t *testing.T) {
	r := startRig(t, "tcp", Config{}, "")
	flood(t, r)
	reset(t, r.client)
	r.wait(t)
	expectPipes(t, 0)
}

// TestIdleCountsWhileAPipeIsStuck checks that a tunnel ends as idle while its client
// reads nothing of a pipe.
func TestIdleCountsWhileAPipeIsStuck(t *testing.T) {
	r := startRig(t, "tcp", Config{Idle: 300 * time.Millisecond}, "")
	flood(t, r)
	if got := r.wait(t); got.Reason != Idle {
		t.Errorf("got %+v", got)
	}
	expectPipes(t, 0)
}

func TestProgressOfSplicedBytes(t *testing.T) {
	reports := make(chan int64, 1000)
	r := startRig(t, "tcp", Config{ProgressBytes: 1 << 20, Progress: func(_, down int64) { reports <- down }}, "")
	sent := flood(t, r)
	if _, err := io.ReadFull(r.client, make([]byte, len(sent))); err != nil {
		t.Fatal(err)
	}
	if first := <-reports; first < 1<<20 || first > int64(len(sent)) {
		t.Errorf("the first report is of %d bytes", first)
	}
}

// bare returns a splicer from one connection to another, and the far ends of both.
func bare(t *testing.T) (s *splicer, from, to net.Conn) {
	t.Helper()
	from, src := pair(t, "tcp")
	to, dst := pair(t, "tcp")
	return newSplicer(newSide(Upstream, src), newSide(Client, dst), nil), from, to
}

// TestASplicerIsWantedWhileThereIsMuch checks that bytes are spliced after a read that
// filled the buffer, and until a splice moves little.
func TestASplicerIsWantedWhileThereIsMuch(t *testing.T) {
	s, from, to := bare(t)
	s.noteRead(bufferSize - 1)
	if s.wanted() {
		t.Error("wanted after a small read")
	}
	s.noteRead(bufferSize)
	if !s.wanted() {
		t.Error("not wanted after a read that filled the buffer")
	}
	send(t, from, "little")
	if n, err := s.fill(); n != 6 || err != nil {
		t.Fatalf("filled with %d bytes, %v", n, err)
	}
	expectPipes(t, 1)
	if n, err := s.drain(); n != 6 || err != nil {
		t.Fatalf("drained %d bytes, %v", n, err)
	}
	expectPipes(t, 0)
	if s.wanted() {
		t.Error("wanted after little")
	}
	expect(t, to, "little")
	finish(t, from)
	if n, err := s.fill(); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
	expectPipes(t, 0)
}

// TestPipeWithUndeliveredBytesIsNotUsedAgain checks that a pipe whose bytes could not be
// written is not given to another tunnel.
func TestPipeWithUndeliveredBytesIsNotUsedAgain(t *testing.T) {
	s, from, _ := bare(t)
	send(t, from, "lost")
	if _, err := s.fill(); err != nil {
		t.Fatal(err)
	}
	s.dst = closedSocket(t)
	if _, err := s.drain(); err == nil || s.pipe != nil {
		t.Errorf("got %v, and the pipe %v", err, s.pipe)
	}
	expectPipes(t, 0)
}

// closedSocket returns a connection that can no longer be written to.
func closedSocket(t *testing.T) syscall.RawConn {
	t.Helper()
	_, conn := pair(t, "tcp")
	raw := newSide(Client, conn).socket()
	conn.Close()
	return raw
}

// unspliceable is a descriptor that splice(2) does not take.
type unspliceable struct {
	syscall.RawConn
	fd uintptr
}

func (u unspliceable) Read(f func(fd uintptr) bool) error {
	f(u.fd)
	return nil
}

func TestUnspliceableDescriptorIsNotTriedAgain(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	s, _, _ := bare(t)
	s.src = unspliceable{fd: dir.Fd()}
	if n, err := s.fill(); n != 0 || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if s.noteRead(bufferSize); s.wanted() {
		t.Error("still wanted")
	}
	expectPipes(t, 0)
}

// TestBytesTakeABufferWithoutAPipe checks that bytes are relayed by a buffer while no
// pipe is left, and that a splice is tried again later.
func TestBytesTakeABufferWithoutAPipe(t *testing.T) {
	pipes.lent.Add(mostPipes)
	defer pipes.lent.Add(-mostPipes)
	s, from, _ := bare(t)
	send(t, from, "x")
	if n, err := s.fill(); n != 0 || err != nil || s.pipe != nil {
		t.Errorf("got %d bytes, %v, and the pipe %v", n, err, s.pipe)
	}
	if s.wanted() {
		t.Error("still wanted at once")
	}
	if s.noteRead(bufferSize); !s.wanted() {
		t.Error("not wanted later")
	}
	bulkBothWays(t, "tcp", 8<<20)
}

func TestNoSpliceOverTLSOrForeignConnections(t *testing.T) {
	_, conn := pair(t, "tcp")
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", conn)
	}
	type foreign struct{ *net.TCPConn }
	plain := newSide(Upstream, tcp)
	secure := newRig(t, "tls", Config{}).Tunnel.client
	for name, sides := range map[string][2]*side{
		"from TLS":     {secure, plain},
		"to TLS":       {plain, secure},
		"from foreign": {newSide(Client, foreign{tcp}), plain},
		"to foreign":   {plain, newSide(Client, foreign{tcp})},
	} {
		if newSplicer(sides[0], sides[1], nil) != nil {
			t.Errorf("%s: got a splicer, want none", name)
		}
	}
}

// counted lends descriptors to pipes, and counts how many are taken.
type counted struct {
	most, used atomic.Int64
	scarce     atomic.Bool
}

func (c *counted) pipes() *Pipes {
	return NewPipes(PipesConfig{
		Take: func(n int) bool {
			if c.used.Add(int64(n)) > c.most.Load() {
				c.used.Add(int64(-n))
				return false
			}
			return true
		},
		Scarce: c.scarce.Load,
		Give:   func(n int) { c.used.Add(int64(-n)) },
	})
}

// TestBytesTakeABufferWithoutDescriptors checks that bytes arrive if there are too few
// descriptors for a pipe.
func TestBytesTakeABufferWithoutDescriptors(t *testing.T) {
	var none counted
	none.most.Store(1) // one less than a pipe needs
	p := none.pipes()
	r := startRig(t, "tcp", Config{Pipes: p}, "")
	sent := flood(t, r)
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(r.client, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes arrived, %v; equal: %v", n, len(sent), err, bytes.Equal(got, sent))
	}
	if p.get() != nil || none.used.Load() != 0 || p.lent.Load() != 0 {
		t.Errorf("%d descriptors are taken, %d pipes lent", none.used.Load(), p.lent.Load())
	}
}

// TestPipesGiveTheirDescriptorsBack checks that a pipe keeps its descriptors for another
// tunnel while there are enough. It gives them back when they are scarce, when it is
// closed, and when the garbage collector takes it from the pool.
func TestPipesGiveTheirDescriptorsBack(t *testing.T) {
	var c counted
	c.most.Store(2)
	p := c.pipes()
	one := p.get()
	if one == nil || p.get() != nil || c.used.Load() != 2 {
		t.Fatalf("two descriptors make one pipe: %d are taken", c.used.Load())
	}
	c.scarce.Store(true)
	if p.put(one); c.used.Load() != 0 {
		t.Errorf("%d descriptors are taken by a pipe that is scarce", c.used.Load())
	}
	c.scarce.Store(false)
	if one = p.get(); one == nil {
		t.Fatal("no pipe when they are given back")
	}
	if one.close(); c.used.Load() != 0 {
		t.Errorf("%d descriptors are taken by a pipe that is closed", c.used.Load())
	}
	p.lent.Add(-1)
	p.put(p.get())
	p.free = sync.Pool{}
	for begin := time.Now(); c.used.Load() != 0; runtime.GC() { // the pipe is unreachable
		if time.Since(begin) > patience {
			t.Fatal("a pipe that the collector takes keeps its descriptors")
		}
	}
}
