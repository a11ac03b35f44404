package hostile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// session is the client's end of a connection of HTTP/2. Its goroutine reads what comes for
// all streams.
type session struct {
	net.Conn
	peer *h2test.Peer
	read sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and those of the streams
	changed sync.Cond
	streams map[uint32]*stream
	last    uint32 // id of the last stream
	window  int64  // bytes that may be sent on all streams
	initial int64  // window of a new stream
	goAway  *h2test.Event
	pongs   int   // answers to PING
	err     error // why the connection has ended; nil while it lasts
}

// newSession begins a connection of HTTP/2, which ends with the test.
func newSession(tb testing.TB, conn net.Conn) *session {
	tb.Helper()
	s := &session{Conn: conn, peer: h2test.NewSilentPeer(conn), streams: map[uint32]*stream{}, window: 65535, initial: 65535}
	s.peer.Keeps = true // what is not read gets no credit
	s.changed.L = &s.mu
	_ = s.peer.TrySend(func() error { // the next read returns the error
		_, _ = io.WriteString(conn, http2.ClientPreface)
		return s.peer.WriteSettings()
	})
	s.credit(1 << 20) // so that a stream that is not read does not stall the others
	s.read.Go(s.receive)
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// Close closes the connection and waits for the goroutine that reads it.
func (s *session) Close() error {
	err := s.Conn.Close()
	s.read.Wait()
	return err
}

// receive reads the connection to its end.
func (s *session) receive() {
	_ = s.SetReadDeadline(time.Time{})
	for {
		e := s.peer.Receive()
		unread, ok := s.take(e)
		if !ok {
			return
		}
		if unread {
			s.credit(len(e.Data))
		}
	}
}

// credit lets the gateway send n bytes more on all streams.
func (s *session) credit(n int) {
	if n > 0 {
		_ = s.peer.TrySend(func() error { return s.peer.WriteWindowUpdate(0, uint32(n)) }) // the next read returns the error
	}
}

// take takes what has come. It reports whether nobody will read it, and whether the connection
// goes on.
func (s *session) take(e h2test.Event) (unread, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.changed.Broadcast()
	x := s.streams[e.ID]
	switch e.Kind {
	case h2test.Ended:
		s.err = e.Err
		return false, false
	case h2test.GoAway:
		s.goAway = &e
	case h2test.Setting:
		if size, ok := e.Values[http2.SettingInitialWindowSize]; ok {
			for _, x := range s.streams {
				x.window += int64(size) - s.initial
			}
			s.initial = int64(size)
		}
	case h2test.Window:
		if e.ID == 0 {
			s.window += int64(e.Size)
		} else if x != nil {
			x.window += int64(e.Size)
		}
	case h2test.Head, h2test.Data, h2test.Reset:
		if x == nil || x.cancelled {
			return true, true
		}
		x.take(e)
	case h2test.Ping:
		s.pongs++
	}
	return false, true
}

// open opens a stream. end says that nothing follows its head.
func (s *session) open(end bool, pairs ...string) (*stream, error) {
	x := &stream{session: s}
	err := s.peer.TrySend(func() error {
		s.mu.Lock()
		x.id, s.last = s.last+1, s.last+2
		x.window, x.sentEnd = s.initial, end
		s.streams[x.id] = x
		s.mu.Unlock()
		return s.peer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: x.id, BlockFragment: s.peer.Encode(pairs...), EndHeaders: true, EndStream: end,
		})
	})
	return x, err
}

// wait waits for something to change, or for a deadline; zero means none. The caller holds
// mu.
func (s *session) wait(deadline time.Time) error {
	if !deadline.IsZero() {
		left := time.Until(deadline)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		timer := time.AfterFunc(left, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		})
		defer timer.Stop()
	}
	s.changed.Wait()
	return nil
}

// beginning returns the bytes with which a client begins a connection and sends one head.
func beginning(tb testing.TB, head string) string {
	tb.Helper()
	h, err := translate(head)
	if err != nil {
		tb.Fatal(err)
	}
	b := bytes.NewBufferString(http2.ClientPreface)
	framer, encoder := http2.NewFramer(b, nil), h2test.NewSilentPeer(nil)
	err = errors.Join(framer.WriteSettings(), framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: encoder.Encode(h.pairs()...), EndHeaders: true, EndStream: !h.connect,
	}))
	if err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

// isLeaving waits for GOAWAY, and returns it.
func (s *session) isLeaving(tb testing.TB) h2test.Event {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for end := time.Now().Add(patience); s.goAway == nil; {
		if s.err != nil || s.wait(end) != nil {
			tb.Fatalf("there is no GOAWAY; the connection has ended: %v", s.err)
		}
	}
	return *s.goAway
}

// wantPong waits until the gateway has handled all that was sent.
func (s *session) wantPong(tb testing.TB) {
	tb.Helper()
	s.mu.Lock()
	want := s.pongs + 1
	s.mu.Unlock()
	_ = s.peer.TrySend(func() error { return s.peer.WritePing(false, [8]byte{1}) })
	s.mu.Lock()
	defer s.mu.Unlock()
	for end := time.Now().Add(patience); s.pongs < want; {
		if s.err != nil || s.wait(end) != nil {
			tb.Fatalf("no answer to PING: %v", s.err)
		}
	}
}

// works checks that the connection is not about to end, and reports the same.
func (s *session) works(tb testing.TB) bool {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	ends := s.goAway != nil || s.err != nil
	if ends {
		tb.Errorf("the connection of HTTP/2 ends: %+v, %v", s.goAway, s.err)
	}
	return !ends
}

// stream is one stream of a session.
type stream struct {
	*session
	id uint32

	// The fields below are guarded by the mu of the session.
	window    int64
	sentEnd   bool
	status    string // of the answer; "" before it has come
	head      []byte // head of the answer as text of HTTP/1.1, which was not read
	data      []byte // data that was not read
	ended     bool   // END_STREAM has come
	cancelled bool   // the caller has reset the stream
	reset     *http2.ErrCode
}

// mayFollow reports whether another request may follow the last answer on a connection, as
// over HTTP/1.1.
func (x *stream) mayFollow() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.status != "" && len(x.head) == 0 && len(x.data) == 0 && (x.sentEnd || x.isOver() && x.status != "200")
}

// resetError is the error of a stream that the gateway has reset.
type resetError struct{ code http2.ErrCode }

func (e *resetError) Error() string { return "the stream was reset: " + e.code.String() }

// take takes what has come for the stream. The caller holds mu.
func (x *stream) take(e h2test.Event) {
	if e.Kind == h2test.Reset {
		x.reset = &e.Code
		return
	}
	if e.Kind == h2test.Head {
		x.status = e.Status()
		var text bytes.Buffer
		fmt.Fprintf(&text, "HTTP/1.1 %s \r\n", e.Status())
		for _, f := range e.Fields[1:] {
			fmt.Fprintf(&text, "%s: %s\r\n", f.Name, f.Value)
		}
		x.head = append(x.head, text.String()+"\r\n"...)
	}
	x.data = append(x.data, e.Data...)
	x.ended = x.ended || e.End
}

// isOver reports whether an answer has ended, so that nothing follows on the stream. The
// caller holds mu.
func (x *stream) isOver() bool { return x.ended || x.reset != nil || x.err != nil }

// read reads the head of the answer, and then its data, and returns credit for the data.
func (x *stream) read(p []byte, deadline time.Time) (n int, err error) {
	x.mu.Lock()
	for len(x.head) == 0 && len(x.data) == 0 && !x.isOver() {
		if err := x.wait(deadline); err != nil {
			x.mu.Unlock()
			return 0, err
		}
	}
	switch {
	case len(x.head) > 0:
		n = copy(p, x.head)
		x.head = x.head[n:]
		x.mu.Unlock()
		return n, nil
	case len(x.data) == 0:
		defer x.mu.Unlock()
		return 0, x.end()
	}
	n = copy(p, x.data)
	x.data = x.data[n:]
	over := x.isOver()
	x.mu.Unlock()
	x.credit(n)
	if !over {
		_ = x.peer.TrySend(func() error { return x.peer.WriteWindowUpdate(x.id, uint32(n)) }) // as in credit
	}
	return n, nil
}

// end returns the error for the end of a stream: io.EOF for an orderly one. The caller holds
// mu.
func (x *stream) end() error {
	switch {
	case x.ended:
		return io.EOF
	case x.reset != nil:
		return &resetError{*x.reset}
	}
	return fmt.Errorf("the connection has ended: %w", x.err)
}

// write sends data as the windows allow, and then END_STREAM if end says so.
func (x *stream) write(p []byte, end bool, deadline time.Time) (n int, err error) {
	for n < len(p) {
		size, err := x.reserve(len(p)-n, deadline)
		if err != nil {
			return n, err
		}
		if err := x.send(p[n:n+size], end && n+size == len(p)); err != nil {
			return n, err
		}
		n += size
	}
	if len(p) == 0 && end {
		return 0, x.send(nil, true)
	}
	return n, nil
}

// reserve waits for room in the windows, and takes it.
func (x *stream) reserve(most int, deadline time.Time) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		room := min(int64(most), x.window, x.session.window, 16<<10)
		switch {
		case x.reset != nil || x.err != nil:
			return 0, x.end()
		case x.sentEnd:
			return 0, net.ErrClosed
		case room > 0:
			x.window -= room
			x.session.window -= room
			return int(room), nil
		}
		if err := x.wait(deadline); err != nil {
			return 0, err
		}
	}
}

// send sends one DATA frame.
func (x *stream) send(p []byte, end bool) error {
	return x.peer.TrySend(func() error {
		x.mu.Lock()
		over := x.sentEnd || x.reset != nil
		x.sentEnd = x.sentEnd || end
		x.mu.Unlock()
		if over {
			return errors.New("the stream is closed for sending")
		}
		return x.peer.WriteData(x.id, end, p)
	})
}

// cancel resets a stream that has not ended.
func (x *stream) cancel() error {
	x.mu.Lock()
	over := x.cancelled || x.reset != nil || x.ended && x.sentEnd || x.err != nil
	unread := len(x.data)
	x.cancelled, x.data = true, nil
	x.mu.Unlock()
	x.credit(unread)
	if over {
		return nil
	}
	return x.peer.TrySend(func() error { return x.peer.WriteRSTStream(x.id, http2.ErrCodeCancel) })
}
