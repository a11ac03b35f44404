package h2_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// accept starts a connection in the memory and opens stream 1. The test has the stream until
// it ends.
func accept(t *testing.T, settings ...http2.Setting) (*server, *h2.Stream) {
	t.Helper()
	streams, done := make(chan *h2.Stream, 1), make(chan struct{})
	s := pipe(t, h2.Config{Serve: func(s *h2.Stream, _ h2.Head) func() {
		_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}}, false)
		streams <- s
		<-done
		return nil
	}}, settings...)
	t.Cleanup(func() { close(done) })
	s.begin(t, 1, "")
	return s, <-streams
}

// TestEndsInEveryState ends a stream in each way when it is in each state.
func TestEndsInEveryState(t *testing.T) {
	states := map[string]func(t *testing.T, s *server, stream *h2.Stream){
		"open": func(*testing.T, *server, *h2.Stream) {},
		"data waits": func(t *testing.T, s *server, _ *h2.Stream) {
			t.Helper()
			s.Body(t, 1, strings.Repeat("x", 50000), false)
		},
		"the peer has ended": func(t *testing.T, s *server, _ *h2.Stream) {
			t.Helper()
			s.Body(t, 1, "x", true)
		},
		"this end has ended": func(_ *testing.T, _ *server, stream *h2.Stream) { _ = stream.CloseWrite() },
		"both have ended": func(t *testing.T, s *server, stream *h2.Stream) {
			t.Helper()
			s.Body(t, 1, "x", true)
			_ = stream.CloseWrite()
		},
		"the peer has reset": func(t *testing.T, s *server, _ *h2.Stream) {
			t.Helper()
			s.Send(t, func() error { return s.WriteRSTStream(1, http2.ErrCodeCancel) })
		},
		"this end has closed":      func(_ *testing.T, _ *server, stream *h2.Stream) { _ = stream.Close() },
		"the connection has ended": func(_ *testing.T, s *server, _ *h2.Stream) { s.conn.Close() },
	}
	const none = http2.ErrCode(100) // no reset is sent by the way of ending
	gone := map[string]bool{"both have ended": true, "the peer has reset": true, "this end has closed": true, "the connection has ended": true}
	for state, enter := range states {
		for _, way := range []struct {
			name  string
			end   func(stream *h2.Stream)
			code  http2.ErrCode
			after http2.ErrCode // when this end has ended its direction
		}{
			{"Close", func(stream *h2.Stream) { _ = stream.Close() }, http2.ErrCodeCancel, http2.ErrCodeNo},
			{"Abort", func(stream *h2.Stream) { stream.Abort() }, http2.ErrCodeConnect, http2.ErrCodeConnect},
			{"Reset", func(stream *h2.Stream) { stream.Reset(http2.ErrCodeInternal) }, http2.ErrCodeInternal, http2.ErrCodeInternal},
		} {
			t.Run(way.name+"/"+state, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, stream := accept(t)
					enter(t, s, stream)
					synctest.Wait()
					want := way.code
					switch {
					case gone[state]:
						want = none
					case state == "this end has ended":
						want = way.after
					}
					ended := state == "the connection has ended" // the peer learns of it when Serve has returned
					if !ended {
						_ = s.resets(t)
					}
					way.end(stream)
					way.end(stream)
					wantClosed(t, stream)
					if ended {
						return
					}
					if got := s.resets(t); want == none && len(got) > 0 || want != none && !slices.Equal(got, []http2.ErrCode{want}) {
						t.Errorf("resets with %v, want %s", got, want)
					}
				})
			})
		}
	}
}

// resets returns the codes of the resets of stream 1 that have come.
func (s *server) resets(t *testing.T) (codes []http2.ErrCode) {
	t.Helper()
	synctest.Wait()
	_ = s.SetWriteDeadline(time.Now().Add(h2test.Patience))
	_ = s.WritePing(false, [8]byte{}) // it fails when the connection has ended
	for {
		switch e := s.Any(t); e.Kind {
		case h2test.Reset:
			codes = append(codes, e.Code)
		case h2test.Ping, h2test.Ended:
			return codes
		case h2test.Data, h2test.Head, h2test.GoAway, h2test.Window, h2test.Setting:
		}
	}
}

// wantClosed checks that nothing can be done with a stream any more, and that nothing waits.
func wantClosed(t *testing.T, stream *h2.Stream) {
	t.Helper()
	p := make([]byte, 10)
	if n, err := stream.Read(p); n != 0 || err == nil {
		t.Errorf("Read returns %d bytes and %v", n, err)
	}
	if n, err := stream.Write(p); n != 0 || err == nil {
		t.Errorf("Write returns %d bytes and %v", n, err)
	}
	if stream.CloseWrite() == nil || stream.WriteFields(nil, true) == nil || stream.Respond(nil, p) == nil {
		t.Error("something can be written")
	}
	if stream.Park(make(sleeper)) || stream.AwaitRoom() == nil || stream.Borrow() != nil {
		t.Error("something can be waited for or borrowed")
	}
	stream.Await()
	if ctx := stream.Context(); ctx != nil && ctx.Err() == nil { // a stream that was served keeps none
		t.Error("the context lasts")
	}
}

// TestDeadlines lets deadlines pass, moves them and removes them.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream := accept(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
		p := make([]byte, 10)
		begun := time.Now()
		passed := func(after time.Duration, n int, err error) {
			t.Helper()
			if took := time.Since(begun); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || took != after {
				t.Errorf("%d bytes and %v after %s, want a deadline after %s", n, err, took, after)
			}
			begun = time.Now()
		}
		_ = stream.SetReadDeadline(begun.Add(time.Second))
		n, err := stream.Read(p)
		passed(time.Second, n, err)
		n, err = stream.Read(p)
		passed(0, n, err)
		_ = stream.SetReadDeadline(begun.Add(time.Second))
		time.AfterFunc(time.Millisecond, func() { _ = stream.SetReadDeadline(begun.Add(time.Minute)) })
		n, err = stream.Read(p)
		passed(time.Minute, n, err)
		_ = stream.SetReadDeadline(begun.Add(-time.Second))
		s.Body(t, 1, "late", false)
		synctest.Wait()
		n, err = stream.Read(p)
		passed(0, n, err)
		_ = stream.SetReadDeadline(time.Time{})
		if n, err := stream.Read(p); string(p[:n]) != "late" || err != nil {
			t.Errorf("%q, %v", p[:n], err)
		}

		_ = stream.SetWriteDeadline(begun.Add(time.Second))
		n, err = stream.Write(p) // there is room for five bytes
		passed(time.Second, n-5, err)
		_ = stream.SetWriteDeadline(time.Time{})
		s.Send(t, func() error { return s.WriteWindowUpdate(1, 10) })
		if n, err := stream.Write(p); n != 10 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}

		end := make(sleeper)
		if !stream.Park(end) {
			t.Fatal("it does not park")
		}
		_ = stream.SetReadDeadline(time.Now().Add(time.Second))
		<-end
		if got := time.Since(begun); got != 0 { // it is woken to look at the deadline
			t.Errorf("it was woken after %s", got)
		}
	})
}

// ender is a sleeper to whose End something happens.
type ender struct {
	sleeper

	during func()
	taken  bool // what End returns
}

func (e *ender) End() bool {
	e.during()
	return e.taken
}

// TestSleepersTakeTheEnd lets the peer end the direction to a sleeper, which may take the end,
// while something else happens, and lets the peer reset the stream after that.
func TestSleepersTakeTheEnd(t *testing.T) {
	for name, test := range map[string]struct {
		during        func(s *h2.Stream)
		taken         bool
		woken         bool // by the end
		wokenByReset  bool
		wantsNoResets bool // of the peer, because the stream has ended in order
	}{
		"it takes it":                         {func(*h2.Stream) {}, true, false, true, false},
		"it does not":                         {func(*h2.Stream) {}, false, true, true, false},
		"a deadline passes":                   {func(s *h2.Stream) { _ = s.SetReadDeadline(time.Unix(1, 0)) }, true, true, true, false},
		"the other direction ends":            {func(s *h2.Stream) { _ = s.CloseWrite() }, true, false, false, true},
		"the other direction and all end":     {func(s *h2.Stream) { _ = errors.Join(s.CloseWrite(), s.Close()) }, true, false, false, true},
		"the stream is reset":                 {func(s *h2.Stream) { s.Abort() }, true, false, false, false},
		"the other direction ends, unnoticed": {func(s *h2.Stream) { _ = s.CloseWrite() }, false, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, stream := accept(t)
				e := &ender{make(sleeper), func() { test.during(stream) }, test.taken}
				if !stream.Park(e) {
					t.Fatal("it does not park")
				}
				s.Body(t, 1, "", true)
				synctest.Wait()
				isWoken := func() bool {
					select {
					case <-e.sleeper:
						return true
					default:
						return false
					}
				}
				if got := isWoken(); got != test.woken {
					t.Errorf("woken by the end: %v, want %v", got, test.woken)
				}
				if test.wantsNoResets {
					if got := s.resets(t); len(got) > 0 {
						t.Errorf("the stream was reset with %v", got)
					}
				}
				s.Send(t, func() error { return s.WriteRSTStream(1, http2.ErrCodeCancel) })
				synctest.Wait()
				if got := isWoken(); got != test.wokenByReset {
					t.Errorf("woken in the end: %v, want %v", got, test.wokenByReset)
				}
			})
		})
	}
}

// TestEarlyEnds cuts a conversation behind every byte: the connection ends, and all its
// streams with it.
func TestEarlyEnds(t *testing.T) {
	var all bytes.Buffer
	f := http2.NewFramer(&all, nil)
	f.AllowIllegalWrites = true
	for _, one := range []frame{
		settings(4, 3), headers(1, endHeaders, head), data(1, padded, "\x03hello\x00\x00\x00"), headers(3, 0, head[:5]), continuation(3, endHeaders, head[5:]),
		{http2.FramePing, 0, 0, "12345678"},
		data(3, endStream, "x"), grow(1, 1), headers(5, endHeaders, "\x02\x07CONNECT\x01\x05stall"),
		data(5, 0, "nobody reads this"), reset(3, number(8)), prioritize(1, "\x00\x00\x00\x00\x00"),
	} {
		_ = f.WriteRawFrame(one.kind, one.flags, one.id, []byte(one.payload))
	}
	for n := range all.Len() {
		memory := h2.NewMemory(0)
		link, err := tunnel.NewLink(tunnel.Wrap(&canned{in: bytes.NewReader(all.Bytes()[:n])}))
		if err != nil {
			t.Fatal(err)
		}
		if err := h2.New(h2.Config{Serve: perform, Memory: memory}, link).Run(context.Background(), nil); !errors.Is(err, h2.ErrClosed) {
			t.Errorf("cut behind %d bytes, Run returns %v", n, err)
		}
		if n, waits := h2.Lent(), memory.Queued(); n != 0 || waits != 0 {
			t.Fatalf("%d buffers were not given back, %d bytes wait", n, waits)
		}
	}
}

// TestNoHeadAfterTheEnd asks for a trailer of an answer that has none.
func TestNoHeadAfterTheEnd(t *testing.T) {
	c := dial(t, h2.Config{}, false)
	s := tunnelTo(t, c, "echo")
	_ = s.CloseWrite()
	if got, err := io.ReadAll(s); len(got) != 0 || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if h, err := s.Answer(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("%v, %v", h, err)
	}
	_ = s.Close()
	other := tunnelTo(t, c, "hold")
	_ = other.Close()
	if h, err := other.Answer(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, %v", h, err)
	}
}

// TestMovedDeadlineIsNoEnd moves a deadline that has passed while a goroutine reads: the
// peer has not ended its direction.
func TestMovedDeadlineIsNoEnd(t *testing.T) {
	s := tunnelTo(t, dial(t, h2.Config{}, false), "echo")
	stop := make(chan struct{})
	var moving sync.WaitGroup
	for range 3 {
		moving.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = s.SetReadDeadline(time.Unix(1, 0))
					_ = s.SetReadDeadline(time.Time{})
				}
			}
		})
	}
	for range 50000 {
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read returns %v", err)
			break
		}
	}
	close(stop)
	moving.Wait()
}
