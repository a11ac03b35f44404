package h2_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// sync returns when the server has handled all that was sent, and the peer has read what
// that has caused.
func (s *server) sync(t *testing.T) {
	t.Helper()
	synctest.Wait()
	s.Send(t, func() error { return s.WritePing(false, [8]byte{}) })
	for e := s.Any(t); e.Kind != h2test.Ping; e = s.Any(t) {
		if e.Kind == h2test.GoAway || e.Kind == h2test.Ended {
			t.Fatalf("%+v", e)
		}
	}
}

// stall opens streams that are not read, from a first one on, and fills their windows and
// that of the connection.
func (s *server) stall(t *testing.T, first, streams uint32) {
	t.Helper()
	for id := first; id < first+2*streams; id += 2 {
		s.Open(t, id, false, connect("stall")...)
		for s.sync(t); s.Room(id) > 0; s.sync(t) {
			s.Body(t, id, strings.Repeat("x", min(s.Room(id), 60000)), false)
		}
	}
}

// TestStalledStreamsLeaveOthersAlone stalls as many streams as a connection bears.
func TestStalledStreamsLeaveOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := h2.NewMemory(0)
		s := pipe(t, h2.Config{Memory: memory})
		s.begin(t, 1, "echo")
		s.stall(t, 3, h2.ConnMemory/h2.StreamWindow)
		if n := memory.Queued(); n != h2.ConnMemory {
			t.Errorf("%d bytes wait, want %d", n, h2.ConnMemory)
		}
		for range 1000 { // much more than the window of the connection
			s.Upload(t, 1, strings.Repeat("x", 10000), false)
			for got := 0; got < 10000; {
				got += len(s.On(t, 1).Data)
			}
		}
	})
}

// TestCreditOfOneConnection stalls so many streams that the connection gets no credit any
// more. It gets it when one of them ends.
func TestCreditOfOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := h2.NewMemory(0)
		s := pipe(t, h2.Config{Memory: memory})
		s.begin(t, 1, "echo")
		s.stall(t, 3, 80)
		if n, room := memory.Queued(), s.Room(1); n > h2.ConnMemory+h2.ConnWindow || room != 0 {
			t.Errorf("%d bytes wait, and there is room for %d more", n, room)
		}
		for id := uint32(3); id < 13; id += 2 {
			s.Send(t, func() error { return s.WriteRSTStream(id, http2.ErrCodeCancel) })
		}
		s.sync(t)
		if s.Room(1) == 0 {
			t.Error("the ends of streams have given no credit")
		}
		s.wantEcho(t, 1)
	})
}

// TestCreditOfAllConnections uses up what may wait on all connections together. When those
// that have used it up have ended, another one that has no credit left gets it again.
func TestCreditOfAllConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 2 << 20
		memory := h2.NewMemory(most)
		first, second := pipe(t, h2.Config{Memory: memory}), pipe(t, h2.Config{Memory: memory})
		second.begin(t, 1, "echo")
		first.stall(t, 1, 6)
		second.stall(t, 3, 6)
		if n, room := memory.Queued(), second.Room(1); n > most+h2.ConnWindow || room != 0 {
			t.Errorf("%d bytes wait, and there is room for %d more", n, room)
		}
		first.conn.Close()
		second.Upload(t, 1, "still there?", false) // it waits for room
		if e := second.On(t, 1); e.Data != "still there?" {
			t.Errorf("%+v", e)
		}
	})
}

// TestMoreDataThanTheWindows sends more than a stream and a connection take.
func TestMoreDataThanTheWindows(t *testing.T) {
	overfill := func(t *testing.T, s *server, id uint32, n int) {
		t.Helper()
		s.Open(t, id, false, connect("stall")...)
		for ; n > 0; n -= 60000 {
			_ = s.WriteData(id, false, make([]byte, min(n, 60000))) // it fails when the server has ended the connection
		}
	}
	t.Run("stream", func(t *testing.T) {
		s := serve(t, h2.Config{})
		s.begin(t, 1, "echo")
		overfill(t, s, 3, h2.StreamWindow)
		overfill(t, s, 5, h2.StreamWindow+1)
		if e := s.On(t, 5); e.Kind != h2test.Reset || e.Code != http2.ErrCodeFlowControl {
			t.Errorf("%+v, want a reset with FLOW_CONTROL_ERROR", e)
		}
		s.wantEcho(t, 1)
	})
	t.Run("connection", func(t *testing.T) {
		s := serve(t, h2.Config{Memory: h2.NewMemory(1)})
		for id := uint32(1); id < 11; id += 2 {
			overfill(t, s, id, h2.StreamWindow)
		}
		s.wantEnd(t, http2.ErrCodeFlowControl)
	})
}

// TestPaddingIsCredited sends many times the windows in padding.
func TestPaddingIsCredited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := pipe(t, h2.Config{})
		s.begin(t, 1, "hold")
		f := "\xff" + "d" + strings.Repeat("\x00", 255)
		for range 40 {
			for range 300 {
				s.Send(t, func() error { return s.WriteRawFrame(http2.FrameData, padded, 1, []byte(f)) })
			}
			s.sync(t)
		}
		s.begin(t, 3, "echo")
		s.wantEcho(t, 3)
	})
}

// TestWindowsOfThePeerAreKept lets the server send as much as the windows of a stream and of
// the connection allow, also when SETTINGS make them negative.
func TestWindowsOfThePeerAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := pipe(t, h2.Config{Serve: send})
		s.Keeps = true
		s.begin(t, 1, "")
		s.begin(t, 3, "")
		s.wantData(t, 1, 65535, 3) // the window of the connection
		grow := func(id, n uint32) {
			s.Send(t, func() error { return s.WriteWindowUpdate(id, n) })
		}
		grow(0, 1000)
		s.wantData(t, 1, 1000, 3)
		s.Send(t, func() error { return s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) })
		grow(0, 1<<20)
		s.wantData(t, 1, 0, 3) // one stream has a window of zero or less, and so has the other
		grow(1, 100000)
		grow(3, 100000)
		s.wantData(t, 1, 200000-66535, 3)
		s.Send(t, func() error { return s.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}) })
		s.wantData(t, 1, 20, 3)
		s.begin(t, 5, "")
		s.wantData(t, 5, 10, 5)
	})
}

// wantData checks that the server sends n bytes on two streams together, and then stops.
func (s *server) wantData(t *testing.T, one uint32, n int, other uint32) {
	t.Helper()
	synctest.Wait()
	s.Send(t, func() error { return s.WritePing(false, [8]byte{}) })
	got := 0
	for e := s.Any(t); e.Kind != h2test.Ping; e = s.Any(t) {
		if e.Kind == h2test.Data && (e.ID == one || e.ID == other) {
			got += len(e.Data)
		}
	}
	if got != n {
		t.Fatalf("%d bytes, want %d", got, n)
	}
}
