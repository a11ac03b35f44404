package h2_test

import (
	"runtime"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestNothingFollowsAReset resets a stream while its data waits behind another write: DATA
// behind RST_STREAM would be an error of the connection for some clients. The window that
// was reserved for the data comes back.
func TestNothingFollowsAReset(t *testing.T) {
	for range 20 {
		t.Run("", testNothingFollowsAReset)
	}
}

func testNothingFollowsAReset(t *testing.T) {
	var stream *h2.Stream
	s := serve(t, h2.Config{Serve: func(s *h2.Stream, h h2.Head) func() {
		stream = s
		return perform(s, h)
	}})
	s.begin(t, 1, "hold")
	room, release := s.conn.Room(), s.conn.HoldWriting()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = stream.Write(make([]byte, 10000))
	}()
	for s.conn.Room() == room {
		runtime.Gosched()
	}
	for range 100 { // until it waits for the other write
		runtime.Gosched()
	}
	stream.Reset(http2.ErrCodeCancel)
	release()
	<-wrote
	if e := s.Next(t); e.Kind != h2test.Reset {
		t.Fatalf("%+v, want a reset", e)
	}
	s.Send(t, func() error { return s.WritePing(false, [8]byte{}) })
	if e := s.Any(t); e.Kind != h2test.Ping || s.conn.Room() != room {
		t.Fatalf("%s behind the reset, and room for %d bytes, want %d", e.Kind, s.conn.Room(), room)
	}
}
