package h2_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// pipe starts a connection in the memory, for tests within synctest.
func pipe(t *testing.T, cfg h2.Config, settings ...http2.Setting) *server {
	t.Helper()
	client, conn := net.Pipe()
	s := serveOn(t, cfg, conn)
	ahead := &readAhead{Conn: client, parts: make(chan []byte, 10000)}
	go ahead.run()
	s.Peer = h2test.NewPeer(t, ahead, settings...)
	return s
}

// readAhead reads at once what comes, so that the server does not wait for the test.
type readAhead struct {
	net.Conn
	parts    chan []byte // what has come
	part     []byte      // the rest of one of them
	deadline time.Time
}

func (r *readAhead) run() {
	defer close(r.parts)
	for {
		p := make([]byte, 100<<10)
		n, err := r.Conn.Read(p)
		if err != nil {
			return
		}
		r.parts <- p[:n]
	}
}

func (r *readAhead) Read(p []byte) (int, error) {
	if len(r.part) == 0 {
		select {
		case part, more := <-r.parts:
			if r.part = part; !more {
				return 0, io.EOF
			}
		case <-time.After(time.Until(r.deadline)):
			return 0, os.ErrDeadlineExceeded
		}
	}
	n := copy(p, r.part)
	r.part = r.part[n:]
	return n, nil
}

func (r *readAhead) SetReadDeadline(t time.Time) error {
	r.deadline = t
	return nil
}

// begin opens a stream that is answered.
func (s *server) begin(t *testing.T, id uint32, does string) {
	t.Helper()
	s.Open(t, id, false, connect(does)...)
	if e := s.On(t, id); e.Status() != "200" {
		t.Fatalf("stream %d: %+v, want an answer", id, e)
	}
}

// wantGoAway checks that the next event is a GOAWAY without an error.
func (s *server) wantGoAway(t *testing.T, last uint32) {
	t.Helper()
	if e := s.Next(t); e.Kind != h2test.GoAway || e.Code != http2.ErrCodeNo || e.Last != last {
		t.Fatalf("%+v, want GOAWAY with the last stream %d", e, last)
	}
}

// wantClosed checks that nothing more comes and that the end was in order.
func (s *server) wantClosed(t *testing.T) {
	t.Helper()
	if e := s.Next(t); e.Kind != h2test.Ended {
		t.Fatalf("%+v, want the end of the connection", e)
	}
	if err := s.wait(t); !errors.Is(err, h2.ErrClosed) {
		t.Errorf("Run returns %v", err)
	}
}

const anyStream = 1<<31 - 1

// TestLeaveFinishesOpenStreams ends a connection in order while a stream is open. The
// client does not obey: what it opens behind the last GOAWAY is ignored with all that
// follows on it, and the open stream works to its end.
func TestLeaveFinishesOpenStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := pipe(t, h2.Config{})
		s.begin(t, 1, "echo")
		s.conn.Leave()
		s.conn.Leave() // a second call does nothing
		s.wantGoAway(t, anyStream)
		s.begin(t, 3, "echo") // it was on its way
		time.Sleep(2 * time.Second)
		s.wantGoAway(t, 3)
		for id := uint32(5); id < 25; id += 2 {
			s.Open(t, id, false, connect("echo")...)
			s.Body(t, id, strings.Repeat("x", 1000), false)
			s.Send(t, func() error { return s.WriteWindowUpdate(id, 1) })
			s.Send(t, func() error { return s.WriteRSTStream(id, http2.ErrCodeCancel) })
		}
		s.wantEcho(t, 1)
		s.wantEcho(t, 3)
		s.Body(t, 1, "", true)
		s.Body(t, 3, "", true)
		for range 2 {
			if e := s.Next(t); e.Kind != h2test.Data || !e.End {
				t.Fatalf("%+v, want the end of a stream", e)
			}
		}
		s.wantClosed(t)
	})
}

// TestGoAwayDoesNotTakeMoreLater breaks the protocol after the last GOAWAY: the next one may
// not name a later stream (RFC 9113 section 6.8).
func TestGoAwayDoesNotTakeMoreLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := pipe(t, h2.Config{})
		s.begin(t, 1, "echo")
		s.conn.Leave()
		s.wantGoAway(t, anyStream)
		time.Sleep(2 * time.Second)
		s.wantGoAway(t, 1)
		s.Open(t, 3, false, connect("echo")...)
		s.Send(t, func() error { return s.WriteRawFrame(http2.FramePing, 0, 0, nil) })
		if e := s.Next(t); e.Kind != h2test.GoAway || e.Code != http2.ErrCodeFrameSize || e.Last != 1 {
			t.Errorf("%+v, want GOAWAY with the last stream 1", e)
		}
	})
}

// TestConnectionsEnd checks when a connection without streams ends, and when one with a
// stream does.
func TestConnectionsEnd(t *testing.T) {
	for _, row := range []struct {
		name  string
		cfg   h2.Config
		do    func(s *server)
		empty time.Duration // after which the connection ends that has no streams
		used  time.Duration // after which the connection takes no more streams that has one
	}{
		{"idle", h2.Config{Idle: time.Minute}, nil, time.Minute, 0},
		{"max", h2.Config{Max: time.Minute}, nil, time.Minute + time.Second, time.Minute + time.Second},
		{"idle before max", h2.Config{Idle: time.Minute, Max: time.Hour}, nil, time.Minute, time.Hour + time.Second},
		{"leave", h2.Config{}, func(s *server) { s.conn.Leave() }, time.Second, time.Second},
		{"leave when idle", h2.Config{Idle: time.Minute}, func(s *server) { s.conn.Leave() }, time.Second, time.Second},
		{"close idle", h2.Config{}, func(s *server) { s.conn.CloseIdle() }, time.Nanosecond, time.Second},
		{"client leaves", h2.Config{}, func(s *server) { _ = s.WriteGoAway(0, 0, nil) }, time.Nanosecond, 0},
	} {
		for _, open := range []bool{false, true} {
			t.Run(row.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := pipe(t, row.cfg)
					begun := time.Now()
					if open {
						s.begin(t, 1, "echo")
					}
					if row.do != nil {
						row.do(s)
					}
					if !open {
						time.Sleep(row.empty - time.Nanosecond)
						for e := s.Next(t); e.Kind != h2test.Ended; e = s.Next(t) {
							if e.Kind != h2test.GoAway || e.Code != http2.ErrCodeNo {
								t.Fatalf("%+v, want GOAWAY", e)
							}
						}
						if took := time.Since(begun); took > row.empty || took < row.empty-time.Nanosecond {
							t.Errorf("it ended after %s, want %s", took, row.empty)
						}
						return
					}
					s.outlives(t, row.used)
				})
			})
		}
	}
}

// outlives checks that the open stream 1 works beyond the time after which the connection
// takes no other streams; zero means never.
func (s *server) outlives(t *testing.T, used time.Duration) {
	t.Helper()
	if used == 0 {
		time.Sleep(2 * time.Hour)
		s.begin(t, 3, "echo")
		s.Send(t, func() error { return s.WriteRSTStream(3, http2.ErrCodeCancel) })
	} else {
		time.Sleep(used)
		s.wantGoAway(t, anyStream)
		s.wantGoAway(t, 1)
	}
	s.wantEcho(t, 1)
}

// TestHeadAfterTheEnd lets the server read a head when the connection has ended: nobody
// would end its stream.
func TestHeadAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := net.Pipe()
		defer client.Close()
		var early bytes.Buffer
		f := http2.NewFramer(&early, nil)
		_ = f.WriteSettings()
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(head), EndHeaders: true})
		link, err := tunnel.NewLink(tunnel.Wrap(conn))
		if err != nil {
			t.Fatal(err)
		}
		c := h2.New(h2.Config{Serve: func(s *h2.Stream, _ h2.Head) func() {
			t.Error("a stream was served")
			<-s.Context().Done()
			return nil
		}}, link)
		c.Close()
		ended := make(chan error, 1)
		go func() { ended <- c.Run(context.Background(), early.Bytes()) }()
		select {
		case err := <-ended:
			if !errors.Is(err, h2.ErrClosed) {
				t.Errorf("Run returns %v", err)
			}
		case <-time.After(time.Hour):
			t.Error("Run does not return")
		}
	})
}
