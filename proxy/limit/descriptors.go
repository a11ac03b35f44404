package limit

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// shortFor is how long descriptors count as short after one was missing.
	shortFor = 10 * time.Second
	// soon is how long TakeSoon waits at most.
	soon = 100 * time.Millisecond
)

// Descriptors count the files and sockets that callers can make the process
// open. Whatever a caller can multiply is taken from here before it is opened,
// so that what is not counted (policies, identities, records, the admin
// listener) always finds a descriptor.
//
// The zero value has none; nil has any number. It is safe for concurrent use.
type Descriptors struct {
	most   atomic.Int64
	used   atomic.Int64
	missed atomic.Uint64
	last   atomic.Int64 // when one was missing last, in Unix nanoseconds; 0 is never

	want atomic.Pointer[func()] // what OnWant was given; nil is nothing

	heed  atomic.Int64  // how many want to know of Give: those who wait, and one more if vain
	vain  atomic.Bool   // a wait was in vain, and nothing was given back since
	freed chan struct{} // something was given back; nil in the zero value, where nothing can be
}

// NewDescriptors returns a count that goes up to most; a negative one is zero.
func NewDescriptors(most int) *Descriptors {
	d := &Descriptors{freed: make(chan struct{}, 1)}
	d.SetMost(most)
	return d
}

// SetMost changes how many may be taken at the same time. What is taken beyond it
// stays, and nothing more is taken until enough of it was given back.
func (d *Descriptors) SetMost(most int) {
	d.most.Store(int64(max(0, most)))
	if d.freed != nil {
		d.wake()
	}
}

// Take takes n, all or none, and reports whether it did. If so, Give must follow
// once they are closed.
func (d *Descriptors) Take(n int) bool {
	if d == nil || d.try(n, d.most.Load()) {
		return true
	}
	if free := d.want.Load(); free != nil {
		(*free)()
		if d.try(n, d.most.Load()) {
			return true
		}
	}
	d.miss()
	return false
}

// OnWant has Take call free when there are too few, before it says so: free closes
// what is kept for speed alone, and gives it back. It may be called from many
// goroutines at the same time.
func (d *Descriptors) OnWant(free func()) { d.want.Store(&free) }

// TakeSoon takes one as Take does. If there is none, it waits for one to be given
// back, for a tenth of a second at most and until ctx is done: what has ended may
// be about to. After a wait in vain nobody waits until that has happened, so that
// many who come while nothing ends are turned away at once.
func (d *Descriptors) TakeSoon(ctx context.Context) bool {
	if d == nil || d.try(1, d.most.Load()) {
		return true
	}
	if d.vain.Load() || d.freed == nil {
		d.miss()
		return false
	}
	late := time.NewTimer(soon)
	defer late.Stop()
	d.heed.Add(1)
	defer d.heed.Add(-1)
	for !d.try(1, d.most.Load()) {
		select {
		case <-d.freed:
			continue
		case <-late.C:
			if !d.vain.Swap(true) {
				d.heed.Add(1)
			}
		case <-ctx.Done():
		}
		d.miss()
		return false
	}
	d.signal() // that one was given back may have been said once for several
	return true
}

// try takes n if no more than most are used then. If not, none counts as missing.
func (d *Descriptors) try(n int, most int64) bool {
	if d.used.Add(int64(n)) <= most {
		return true
	}
	d.used.Add(int64(-n))
	return false
}

// TakeSpare is Take for what can be done without: the last quarter is not for it,
// and if there are too few, none counts as missing.
func (d *Descriptors) TakeSpare(n int) bool { return d == nil || d.try(n, spare(d.most.Load())) }

// Scarce reports whether the last quarter is being used: what was taken by
// TakeSpare should then not be kept for later.
func (d *Descriptors) Scarce() bool { return d != nil && d.used.Load() > spare(d.most.Load()) }

// spare is most without its last quarter.
func spare(most int64) int64 { return most - most/4 }

// Give gives n back that were taken.
func (d *Descriptors) Give(n int) {
	if d == nil {
		return
	}
	d.used.Add(int64(-n))
	if d.heed.Load() != 0 {
		d.wake()
	}
}

// wake ends a wait, and lets others wait again.
func (d *Descriptors) wake() {
	if d.vain.Swap(false) {
		d.heed.Add(-1)
	}
	d.signal()
}

// signal has one of those who wait try again.
func (d *Descriptors) signal() {
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// Missing reports whether an error says that there is no descriptor, as
// NoDescriptor does. One of the system's counts as if Take had found none:
// somebody may have lowered the limit of the process, or others may have filled
// the system.
func (d *Descriptors) Missing(err error) bool {
	if !NoDescriptor(err) {
		return false
	}
	if d != nil && !errors.Is(err, ErrNoDescriptor) {
		d.miss()
	}
	return true
}

func (d *Descriptors) miss() {
	d.missed.Add(1)
	d.last.Store(time.Now().UnixNano())
}

// Short reports whether one was missing within the ten seconds before now.
func (d *Descriptors) Short(now time.Time) bool {
	if d == nil {
		return false
	}
	last := d.last.Load()
	return last != 0 && now.UnixNano()-last < int64(shortFor)
}

// DescriptorStats say how many are taken of how many, and how often one was
// missing.
type DescriptorStats struct {
	Used, Most int
	Missed     uint64
}

// Stats returns the counts of now; zero for nil.
func (d *Descriptors) Stats() DescriptorStats {
	if d == nil {
		return DescriptorStats{}
	}
	return DescriptorStats{Used: int(d.used.Load()), Most: int(d.most.Load()), Missed: d.missed.Load()}
}

// ErrNoDescriptor is why something was not opened for which Take has none.
var ErrNoDescriptor = errors.New("no file descriptor is left for it")

// NoDescriptor reports whether an error says that there is no descriptor, or no
// memory for a socket: a want of the gateway's, whoever it was about to reach.
func NoDescriptor(err error) bool {
	for _, none := range [...]error{ErrNoDescriptor, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, none) {
			return true
		}
	}
	return false
}
