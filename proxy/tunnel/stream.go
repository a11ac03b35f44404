package tunnel

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// A Stream is a client that shares its connection with others, such as a stream of HTTP/2.
// One goroutine of that connection reads for all streams. A tunnel therefore does not wait
// for the bytes of a stream in a goroutine of its own: it parks, and the connection brings
// them (see [Sleeper]). Its own goroutine, which relays to the client, borrows a buffer only
// when the client takes bytes and the upstream has some.
type Stream interface {
	net.Conn
	CloseWrite() error

	// Abort ends the stream in a way that the client cannot take for an orderly end.
	Abort()
	// Await returns when Read will not wait.
	Await()
	// Park returns false if Read will not wait. Otherwise it returns true, and the
	// connection brings bytes to the Sleeper until it has called Wake, once. After Read
	// has returned io.EOF, only a failure or a deadline that is set can wake it.
	Park(s Sleeper) bool

	// AwaitRoom waits until the client takes bytes. Its error says why it will not.
	AwaitRoom() error
	// Borrow returns a slice for as many bytes as may be sent at once, or nil if the client
	// takes none. Send sends the first n bytes of it, and gives it back. It must be called
	// after each Borrow that has not returned nil. n may be zero.
	Borrow() []byte
	Send(n int) error
}

// A Sleeper is what has parked on a Stream. The connection of the stream never calls two of
// its methods at the same time.
type Sleeper interface {
	// Take is called with bytes that have come, in the goroutine that reads the connection.
	// It returns how many of them it has taken, without waiting; after it has left any, Wake
	// follows, and Read returns the rest.
	Take(p []byte) (n int)
	// End is called in the same goroutine when Read would return io.EOF. If it returns true,
	// it has done what follows from that, without waiting, and stays parked as after Park.
	// Otherwise Wake follows.
	End() bool
	// Wake is called, in a goroutine of its own, when Read will not wait.
	Wake()
}

var _ Sleeper = (*Tunnel)(nil)

// startStream starts the direction from a stream to the upstream. While the client is
// silent it has no goroutine, unless a gate bounds the silence.
func (t *Tunnel) startStream() {
	t.relayed.Add(1)
	timed := false
	if t.gate != nil {
		timed = t.setGateWait(t.gate.Wait) || t.gate.Speak
	}
	if timed || !t.client.stream.Park(t) {
		go t.Wake()
	}
}

// Wake relays what the stream has sent to the upstream, until no more is there or the
// direction has ended. It implements [Sleeper].
func (t *Tunnel) Wake() {
	if t.upEnded { // the client has finished before, and now it has left
		t.cut(Client, nil)
		return
	}
	parked := false
	defer func() {
		t.contain(recover())
		if !parked && !t.upEnded {
			t.upEnded = true
			t.relayed.Done()
		}
	}()
	if gate := t.gate; gate != nil {
		t.gate = nil
		if !t.admit(gate, nil) {
			if t.client.finished { // only this goroutine sets it
				parked = t.endUp()
			}
			return
		}
	}
	parked = t.relayUp()
}

// relayUp relays until the stream has nothing more, and reports whether the tunnel has
// parked on it. It returns false if the direction has ended.
func (t *Tunnel) relayUp() (parked bool) {
	for !t.client.stream.Park(t) {
		ok, err := t.pass(t.client, t.upstream, nil, &t.up)
		switch {
		case !ok:
			return false
		case errors.Is(err, io.EOF):
			t.finish(t.client, t.upstream)
			return t.endUp()
		case err != nil:
			t.fail("reading from", t.client, err)
			return false
		}
	}
	return true
}

// endUp ends the direction to the upstream after the client has finished. It returns true
// and parks, so that the client can still leave.
func (t *Tunnel) endUp() (parked bool) {
	t.upEnded = true
	t.relayed.Done()
	if !t.client.stream.Park(t) {
		t.cut(Client, nil)
	}
	return true
}

// Take writes bytes of the stream to the upstream, as many as its socket has room for. It
// leaves all if that may take long. It implements [Sleeper].
func (t *Tunnel) Take(p []byte) (n int) {
	defer func() { t.contain(recover()) }()
	socket := t.upstream.socket()
	if t.gate != nil || t.upEnded || socket == nil || t.up.Load()+t.down.Load()+int64(len(p)) >= t.reportBytes.Load() {
		return 0
	}
	if t.cfg.Spend != nil {
		if !t.spend(t.upstream, len(p)) {
			return 0
		}
		defer func() { t.paid = len(p) - n }()
	}
	n, _ = writeNow(socket, p) // an error is returned by the next write as well
	t.up.Add(int64(n))
	t.touch()
	return n
}

// End ends the direction to the upstream, unless that may take long or the gate has not ruled
// yet. It implements [Sleeper].
func (t *Tunnel) End() bool {
	if t.gate != nil || t.upEnded || t.upstream.socket() == nil {
		return false
	}
	t.upEnded = true
	defer t.relayed.Done()
	defer func() { t.contain(recover()) }()
	t.finish(t.client, t.upstream)
	return true
}

// pull relays the bytes of the upstream, which is a socket, to the stream.
func (t *Tunnel) pull(socket syscall.RawConn) {
	p := &puller{stream: t.client.stream}
	p.onReady = p.ready
	for {
		if err := p.stream.AwaitRoom(); err != nil {
			t.fail("writing to", t.client, err)
			return
		}
		p.n, p.err = 0, nil
		if err := socket.Read(p.onReady); err != nil {
			p.err = err
		}
		if p.n > 0 {
			t.touch()
			if err := p.stream.Send(p.n); err != nil {
				t.fail("writing to", t.client, err)
				return
			}
			t.down.Add(int64(p.n))
			t.touch()
			t.progress()
		}
		switch {
		case errors.Is(p.err, io.EOF):
			t.finish(t.upstream, t.client)
			return
		case p.err != nil:
			t.fail("reading from", t.upstream, p.err)
			return
		}
	}
}

// puller reads from a socket into what a stream lends.
type puller struct {
	stream  Stream
	onReady func(fd uintptr) bool // the method ready
	n       int
	err     error
}

// ready is called by RawConn.Read, which waits if it returns false.
func (p *puller) ready(fd uintptr) bool {
	room := p.stream.Borrow()
	if room == nil {
		return true
	}
	var empty bool
	p.n, empty, p.err = read(fd, room)
	if p.n == 0 {
		_ = p.stream.Send(0)
	}
	return !empty
}
