package h2

import "testing"

// TestWindowWakesFewStreams lets many streams wait for the window of the connection. A small
// window wakes one of them, the one that has waited longest, and what that leaves the next.
func TestWindowWakesFewStreams(t *testing.T) {
	const streams = 100
	f := &flow{}
	all := make([]*Stream, streams)
	for i := range all {
		s := new(Stream)
		s.out.stream, s.out.window, s.out.changed.ch = s, 1<<20, make(chan struct{}, 1)
		all[i] = s
		f.await(s)
	}
	woken := func() (n int) {
		for _, s := range all {
			n += len(s.out.changed.ch)
		}
		return n
	}
	f.sendWindow = 1
	f.wake()
	if n := woken(); n != 1 || len(all[0].out.changed.ch) != 1 {
		t.Errorf("a byte wakes %d streams, want the first", n)
	}
	f.sendWindow += 2 * smallPayload
	if n := f.reserve(all[0], smallPayload); n != smallPayload || woken() != 3 {
		t.Errorf("%d bytes were reserved, and %d streams are awake, want 3", n, woken())
	}
	f.sendWindow = streams * smallPayload
	f.wake()
	if n := woken(); n != streams {
		t.Errorf("%d streams are awake, want all", n)
	}
}
