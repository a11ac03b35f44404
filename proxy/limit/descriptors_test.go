package limit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestDescriptors checks that Take never exceeds the bound, also when the bound is
// changed.
func TestDescriptors(t *testing.T) {
	d := NewDescriptors(8)
	if !d.Take(5) || d.Take(4) || !d.Take(3) || d.Take(1) {
		t.Error("not exactly 8 can be taken")
	}
	if got, want := d.Stats(), (DescriptorStats{Used: 8, Most: 8, Missed: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	d.Give(5)
	if !d.Take(5) {
		t.Error("what was given back cannot be taken")
	}
	d.SetMost(2)
	if d.Give(6); d.Take(1) {
		t.Error("taken beyond a bound that was lowered")
	}
	d.SetMost(-1)
	if d.Give(2); d.Take(1) || d.Stats().Most != 0 {
		t.Error("a negative bound is not zero")
	}
}

func TestZeroDescriptorsGiveNone(t *testing.T) {
	var none Descriptors
	if none.Take(1) || none.TakeSpare(1) || none.TakeSoon(t.Context()) {
		t.Error("the zero value has some")
	}
	none.Give(0)
	none.SetMost(1)
	if !none.Take(1) {
		t.Error("a bound that was set does not count")
	}
}

func TestNilDescriptorsAreUnlimited(t *testing.T) {
	var d *Descriptors
	if !d.Take(1<<40) || !d.TakeSpare(1<<40) || !d.TakeSoon(t.Context()) || d.Scarce() || d.Short(time.Now()) || d.Stats() != (DescriptorStats{}) {
		t.Error("nil is bounded")
	}
	d.Give(1)
	if !d.Missing(syscall.EMFILE) {
		t.Error("nil does not know an error")
	}
}

// TestSpareDescriptors checks that TakeSpare does not take from the last quarter, and
// that descriptors are scarce once Take does.
func TestSpareDescriptors(t *testing.T) {
	d := NewDescriptors(8)
	if !d.Take(4) || !d.TakeSpare(2) || d.TakeSpare(1) {
		t.Error("not exactly six of eight are spare")
	}
	if d.Scarce() || d.Stats().Missed != 0 {
		t.Error("scarce before the last quarter")
	}
	if !d.Take(1) || !d.Scarce() {
		t.Error("not scarce in the last quarter")
	}
}

// TestShortAfterAMissingDescriptor checks that descriptors are short for the time
// shortFor after one was missing, and that each missing descriptor counts once.
func TestShortAfterAMissingDescriptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDescriptors(0)
		if d.Short(time.Now()) {
			t.Error("short at the start")
		}
		d.Take(1)
		time.Sleep(shortFor - 1)
		if !d.Short(time.Now()) {
			t.Error("not short any more, too soon")
		}
		time.Sleep(time.Nanosecond)
		if d.Short(time.Now()) {
			t.Error("short for too long")
		}
		if d.Missing(ErrNoDescriptor); d.Short(time.Now()) {
			t.Error("counted twice: by Take, and by its error")
		}
		if d.Missing(syscall.ENFILE); !d.Short(time.Now()) {
			t.Error("not short when the system is")
		}
	})
}

// TestNoDescriptor checks which errors mean that this process or the system has no
// descriptor or memory left for a socket.
func TestNoDescriptor(t *testing.T) {
	wrap := func(err error) error {
		return fmt.Errorf("asking: %w", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", err)})
	}
	for _, err := range []error{
		syscall.EMFILE, wrap(syscall.EMFILE), wrap(syscall.ENFILE), wrap(syscall.ENOBUFS), wrap(syscall.ENOMEM), fmt.Errorf("x: %w", ErrNoDescriptor),
		errors.Join(io.EOF, wrap(syscall.EMFILE)), &os.PathError{Op: "open", Err: syscall.EMFILE},
	} {
		if !NoDescriptor(err) {
			t.Errorf("%v is not taken for a missing descriptor", err)
		}
	}
	for _, err := range []error{
		nil, io.EOF, wrap(syscall.ECONNREFUSED), wrap(syscall.EHOSTUNREACH), wrap(syscall.EADDRNOTAVAIL), wrap(syscall.ECONNABORTED), context.DeadlineExceeded,
	} {
		if NoDescriptor(err) {
			t.Errorf("%v is taken for a missing descriptor", err)
		}
	}
}

// TestTakeSoon checks that TakeSoon waits for a descriptor that is given back, and does
// not wait again after a wait without one until another is given back.
func TestTakeSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDescriptors(1)
		took := func() (ok bool, waited time.Duration) {
			begin := time.Now()
			ok = d.TakeSoon(t.Context())
			return ok, time.Since(begin)
		}
		expect := func(what string, ok bool, waited time.Duration) {
			t.Helper()
			if gotOK, got := took(); gotOK != ok || got != waited {
				t.Errorf("%s: %v after %s, want %v after %s", what, gotOK, got, ok, waited)
			}
		}
		expect("the first", true, 0)
		time.AfterFunc(maxSoon/2, func() { d.Give(1) })
		expect("while one is about to end", true, maxSoon/2)
		expect("while nothing ends", false, maxSoon)
		expect("after a wait without one", false, 0)
		d.Give(1)
		expect("when one has ended", true, 0)
		time.AfterFunc(maxSoon-1, func() { d.Give(1) })
		expect("after a success, while one is about to end", true, maxSoon-1)
		if got := d.wakeCount.Load(); got != 0 {
			t.Errorf("%d still wait", got)
		}
		expect("after a success, while nothing ends", false, maxSoon)
		d.SetMost(2)
		expect("with a larger bound", true, 0)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if begin := time.Now(); d.TakeSoon(ctx) || time.Since(begin) != 0 {
			t.Error("waited although the context is done")
		}
		if got := d.Stats().Missed; got != 4 {
			t.Errorf("%d were missing, want 4", got)
		}
	})
}

// TestGivenDescriptorsServeAllWaiters checks that several descriptors which are given
// back at once serve all callers of TakeSoon that wait.
func TestGivenDescriptorsServeAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waiting = 3
		d := NewDescriptors(waiting)
		if !d.Take(waiting) {
			t.Fatal("there are none")
		}
		begin := time.Now()
		var all sync.WaitGroup
		for range waiting {
			all.Go(func() {
				if !d.TakeSoon(t.Context()) {
					t.Error("one that was given back is not found")
				}
			})
		}
		synctest.Wait()
		d.Give(waiting)
		all.Wait()
		if late := time.Since(begin); late != 0 {
			t.Errorf("waited for %v", late)
		}
	})
}

// TestConcurrentTakesStayBelowTheBound takes and gives from many goroutines, and checks
// that never more than the bound are taken, and none in the end.
func TestConcurrentTakesStayBelowTheBound(t *testing.T) {
	const most = 10
	d := NewDescriptors(most)
	var open, worst atomic.Int64
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 2000 {
				n, ok := 1+j%2, false
				switch {
				case i == 0:
					n, ok = 1, d.TakeSoon(t.Context())
				case i%2 == 0:
					ok = d.TakeSpare(n)
				default:
					ok = d.Take(n)
				}
				if !ok {
					continue
				}
				now := open.Add(int64(n))
				for was := worst.Load(); now > was && !worst.CompareAndSwap(was, now); was = worst.Load() {
				}
				open.Add(int64(-n))
				d.Give(n)
			}
		})
	}
	all.Wait()
	if worst.Load() > most || d.Stats().Used != 0 {
		t.Errorf("%d of %d were taken at a time, %d are in the end", worst.Load(), most, d.Stats().Used)
	}
}

// TestDescriptorsAllocateNothing checks that taking and giving a descriptor allocates
// nothing.
func TestDescriptorsAllocateNothing(t *testing.T) {
	d := NewDescriptors(2)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if d.Take(1) && d.TakeSoon(ctx) {
			d.Give(2)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
