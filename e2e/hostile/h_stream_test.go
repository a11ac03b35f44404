package hostile

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/front"
	gw "github.com/exeat-dev/exeat/proxy/gateway"
)

// streamRows returns the rows about tunnels that share a connection of HTTP/2.
func streamRows() []row {
	return []row{
		{"E17", "a stream that is reset by the caller: during the look-up, or as a tunnel; a tunnel that the origin resets", "the dial ends, the tunnel is reset to the origin; the caller gets CONNECT_ERROR; the other streams go on", []scenario{
			{name: "during the look-up", only: h2, run: resetDuringDial},
			{name: "as a tunnel", only: h2, run: resetByCaller},
			{name: "by the origin", only: h2, run: resetByOrigin},
		}},
		{"E18", "a tunnel that a policy revokes, beside one that it allows", "its stream is reset, and the other tunnel goes on", []scenario{{name: "two streams", only: h2, run: revokedStream}}},
	}
}

func resetDuringDial(t *testing.T, g *gateway) {
	other, kept := g.open(t)
	g.names.say("held.example", answers("127.0.0.1"))
	before := g.counts()
	c := g.call(t, "builder")
	c.send(t, g.fill(connectTo("held.example"+port))+"early")
	<-g.names.asked
	c.reset()
	c.Conn.(*textConn).wantPong(t)
	g.names.answer <- struct{}{}
	if r := g.next(t, audit.EventDecision); r.Reason != "client-gone" || r.Host != "held.example" || r.Status != 0 {
		t.Errorf("record %+v", r)
	}
	goesOn(t, g, other, kept)
	g.origin.sawNothing(t)
	if n := g.counts().dials - before.dials; n > 0 {
		t.Errorf("%d dials for a stream that was reset before", n)
	}
}

func resetByCaller(t *testing.T, g *gateway) {
	other, kept := g.open(t)
	c, o := g.open(t)
	c.reset()
	if _, err := io.ReadAll(o); err == nil {
		t.Error("for the origin the stream has ended in order")
	}
	_ = o.Close()
	g.next(t, audit.EventTunnelClose)
	goesOn(t, g, other, kept)
}

func resetByOrigin(t *testing.T, g *gateway) {
	other, kept := g.open(t)
	c, o := g.open(t)
	newCaller(o).reset()
	wantReset(t, c, http2.ErrCodeConnect)
	g.next(t, audit.EventTunnelClose)
	goesOn(t, g, other, kept)
}

func revokedStream(t *testing.T, g *gateway) {
	c := g.call(t, "builder")
	if got := c.ask(t, g.fill(connectTo("a.wild.example:PORT"))); got.status != 200 {
		t.Fatalf("answered %s", got.phrase)
	}
	g.next(t, audit.EventDecision)
	kept := g.origin.next(t)
	revoked, o := g.open(t)
	g.put(t, strings.Replace(g.policy(), "host: allowed.example", "host: other.example", 1))
	if _, err := io.ReadAll(revoked.reader); err == nil {
		t.Error("the stream of a revoked tunnel has ended in order")
	}
	_ = o.Close()
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" {
		t.Errorf("record %+v", r)
	}
	goesOn(t, g, c, kept)
	g.put(t, g.policy())
}

// floodRows returns the rows about connections of HTTP/2 that carry nothing.
func floodRows() []row {
	const limited, malformed = "rate-limited", "malformed-header"
	once := func(send func(x *http2.Framer) error) func(*session, *http2.Framer, uint32) error {
		return func(_ *session, x *http2.Framer, n uint32) error {
			if n > 0 {
				return io.EOF
			}
			return send(x)
		}
	}
	head := func(s *session, x *http2.Framer, ended bool) error {
		block := s.peer.Encode(":method", "CONNECT", ":authority", "secret.example:443")
		return x.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: ended})
	}
	parts := func(part func(s *session) []byte) func(*session, *http2.Framer, uint32) error {
		return func(s *session, x *http2.Framer, n uint32) error {
			if n == 0 {
				return head(s, x, false)
			}
			return x.WriteContinuation(1, false, part(s))
		}
	}
	const soon = 200 * time.Millisecond
	return []row{
		{"H16", "frames of HTTP/2 that carry nothing, without end: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, unknown frames, empty DATA; a head in parts, or one of more than 64 KiB", "after a bounded number GOAWAY with ENHANCE_YOUR_CALM, and one record `rate-limited` for the connection; other connections go on", []scenario{
			flood("PING", limited, http2.ErrCodeEnhanceYourCalm, func(_ *session, x *http2.Framer, _ uint32) error { return x.WritePing(false, [8]byte{}) }),
			flood("SETTINGS", limited, http2.ErrCodeEnhanceYourCalm, func(_ *session, x *http2.Framer, _ uint32) error { return x.WriteSettings() }),
			flood("PRIORITY", limited, http2.ErrCodeEnhanceYourCalm, func(_ *session, x *http2.Framer, n uint32) error {
				return x.WritePriority(2*n+1, http2.PriorityParam{Weight: 1})
			}),
			flood("WINDOW_UPDATE", limited, http2.ErrCodeEnhanceYourCalm, func(_ *session, x *http2.Framer, _ uint32) error { return x.WriteWindowUpdate(0, 1) }),
			flood("unknown frames", limited, http2.ErrCodeEnhanceYourCalm, func(_ *session, x *http2.Framer, _ uint32) error { return x.WriteRawFrame(0xbb, 0, 0, nil) }),
			flood("parts of a head", limited, http2.ErrCodeEnhanceYourCalm, parts(func(s *session) []byte { return s.peer.Encode("x", "a") })),
			flood("parts of a head without a byte", limited, http2.ErrCodeEnhanceYourCalm, parts(func(*session) []byte { return nil })),
			flood("a head of more than 64 KiB", limited, http2.ErrCodeEnhanceYourCalm, parts(func(s *session) []byte { return s.peer.Encode("x", strings.Repeat("~", 8<<10)) })),
		}},
		{"H17", "streams that are opened and reset at once, without end", "the same; at most 100 connections to the origin", []scenario{{name: "rapid resets", only: h2, run: rapidResets}}},
		{"H18", "a head of HTTP/2 that stops; a connection that opens no stream", "the first gets GOAWAY with ENHANCE_YOUR_CALM after the head timeout, and a record; the second is closed after the idle time in silence", []scenario{
			{name: "a head that stops", only: h2, run: func(t *testing.T, g *gateway) {
				headStops(t, g.another(t, options{config: gw.Config{Front: front.Config{HeadTimeout: soon}}}), func(s *session, x *http2.Framer) error { return head(s, x, false) })
			}},
			{name: "no stream", only: h2, run: func(t *testing.T, g *gateway) {
				g = g.another(t, options{config: gw.Config{Front: front.Config{KeepAlive: soon}}})
				g.callAlone(t, "builder").Conn.(*textConn).isLeaving(t)
				if left := g.rest(t); len(left) > 0 {
					t.Errorf("records of a connection that asked nothing: %+v", left)
				}
			}},
		}},
		{"H19", "frames of HTTP/2 that no client may send: of another stream than it has, of a wrong size, a head that cannot be decompressed, more data than its window", "GOAWAY with the code of RFC 9113, and one record `malformed-header` for the connection", []scenario{
			flood("DATA on no stream", malformed, http2.ErrCodeProtocol, once(func(x *http2.Framer) error { return x.WriteData(1, false, []byte("a")) })),
			flood("an even stream", malformed, http2.ErrCodeProtocol, once(func(x *http2.Framer) error {
				return x.WriteHeaders(http2.HeadersFrameParam{StreamID: 2, BlockFragment: []byte{0x82}, EndHeaders: true})
			})),
			flood("PUSH_PROMISE", malformed, http2.ErrCodeProtocol, once(func(x *http2.Framer) error {
				return x.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: []byte{0x82}, EndHeaders: true})
			})),
			flood("a PING of 7 bytes", malformed, http2.ErrCodeFrameSize, once(func(x *http2.Framer) error { return x.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) })),
			flood("an index that no table has", malformed, http2.ErrCodeCompression, once(func(x *http2.Framer) error {
				return x.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0x7f}, EndHeaders: true})
			})),
			flood("a window of more than 2^31-1 bytes", malformed, http2.ErrCodeFlowControl, func(_ *session, x *http2.Framer, _ uint32) error { return x.WriteWindowUpdate(0, 1<<31-1) }),
		}},
	}
}

// flood returns a case that sends frames until the gateway ends the connection with a code,
// beside another connection of the same caller.
func flood(name, reason string, code http2.ErrCode, send func(s *session, x *http2.Framer, n uint32) error) scenario {
	return scenario{name: name, only: h2, run: func(t *testing.T, g *gateway) {
		other, kept := g.open(t)
		s := g.callAlone(t, "builder").Conn.(*textConn).session
		s.endsWith(t, code, func(x *http2.Framer) {
			for n := uint32(0); send(s, x, n) == nil; n++ {
			}
		})
		if r := g.next(t, audit.EventHandshake); r.Reason != reason || r.Identity != id("builder") || r.Wire != string(h2) {
			t.Errorf("record %+v", r)
		}
		goesOn(t, g, other, kept)
	}}
}

// endsWith sends frames in a goroutine, and checks that the gateway ends the connection with a
// code.
func (s *session) endsWith(t *testing.T, code http2.ErrCode, send func(x *http2.Framer)) {
	t.Helper()
	s.wantPong(t) // the acknowledgement of SETTINGS, which the session sends, would interrupt a head
	var sending sync.WaitGroup
	sending.Go(func() {
		x := http2.NewFramer(s.Conn, nil)
		x.AllowIllegalWrites = true
		send(x)
	})
	s.mu.Lock()
	for end := time.Now().Add(patience); s.err == nil; {
		if s.wait(end) != nil {
			t.Error("the connection does not end")
			break
		}
	}
	goAway := s.goAway
	s.mu.Unlock()
	if goAway != nil && goAway.Code != code { // a client that still sends may lose it
		t.Errorf("GOAWAY says %s (%s), want %s", goAway.Code, goAway.Text, code)
	}
	_ = s.Close()
	sending.Wait()
}

// rapidResets opens streams to the origin and resets each at once.
func rapidResets(t *testing.T, g *gateway) {
	g = g.another(t, options{})
	other, kept := g.open(t)
	s := g.callAlone(t, "builder").Conn.(*textConn).session
	s.endsWith(t, http2.ErrCodeEnhanceYourCalm, func(x *http2.Framer) {
		for id := uint32(1); ; id += 2 {
			block := s.peer.Encode(":method", "CONNECT", ":authority", g.at("allowed.example"))
			if x.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}) != nil || x.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
		}
	})
	if n := g.counts().dials - 1; n > 100 {
		t.Errorf("%d dials have reached the origin", n)
	}
	other.send(t, "still here")
	if _, err := io.ReadFull(kept, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	floods := 0
	for _, r := range g.rest(t) {
		switch {
		case r.Event == string(audit.EventHandshake) && r.Reason == "rate-limited":
			floods++
		case r.Event == string(audit.EventDecision) && r.Verdict == "deny":
			t.Errorf("record %+v", r)
		}
	}
	if floods != 1 {
		t.Errorf("%d records of the flood, want one", floods)
	}
}

// headStops sends a part of a head.
func headStops(t *testing.T, g *gateway, send func(s *session, x *http2.Framer) error) {
	s := g.callAlone(t, "builder").Conn.(*textConn).session
	s.endsWith(t, http2.ErrCodeEnhanceYourCalm, func(x *http2.Framer) { _ = send(s, x) })
	if r := g.next(t, audit.EventHandshake); r.Reason != allowlist.RateLimited.String() {
		t.Errorf("record %+v", r)
	}
}
