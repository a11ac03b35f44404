package h2_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestFloodsEndTheConnection sends frames that carry nothing. A connection takes so many
// of them as their cost allows, works, and ends at the next ones. No time passes meanwhile,
// in which more would be allowed.
func TestFloodsEndTheConnection(t *testing.T) {
	const eight, five = "12345678", "\x00\x00\x00\x00\x00"
	for _, row := range []struct {
		name   string
		cost   int
		frames func(i uint32) []frame
	}{
		{"PING", 1, same(frame{http2.FramePing, 0, 0, eight})},
		{"PING ACK", 1, same(frame{http2.FramePing, ack, 0, eight})},
		{"SETTINGS", 1, same(settings())},
		{"SETTINGS ACK", 1, same(frame{http2.FrameSettings, ack, 0, ""})},
		{"windows by SETTINGS", 1, func(i uint32) []frame { return []frame{settings(4, 65535+i)} }},
		{"PRIORITY", 1, same(prioritize(idle, five))},
		{"malformed PRIORITY", 10, same(prioritize(closed, five+"x"))},
		{"unknown frames", 1, same(frame{kind: 0xbe})},
		{"large unknown frames", 5, same(frame{kind: 0xbe, payload: strings.Repeat("x", 16<<10)})},
		{"GOAWAY", 1, same(frame{http2.FrameGoAway, 0, 0, eight})},
		{"large GOAWAY", 5, same(frame{http2.FrameGoAway, 0, 0, strings.Repeat("x", 16<<10)})},
		{"empty DATA", 1, same(data(open, 0, ""))},
		{"DATA of padding", 1, same(data(open, padded, "\xff"+strings.Repeat("\x00", 255)))},
		{"DATA on a closed stream", 1, same(data(closed, 0, strings.Repeat("x", 1000)))},
		{"WINDOW_UPDATE", 1, same(grow(0, 1))},
		{"WINDOW_UPDATE on a stream", 1, same(grow(open, 1))},
		{"WINDOW_UPDATE on a closed stream", 1, same(grow(closed, 1))},
		{"WINDOW_UPDATE of zero on a closed stream", 10, same(grow(closed, 0))},
		{"RST_STREAM on a closed stream", 1, same(reset(closed, number(8)))},
		{"HEADERS on a reset stream", 1, same(headers(ours, endHeaders, head))},
		{"rapid resets", 10, func(i uint32) []frame {
			id := idle + 2*i
			return []frame{headers(id, endHeaders, "\x02\x07CONNECT\x01\x05stall"), reset(id, number(8))}
		}},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := pipe(t, h2.Config{})
				s.openScene(t)
				s.wantEcho(t, open)
				const slack = 10 // what the test itself sends
				send := func(from, to int) {
					for i := from; i < to; i++ {
						for _, f := range row.frames(uint32(i)) {
							_ = s.SetWriteDeadline(time.Now().Add(h2test.Patience))
							_ = s.WriteRawFrame(f.kind, f.flags, f.id, []byte(f.payload)) // it fails when the server has ended the connection
						}
					}
				}
				allowed := h2.FullBudget / row.cost
				send(0, allowed-slack)
				s.wantEcho(t, open)
				send(allowed-slack, allowed+2*slack)
				s.wantEnd(t, http2.ErrCodeEnhanceYourCalm)
			})
		})
	}
}

// same returns a function that returns a frame.
func same(f frame) func(uint32) []frame { return func(uint32) []frame { return []frame{f} } }

// TestFloodsOfOneHead sends heads that are too large in some way, and one that does not end.
func TestFloodsOfOneHead(t *testing.T) {
	const limit = 64 << 10
	many := func(n int) []frame {
		all := []frame{headers(idle, 0, head)}
		for range n {
			all = append(all, continuation(idle, 0, ""))
		}
		return all
	}
	long := func(n int) []frame {
		all := []frame{headers(idle, 0, head+"\x00\x01x\x7f\x80\x80\x80\x80\x80\x00")} // an integer may have zeros
		for ; n > 0; n -= 10000 {
			all = append(all, continuation(idle, 0, strings.Repeat("\x82", 10000))) // ":method: GET", again and again
		}
		return all
	}
	for _, row := range []struct {
		name   string
		frames []frame
		waits  time.Duration // until the connection ends
		ends   bool
	}{
		{"16 CONTINUATION frames", append(many(15), continuation(idle, endHeaders, "")), 0, false},
		{"17 CONTINUATION frames", many(17), 0, true},
		{"a head of many bytes", long(limit + 10000), 0, true},
		{"a string that is too long", []frame{headers(idle, endHeaders, head+"\x00\x01x\x7f\x82\xff\x03"+"y")}, 0, true},
		{"many settings", []frame{settings(make([]uint32, 66)...)}, 0, true},
		{"a head that does not end", many(1), 10 * time.Second, true},
		{"PING that does not end", nil, 10 * time.Second, true},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := pipe(t, h2.Config{})
				s.openScene(t)
				begun := time.Now()
				if row.frames == nil {
					_, _ = s.Write([]byte("\x00\x00\x08\x06\x00\x00\x00\x00\x00half"))
				}
				for _, f := range row.frames {
					_ = s.WriteRawFrame(f.kind, f.flags, f.id, []byte(f.payload))
				}
				if !row.ends {
					s.wantEcho(t, open)
					return
				}
				s.wantEnd(t, http2.ErrCodeEnhanceYourCalm)
				if took := time.Since(begun); took != row.waits {
					t.Errorf("it ended after %s, want %s", took, row.waits)
				}
			})
		})
	}
}

// TestHeadThatExpands refers to one large field of the table again and again.
func TestHeadThatExpands(t *testing.T) {
	heads := make(chan h2.Head, 1)
	s := serve(t, h2.Config{Serve: func(s *h2.Stream, h h2.Head) func() {
		heads <- h
		_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "431"}}, true)
		return nil
	}})
	value := strings.Repeat("v", 3000)
	block := "\x40\x01x\x7f\xb9\x16" + value + strings.Repeat("\xbe", 10000)
	s.Send(t, func() error {
		return s.WriteRawFrame(http2.FrameHeaders, endHeaders|endStream, 1, []byte(block))
	})
	if e := s.On(t, 1); e.Status() != "431" {
		t.Fatalf("%+v, want an answer", e)
	}
	h := <-heads
	if n := len(h.Fields); !h.TooLarge || n > 22 || h.Get("x") != value {
		t.Errorf("the head has %d fields, too large: %v", n, h.TooLarge)
	}
}

// TestHonestClients carries out what clients do that carry something. No time passes
// meanwhile, in which more would be allowed.
func TestHonestClients(t *testing.T) {
	for _, row := range []struct {
		name string
		run  func(t *testing.T, s *server)
	}{
		{"a reset behind the end of each tunnel", resetTunnels},
		{"credit for each frame", func(t *testing.T, s *server) {
			t.Helper()
			s.begin(t, 1, "send")
			s.download(t, 20<<20)
		}},
		{"credit for each 4 KiB", func(t *testing.T, s *server) {
			t.Helper()
			s.Keeps = true
			s.begin(t, 1, "send")
			for got := 0; got < 12<<20; {
				n := len(s.On(t, 1).Data)
				for got += n; n > 0; n -= 4 << 10 {
					s.grow(t, 1, uint32(min(n, 4<<10)))
				}
			}
			s.Keeps = false
		}},
		{"credit for each refusal", func(t *testing.T, s *server) {
			t.Helper()
			for i := range uint32(3000) {
				s.Open(t, 1+2*i, true, connect("refuse")...)
				if _, end := s.Rest(t, 1+2*i); !end.End {
					t.Fatalf("answer %d: %+v", i, end)
				}
			}
		}},
		{"credit for each byte", func(t *testing.T, s *server) {
			t.Helper()
			s.begin(t, 1, "echo")
			for range 3000 {
				s.Body(t, 1, "x", false)
				if e := s.On(t, 1); e.Data != "x" {
					t.Fatalf("%+v", e)
				}
			}
		}},
		{"frames of one byte", func(t *testing.T, s *server) {
			t.Helper()
			s.begin(t, 1, "hold")
			for range 30000 {
				s.Body(t, 1, "x", false)
			}
		}},
		{"frames behind a reset", func(t *testing.T, s *server) {
			t.Helper()
			s.Open(t, 1, false, connect("reset")...)
			for range 1000 { // before it has read the reset
				s.Body(t, 1, strings.Repeat("x", 100), false)
			}
		}},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := pipe(t, h2.Config{})
				row.run(t, s)
				s.begin(t, 100001, "echo")
				s.wantEcho(t, 100001)
			})
		})
	}
}

// resetTunnels uses 5,000 tunnels as Go does, with a PING for each.
func resetTunnels(t *testing.T, s *server) {
	t.Helper()
	for i := range uint32(5000) {
		id := 1 + 2*i
		s.begin(t, id, "echo")
		s.Send(t, func() error { return s.WritePing(false, [8]byte{}) })
		s.wantEcho(t, id)
		s.Body(t, id, "", true)
		if e := s.On(t, id); !e.End {
			t.Fatalf("%+v", e)
		}
		s.Send(t, func() error { return s.WriteRSTStream(id, http2.ErrCodeCancel) })
	}
}

// download reads n bytes of stream 1 at least.
func (s *server) download(t *testing.T, n int) {
	t.Helper()
	for n > 0 {
		e := s.On(t, 1)
		if e.Kind != h2test.Data {
			t.Fatalf("%d bytes are missing: %+v", n, e)
		}
		n -= len(e.Data)
	}
}

// grow returns credit on a stream and on the connection.
func (s *server) grow(t *testing.T, id, n uint32) {
	t.Helper()
	s.Send(t, func() error { return s.WriteWindowUpdate(id, n) })
	s.Send(t, func() error { return s.WriteWindowUpdate(0, n) })
}

// TestStreamsBeyondTheLimit opens more streams than the server takes.
func TestStreamsBeyondTheLimit(t *testing.T) {
	s := serve(t, h2.Config{MaxStreams: 2})
	s.begin(t, 1, "echo")
	s.begin(t, 3, "echo")
	for id := uint32(5); id < 205; id += 2 {
		s.Open(t, id, false, connect("echo")...)
		s.Body(t, id, strings.Repeat("x", 10000), true) // it is thrown away, and credit for it returns
		if e := s.On(t, id); e.Kind != h2test.Reset || e.Code != http2.ErrCodeRefusedStream {
			t.Fatalf("%+v, want REFUSED_STREAM", e)
		}
	}
	s.wantEcho(t, 1)
	s.wantEcho(t, 3)
	s.Body(t, 1, "", true)
	if e := s.On(t, 1); !e.End {
		t.Fatalf("%+v", e)
	}
	s.begin(t, 205, "echo")
}

// TestDeafPeer sends requests and reads no answer: what waits is bounded, and the connection
// ends.
func TestDeafPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := net.Pipe()
		s := serveOn(t, h2.Config{Serve: func(s *h2.Stream, _ h2.Head) func() {
			_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}, {Name: "x", Value: strings.Repeat("x", 200)}}, true)
			return nil
		}}, conn)
		s.Peer = h2test.NewPeer(t, client)
		sent := 0
		for s.WriteRawFrame(http2.FrameHeaders, endHeaders|endStream, uint32(1+2*sent), []byte(head)) == nil {
			sent++
		}
		if broken, ok := errors.AsType[*h2.Error](s.wait(t)); !ok || broken.Code != http2.ErrCodeEnhanceYourCalm || sent > 3000 {
			t.Errorf("it ended after %d requests with %v", sent, broken)
		}
	})
}

// TestDeafPeerOfData reads nothing of what 50 streams send.
func TestDeafPeerOfData(t *testing.T) {
	const streams = 50
	s := serve(t, h2.Config{WriteTimeout: 10 * time.Millisecond, Serve: send}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	s.Send(t, func() error { return s.WriteWindowUpdate(0, 1<<30) })
	for i := range uint32(streams) {
		s.Open(t, 1+2*i, false, connect("")...)
	}
	if err := s.wait(t); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Run returns %v", err)
	}
}

// send answers, and sends without end.
func send(s *h2.Stream, _ h2.Head) func() {
	_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}}, false)
	return func() {
		for p := make([]byte, 1<<20); ; {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	}
}
