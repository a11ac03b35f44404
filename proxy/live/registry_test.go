package live

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// probe is an entry that keeps the reason for which it was ended.
type probe struct {
	*Entry
	reason atomic.Uint32
	ends   atomic.Int32
}

func newProbe() *probe {
	p := &probe{Entry: &Entry{}}
	p.End = func(r tunnel.Reason, _ allowlist.Reason) {
		p.reason.Store(uint32(r))
		p.ends.Add(1)
	}
	return p
}

func (p *probe) ended() tunnel.Reason { return tunnel.Reason(p.reason.Load()) }

// TestAddAndRemove checks that the registry counts what was added, and that EndAll does
// not end what was removed.
func TestAddAndRemove(t *testing.T) {
	var r Registry
	a, b := newProbe(), newProbe()
	r.Remove(a.Entry) // removing what is not there does nothing
	r.Add(a.Entry)
	r.Add(b.Entry)
	if r.Len() != 2 {
		t.Errorf("%d tunnels, want 2", r.Len())
	}
	r.Remove(a.Entry)
	r.Remove(a.Entry)
	if r.Len() != 1 {
		t.Errorf("%d tunnels, want 1", r.Len())
	}
	r.EndAll(tunnel.Denied)
	if a.ended() != tunnel.None || b.ended() != tunnel.Denied {
		t.Errorf("the one that left was ended with %v, the other with %v", a.ended(), b.ended())
	}
}

func TestAddAfterEndAllEndsAtOnce(t *testing.T) {
	var r Registry
	r.EndAll(tunnel.None) // None is replaced by Error
	p := newProbe()
	r.Add(p.Entry)
	if p.ended() != tunnel.Error || r.Len() != 1 {
		t.Errorf("ended with %v, %d open; want error, and 1 until it is removed", p.ended(), r.Len())
	}
	r.EndAll(tunnel.Drain)
	if n := p.ends.Load(); n != 1 {
		t.Errorf("told %d times to end, want once", n)
	}
}

// TestEndAllMayRemoveEntries checks that an entry may remove itself while EndAll, or Add
// after EndAll, ends it.
func TestEndAllMayRemoveEntries(t *testing.T) {
	var r Registry
	p := &Entry{}
	p.End = func(tunnel.Reason, allowlist.Reason) { r.Remove(p) }
	r.Add(p)
	r.EndAll(tunnel.Drain)
	r.Add(p)
	if r.Len() != 0 {
		t.Errorf("%d tunnels, want 0", r.Len())
	}
}

func TestDrainOfNothingReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Registry
		start := time.Now()
		r.Drain(time.Hour)
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestDrainReturnsWithTheLastTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Registry
		a, b := newProbe(), newProbe()
		r.Add(a.Entry)
		r.Add(b.Entry)
		time.AfterFunc(time.Second, func() { r.Remove(a.Entry) })
		time.AfterFunc(3*time.Second, func() { r.Remove(b.Entry) })
		start := time.Now()
		r.Drain(time.Hour)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v, want 3s", took)
		}
		if a.ends.Load()+b.ends.Load() != 0 {
			t.Error("a tunnel that finished by itself was ended")
		}
	})
}

func TestDrainEndsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Registry
		stays, late := newProbe(), newProbe()
		r.Add(stays.Entry)
		start := time.Now()
		r.Drain(30 * time.Second)
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("took %v, want 30s", took)
		}
		r.Add(late.Entry)
		if stays.ended() != tunnel.Drain || late.ended() != tunnel.Drain {
			t.Errorf("ended with %v, the late one with %v; want drain", stays.ended(), late.ended())
		}
	})
}

// TestDrainsAtTheSameTime checks that each of several concurrent calls of Drain returns
// when the last tunnel has left.
func TestDrainsAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Registry
		p := newProbe()
		r.Add(p.Entry)
		time.AfterFunc(2*time.Second, func() { r.Remove(p.Entry) })
		start := time.Now()
		var drains sync.WaitGroup
		for range 3 {
			drains.Go(func() { r.Drain(time.Hour) })
		}
		drains.Wait()
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %v, want 2s", took)
		}
	})
}

// TestNoTunnelEscapesEndAll checks that a tunnel which is added while EndAll runs is
// ended, too.
func TestNoTunnelEscapesEndAll(t *testing.T) {
	var r Registry
	probes := make([]*probe, 200)
	var running sync.WaitGroup
	start := make(chan struct{})
	for i := range probes {
		probes[i] = newProbe()
		running.Go(func() {
			<-start
			r.Add(probes[i].Entry)
			if i%2 == 0 {
				r.Remove(probes[i].Entry)
			}
		})
	}
	running.Go(func() {
		<-start
		r.EndAll(tunnel.Quarantined)
	})
	close(start)
	running.Wait()
	for i, p := range probes {
		if i%2 == 1 && p.ended() != tunnel.Quarantined {
			t.Errorf("tunnel %d is open", i)
		}
	}
	if got, want := r.Len(), len(probes)/2; got != want {
		t.Errorf("%d in the registry, want %d", got, want)
	}
}
