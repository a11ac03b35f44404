package limit

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// shortFor is how long Short returns true after a descriptor was missing.
	shortFor = 10 * time.Second
	// maxSoon is the longest time that TakeSoon waits.
	maxSoon = 100 * time.Millisecond
)

// Descriptors counts the files and sockets that callers can make the process open.
// Every descriptor whose number a caller can raise is taken from this count before it
// is opened, so that everything else (policies, identities, records, the admin listener)
// always finds a free descriptor.
//
// The zero value has no descriptors; a nil Descriptors has no limit. It is safe for
// concurrent use.
type Descriptors struct {
	most   atomic.Int64  // the largest number that may be taken
	used   atomic.Int64  // the number that is taken
	missed atomic.Uint64 // how often there was none left
	last   atomic.Int64  // when there was none left for the last time, in Unix nanoseconds; 0 means never

	onWant atomic.Pointer[func()] // the function that OnWant has set; nil if none

	wakeCount    atomic.Int64  // Give wakes somebody if this is not 0: the number of waiting calls, plus one if waitedInVain is set
	waitedInVain atomic.Bool   // a call has waited in vain, and no descriptor has been given back since
	freed        chan struct{} // receives when a descriptor is given back; nil in the zero value
}

// NewDescriptors returns Descriptors that allow most descriptors to be taken at the same
// time. A negative number means zero.
func NewDescriptors(most int) *Descriptors {
	d := &Descriptors{freed: make(chan struct{}, 1)}
	d.SetMost(most)
	return d
}

// SetMost changes how many descriptors may be taken at the same time. If more are taken
// already they stay taken, and Take fails until enough of them have been given back.
func (d *Descriptors) SetMost(most int) {
	d.most.Store(int64(max(0, most)))
	if d.freed != nil {
		d.wake()
	}
}

// Take takes n descriptors or none, and reports whether it took them. If it did, Give
// must follow when they are closed.
func (d *Descriptors) Take(n int) bool {
	if d == nil || d.try(n, d.most.Load()) {
		return true
	}
	if free := d.onWant.Load(); free != nil {
		(*free)()
		if d.try(n, d.most.Load()) {
			return true
		}
	}
	d.miss()
	return false
}

// OnWant sets the function that Take calls before it fails. The function closes
// descriptors that are open only for speed, such as idle connections, and gives them
// back. It may be called from several goroutines at the same time.
func (d *Descriptors) OnWant(free func()) { d.onWant.Store(&free) }

// TakeSoon takes one descriptor as Take does. If none is left, it waits until one is
// given back, ctx is done or a tenth of a second has passed, because connections that
// have just ended may give theirs back soon. After it has waited in vain, later calls
// fail at once until a descriptor is given back.
func (d *Descriptors) TakeSoon(ctx context.Context) bool {
	if d == nil || d.try(1, d.most.Load()) {
		return true
	}
	if d.waitedInVain.Load() || d.freed == nil {
		d.miss()
		return false
	}
	late := time.NewTimer(maxSoon)
	defer late.Stop()
	d.wakeCount.Add(1)
	defer d.wakeCount.Add(-1)
	for !d.try(1, d.most.Load()) {
		select {
		case <-d.freed:
			continue
		case <-late.C:
			if !d.waitedInVain.Swap(true) {
				d.wakeCount.Add(1)
			}
		case <-ctx.Done():
		}
		d.miss()
		return false
	}
	d.signal() // several may have been given back, but freed holds one signal only
	return true
}

// try takes n descriptors if at most most are taken then. A failure does not count as
// missing.
func (d *Descriptors) try(n int, most int64) bool {
	if d.used.Add(int64(n)) <= most {
		return true
	}
	d.used.Add(int64(-n))
	return false
}

// TakeSpare takes n descriptors for something that the gateway can do without. It does
// not use the last quarter, and its failure does not count as missing.
func (d *Descriptors) TakeSpare(n int) bool { return d == nil || d.try(n, spare(d.most.Load())) }

// Scarce reports whether the last quarter is in use. Descriptors from TakeSpare should
// then not be kept for later.
func (d *Descriptors) Scarce() bool { return d != nil && d.used.Load() > spare(d.most.Load()) }

// spare returns most without its last quarter.
func spare(most int64) int64 { return most - most/4 }

// Give gives n descriptors back.
func (d *Descriptors) Give(n int) {
	if d == nil {
		return
	}
	d.used.Add(int64(-n))
	if d.wakeCount.Load() != 0 {
		d.wake()
	}
}

// wake wakes a call that waits, and allows later calls to wait again.
func (d *Descriptors) wake() {
	if d.waitedInVain.Swap(false) {
		d.wakeCount.Add(-1)
	}
	d.signal()
}

// signal makes one of the waiting calls try again.
func (d *Descriptors) signal() {
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// Missing reports whether err means that there is no free descriptor (see
// NoDescriptor). An error of the operating system counts as missing, as if Take had
// failed: the limit of the process may have been lowered, or other processes may use
// up the descriptors of the machine.
func (d *Descriptors) Missing(err error) bool {
	if !NoDescriptor(err) {
		return false
	}
	if d != nil && !errors.Is(err, ErrNoDescriptor) {
		d.miss()
	}
	return true
}

// miss notes that a descriptor was missing.
func (d *Descriptors) miss() {
	d.missed.Add(1)
	d.last.Store(time.Now().UnixNano())
}

// Short reports whether a descriptor was missing in the ten seconds before now.
func (d *Descriptors) Short(now time.Time) bool {
	if d == nil {
		return false
	}
	last := d.last.Load()
	return last != 0 && now.UnixNano()-last < int64(shortFor)
}

// DescriptorStats says how many descriptors are taken, how many may be, and how often
// one was missing.
type DescriptorStats struct {
	Used, Most int
	Missed     uint64
}

// Stats returns the current counts. They are zero for a nil Descriptors.
func (d *Descriptors) Stats() DescriptorStats {
	if d == nil {
		return DescriptorStats{}
	}
	return DescriptorStats{Used: int(d.used.Load()), Most: int(d.most.Load()), Missed: d.missed.Load()}
}

// ErrNoDescriptor is the error for something that was not opened because Take failed.
var ErrNoDescriptor = errors.New("no file descriptor is left for it")

// NoDescriptor reports whether err means that there is no free descriptor, or no memory
// for a socket. Such an error says nothing about the destination.
func NoDescriptor(err error) bool {
	for _, none := range [...]error{ErrNoDescriptor, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, none) {
			return true
		}
	}
	return false
}
