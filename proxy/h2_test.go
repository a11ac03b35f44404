package proxy_test

import (
	"errors"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// session is a client's connection of HTTP/2.
type session struct {
	*h2test.Peer
	gateway *gateway
	last    uint32 // id of the last stream
}

func (g *gateway) session(t *testing.T, who string, settings ...http2.Setting) *session {
	t.Helper()
	return &session{Peer: h2test.NewPeer(t, g.call(t, who).Conn, settings...), gateway: g}
}

// connect sends a CONNECT on a new stream and returns its id.
func (s *session) connect(t *testing.T, target string) uint32 {
	t.Helper()
	if s.last += 2; s.last == 2 {
		s.last = 1
	}
	s.Connect(t, s.last, target)
	return s.last
}

// tunnel opens a tunnel to the origin and returns its stream and the origin's end.
func (s *session) tunnel(t *testing.T, host string) (uint32, *net.TCPConn) {
	t.Helper()
	id := s.connect(t, s.gateway.at(host))
	if got := s.Status(t, id); got != "200" {
		t.Fatalf("answered %q", got)
	}
	s.gateway.next(t, audit.EventDecision)
	return id, s.gateway.origin.next(t)
}

// wantEcho sends a byte each way through a tunnel.
func (s *session) wantEcho(t *testing.T, id uint32, origin net.Conn) {
	t.Helper()
	s.Body(t, id, "?", false)
	if _, err := io.ReadFull(origin, make([]byte, 1)); err != nil {
		t.Fatalf("stream %d: %v", id, err)
	}
	if _, err := io.WriteString(origin, "!"); err != nil {
		t.Fatal(err)
	}
	if e := s.On(t, id); e.Data != "!" {
		t.Fatalf("stream %d: got %+v", id, e)
	}
}

// TestTunnelOverHTTP2 sends bytes both ways through a tunnel, which the client ends first.
func TestTunnelOverHTTP2(t *testing.T) {
	g := newGateway(t, options{})
	for _, size := range []int{0, 3, 100 << 10, 3 << 20} {
		s := g.session(t, "builder")
		stream, origin := s.tunnel(t, "allowed.example")
		up, down := strings.Repeat("u", size), strings.Repeat("d", size)
		received := make(chan string, 1)
		go func() {
			got, _ := io.ReadAll(origin)
			received <- string(got)
		}()
		s.Upload(t, stream, up, true)
		if got := <-received; got != up {
			t.Errorf("the origin got %d bytes, want %d", len(got), len(up))
		}
		go func() {
			_, _ = io.WriteString(origin, down)
			_ = origin.Close()
		}()
		if got, end := s.Rest(t, stream); got != down || end.Kind != h2test.Data {
			t.Errorf("the client got %d bytes and %+v, want %d and an orderly end", len(got), end, len(down))
		}
		if r := g.next(t, audit.EventTunnelClose); r.Wire != "h2" || r.Up != int64(size) || r.Down != int64(size) || r.CloseReason != "client" {
			t.Errorf("record %+v", r)
		}
		_ = s.Close()
	}
}

// TestTheOriginEndsItsDirection lets the origin end first: what the client has to say still
// goes, as long as it wants.
func TestTheOriginEndsItsDirection(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	stream, origin := s.tunnel(t, "allowed.example")
	other, otherOrigin := s.tunnel(t, "allowed.example")
	if _, err := io.WriteString(origin, "bye"); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, origin)
	if got, end := s.Rest(t, stream); got != "bye" || end.Kind != h2test.Data {
		t.Fatalf("the client got %q and %+v, want an orderly end", got, end)
	}
	for range 1000 {
		s.Body(t, stream, "later", false)
	}
	s.Body(t, stream, "", true)
	if got := readAll(t, origin); got != strings.Repeat("later", 1000) {
		t.Errorf("the origin got %d bytes, want 5,000", len(got))
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "upstream" || r.Up != 5000 || r.Down != 3 {
		t.Errorf("record %+v", r)
	}
	s.wantEcho(t, other, otherOrigin)
}

// TestAnOriginsResetIsNoEnd resets connections to origins.
func TestAnOriginsResetIsNoEnd(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	stream, origin := s.tunnel(t, "allowed.example")
	other, otherOrigin := s.tunnel(t, "allowed.example")
	s.wantEcho(t, stream, origin)
	_ = origin.SetLinger(0)
	_ = origin.Close()
	if got, end := s.Rest(t, stream); got != "" || end.Kind != h2test.Reset || end.Code != http2.ErrCodeConnect {
		t.Errorf("the client got %q and %+v, want a reset", got, end)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "error" || !strings.Contains(r.Detail, "upstream") {
		t.Errorf("record %+v", r)
	}
	s.wantEcho(t, other, otherOrigin)
}

// TestACallersReset resets streams at each point of their life.
func TestACallersReset(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	reset := func(id uint32) { s.Send(t, func() error { return s.WriteRSTStream(id, http2.ErrCodeCancel) }) }

	stream, origin := s.tunnel(t, "allowed.example")
	s.wantEcho(t, stream, origin)
	reset(stream)
	if _, err := origin.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the origin got %v, want a reset", err)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "error" || !strings.Contains(r.Detail, "reset the stream: CANCEL") {
		t.Errorf("record %+v", r)
	}

	stream, origin = s.tunnel(t, "allowed.example")
	s.Body(t, stream, "all", true)
	if got := readAll(t, origin); got != "all" {
		t.Fatalf("the origin got %q", got)
	}
	reset(stream) // as a Go client does when its caller closes the body of the answer
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "client" || r.Up != 3 {
		t.Errorf("record %+v", r)
	}

	held := s.connect(t, g.at("held.example"))
	<-g.names.asked
	reset(held)
	s.works(t)
	g.names.answer <- struct{}{}
	if r := g.next(t, audit.EventDecision); r.Reason != "client-gone" || r.Status != 0 || r.Host != "held.example" {
		t.Errorf("record %+v", r)
	}
	if n := g.origin.accepted.Load(); n != 3 {
		t.Errorf("%d connections to the origin, want three: a request that is gone is not dialled", n)
	}
	g.left(t, 1)
}

// works opens a tunnel and shows that it works.
func (s *session) works(t *testing.T) {
	t.Helper()
	stream, origin := s.tunnel(t, "allowed.example")
	s.wantEcho(t, stream, origin)
}

// TestAReloadEndsTheForbiddenStreams puts a policy in force that forbids half of the tunnels
// of one connection.
func TestAReloadEndsTheForbiddenStreams(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	type open struct {
		id     uint32
		origin *net.TCPConn
	}
	var stay, leave []open
	for range 10 {
		id, origin := s.tunnel(t, "allowed.example")
		stay = append(stay, open{id, origin})
		id, origin = s.tunnel(t, "a.wild.example")
		leave = append(leave, open{id, origin})
	}
	policy, err := allowlist.Compile(allowlist.Spec{Version: "two", Entries: []allowlist.Entry{
		{Pattern: only("builder"), Allow: []allowlist.Rule{to("allowed.example")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.enforcer().put(t.Context(), policy)
	for _, o := range leave {
		if _, end := s.Rest(t, o.id); end.Kind != h2test.Reset || end.Code != http2.ErrCodeCancel {
			t.Errorf("stream %d: %+v, want a reset", o.id, end)
		}
		if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "revoked" || r.Host != "a.wild.example" || r.Reason != "not-on-allowlist" {
			t.Errorf("record %+v", r)
		}
	}
	for _, o := range stay {
		s.wantEcho(t, o.id, o.origin)
	}
	if e := s.refused(t, s.connect(t, g.at("a.wild.example"))); e != "not-on-allowlist" {
		t.Errorf("refused for %q", e)
	}
}

// refused returns the reason in the refusal on a stream.
func (s *session) refused(t *testing.T, id uint32) string {
	t.Helper()
	return reasonOf(s.On(t, id))
}

// reasonOf returns the reason in the head of a refusal.
func reasonOf(e h2test.Event) string {
	_, rest, _ := strings.Cut(e.Field("proxy-status"), "; reason=")
	reason, _, _ := strings.Cut(rest, ";")
	return reason
}

// TestARefusalOverHTTP2 reads a refusal: its words are in the body and in Proxy-Status.
func TestARefusalOverHTTP2(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	other, origin := s.tunnel(t, "allowed.example")
	id := s.connect(t, "secret.example:443")
	s.Body(t, id, "carried out?", false)
	e := s.On(t, id)
	body, end := s.Rest(t, id)
	r := g.next(t, audit.EventDecision)
	if e.Status() != "403" || e.Field("x-exeat-decision") != r.ID || e.Field("connection") != "" ||
		!strings.HasPrefix(body, "egress denied: secret.example:443 is not allowed for builder; id "+r.ID) {
		t.Errorf("answered %+v %q", e, body)
	}
	if length := e.Field("content-length"); length != strconv.Itoa(len(body)) {
		t.Errorf("content-length %s, and the body has %d bytes", length, len(body))
	}
	if end.Kind != h2test.Data {
		t.Errorf("ended by %+v", end)
	}
	if e := s.On(t, id); e.Kind != h2test.Reset || e.Code != http2.ErrCodeNo {
		t.Errorf("behind the refusal came %+v, want a reset without an error: nobody reads the rest", e)
	}
	if r.Wire != "h2" || r.Reason != "not-on-allowlist" || r.Status != 403 {
		t.Errorf("record %+v", r)
	}
	s.wantEcho(t, other, origin)
}

// TestStreamsOfARemovedAuthority removes the authority of a caller, whose connection stays
// open: streams from then on have no identity, and its tunnels end.
func TestStreamsOfARemovedAuthority(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	stream, _ := s.tunnel(t, "allowed.example")
	g.identity.Set(g.snapshot(t, newCA(t), 2))
	g.identity.Tell()
	if _, end := s.Rest(t, stream); end.Kind != h2test.Reset {
		t.Errorf("the tunnel ended by %+v, want a reset", end)
	}
	if got := s.refused(t, s.connect(t, g.at("allowed.example"))); got != "identity-untrusted" {
		t.Errorf("refused for %q", got)
	}
}

// TestStreamsOfAnExpiredCertificate opens streams before and after the certificate of their
// connection expires.
func TestStreamsOfAnExpiredCertificate(t *testing.T) {
	t.Parallel() // it mostly waits
	g := newGateway(t, options{})
	until := time.Now().Add(2 * time.Second)
	s := &session{Peer: h2test.NewPeer(t, g.callWith(t, g.ca.issueUntil(t, until, id("builder").String())).Conn), gateway: g}
	s.tunnel(t, "allowed.example")
	time.Sleep(time.Until(until.Truncate(time.Second).Add(time.Second + 10*time.Millisecond))) // a certificate's time is that of the clock
	if got := s.refused(t, s.connect(t, g.at("allowed.example"))); got != "identity-expired" {
		t.Errorf("refused for %q", got)
	}
}

// TestDrainOfAConnection drains while a connection has an open tunnel.
func TestDrainOfAConnection(t *testing.T) {
	t.Parallel() // it mostly waits
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	stream, origin := s.tunnel(t, "allowed.example")
	idle := g.session(t, "builder")
	idle.Status(t, idle.connect(t, "secret.example:443"))
	g.proxy.BeginDrain()
	for _, p := range []*session{s, idle} {
		if e := p.goAway(t); e.Code != http2.ErrCodeNo || e.Last != 1<<31-1 {
			t.Errorf("got %+v, want a GOAWAY that forbids nothing yet", e)
		}
	}
	late, lateOrigin := s.tunnel(t, "allowed.example") // sent before the GOAWAY was seen
	if e := s.goAway(t); e.Code != http2.ErrCodeNo || e.Last != late {
		t.Errorf("got %+v, want a GOAWAY with the last stream", e)
	}
	s.wantEcho(t, stream, origin)
	s.wantEcho(t, late, lateOrigin)
	if e := idle.goAway(t); e.Kind != h2test.GoAway || e.Last != 1 {
		t.Errorf("got %+v, want a GOAWAY with the last stream", e)
	}
	if e := idle.Next(t); e.Kind != h2test.Ended {
		t.Errorf("a connection without a stream got %+v, want its end", e)
	}
	for id, o := range map[uint32]*net.TCPConn{stream: origin, late: lateOrigin} {
		closeWrite(t, o)
		s.Rest(t, id)
		s.Body(t, id, "", true)
	}
	for e := s.Next(t); e.Kind != h2test.Ended; e = s.Next(t) {
		if e.Kind != h2test.GoAway {
			t.Errorf("got %+v, want the end", e)
		}
	}
}

// goAway returns the next GOAWAY.
func (s *session) goAway(t *testing.T) h2test.Event {
	t.Helper()
	for {
		if e := s.Next(t); e.Kind == h2test.GoAway || e.Kind == h2test.Ended {
			return e
		}
	}
}

// TestTheLifeOfAConnection lets a connection reach the longest life of a tunnel.
func TestTheLifeOfAConnection(t *testing.T) {
	t.Parallel() // it mostly waits
	g := newGateway(t, options{tunnel: tunnel.Config{Max: time.Second}})
	s := g.session(t, "builder")
	stream, _ := s.tunnel(t, "allowed.example")
	seen := map[h2test.Kind]h2test.Event{}
	for e := s.Next(t); ; e = s.Next(t) { // the tunnel began a moment later, so GOAWAY mostly comes first
		seen[e.Kind] = e
		if e.Kind == h2test.Ended {
			break
		}
	}
	if e, ok := seen[h2test.GoAway]; !ok || e.Code != http2.ErrCodeNo {
		t.Errorf("got %+v, want a GOAWAY", seen)
	}
	if seen[h2test.Reset].ID != stream {
		t.Errorf("got %+v, want the tunnel to end by a reset", seen)
	}
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "max-duration" {
		t.Errorf("record %+v", r)
	}
}

// TestRapidResets opens streams and resets them at once, until the gateway ends the
// connection. Few of them reach the origin, and another caller's tunnel goes on.
func TestRapidResets(t *testing.T) {
	g := newGateway(t, options{})
	other := g.session(t, "reporter")
	stream, origin := other.tunnel(t, "allowed.example")
	s := g.session(t, "builder")
	var sent atomic.Int64
	var flooding sync.WaitGroup
	flooding.Go(func() {
		frames := http2.NewFramer(s.Conn, nil) // s reads, and answers what it reads
		block := s.Encode(":method", "CONNECT", ":authority", g.at("allowed.example"))
		for id := uint32(1); frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}) == nil; id += 2 {
			if frames.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
			sent.Add(1)
			block = s.Encode(":method", "CONNECT", ":authority", g.at("allowed.example"))
		}
	})
	e := s.goAway(t)
	if e.Kind == h2test.GoAway && e.Code != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("got %+v", e)
	}
	_ = s.Close()
	flooding.Wait()
	other.wantEcho(t, stream, origin)
	g.left(t, 1)
	if n := g.origin.accepted.Load() - 1; n > 100 {
		t.Errorf("%d dials of %d streams have reached the origin", n, sent.Load())
	}
	floods := 0
	for _, r := range g.rest(t) {
		if r.Event == string(audit.EventHandshake) {
			floods++
			if r.Reason != "rate-limited" || r.Identity != id("builder").String() || !strings.Contains(r.Detail, "RST_STREAM") {
				t.Errorf("record %+v", r)
			}
		}
	}
	if floods != 1 {
		t.Errorf("%d records of the flood, want one", floods)
	}
}

// fill sends chunks on a stream whose origin reads nothing, until neither the sockets nor
// the gateway take any more of them.
func (s *session) fill(t *testing.T, id uint32, chunk string) {
	t.Helper()
	for quiet := 0; quiet < 3; {
		if s.Room(id) >= len(chunk) {
			s.Body(t, id, chunk, false)
			quiet = 0
			continue
		}
		s.Send(t, func() error { return s.WritePing(false, [8]byte{1}) })
		for e := s.Any(t); e.Kind != h2test.Ping; e = s.Any(t) {
			if e.Kind == h2test.Window {
				quiet = 0
			}
		}
		quiet++
	}
}

// TestStalledOrigins fills the tunnels to ten origins that read nothing. Ninety other
// tunnels of the same connection carry bytes as before.
func TestStalledOrigins(t *testing.T) {
	const all, stalled, each = 100, 10, 1 << 20
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	origins := map[uint32]*net.TCPConn{}
	for range all {
		stream, origin := s.tunnel(t, "allowed.example")
		origins[stream] = origin
	}
	chunk := strings.Repeat("x", 16000)
	for id := uint32(1); id < 2*stalled; id += 2 {
		s.fill(t, id, chunk)
	}
	var reading sync.WaitGroup
	for id, origin := range origins {
		if id < 2*stalled {
			continue
		}
		reading.Go(func() {
			if n, err := io.CopyN(io.Discard, origin, each); err != nil {
				t.Errorf("the origin of stream %d got %d bytes: %v", id, n, err)
			}
		})
	}
	left := map[uint32]int{}
	for id := range origins {
		if id > 2*stalled {
			left[id] = each + len(chunk)
		}
	}
	for len(left) > 0 {
		progress := false
		for id := range left {
			if s.Room(id) < len(chunk) {
				continue
			}
			progress = true
			s.Body(t, id, chunk, false)
			if left[id] -= len(chunk); left[id] <= 0 {
				delete(left, id)
			}
		}
		if !progress {
			s.Any(t)
		}
	}
	reading.Wait()
}

// TestFloods sends each kind of what carries nothing, until the gateway ends the connection,
// with one record. Another caller's tunnel goes on, and what the flood has used is free
// again.
func TestFloods(t *testing.T) {
	g := newGateway(t, options{headTimeout: time.Second})
	other := g.session(t, "reporter")
	stream, origin := other.tunnel(t, "allowed.example")
	other.wantEcho(t, stream, origin)
	before := heap()
	connect := []string{":method", "CONNECT", ":authority", "secret.example:443"}
	for name, send := range map[string]func(s *session, frames *http2.Framer, n uint32) error{
		"SETTINGS": func(_ *session, frames *http2.Framer, _ uint32) error { return frames.WriteSettings() },
		"PING":     func(_ *session, frames *http2.Framer, _ uint32) error { return frames.WritePing(false, [8]byte{}) },
		"empty DATA": func(s *session, frames *http2.Framer, n uint32) error {
			if n == 0 {
				return frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.Encode(":method", "CONNECT", ":authority", g.at("allowed.example")), EndHeaders: true})
			}
			return frames.WriteData(1, false, nil)
		},
		"PRIORITY": func(_ *session, frames *http2.Framer, n uint32) error {
			return frames.WritePriority(2*n+1, http2.PriorityParam{Weight: 1})
		},
		"unknown frames": func(_ *session, frames *http2.Framer, _ uint32) error { return frames.WriteRawFrame(0xbb, 0, 0, nil) },
		"CONTINUATION": func(s *session, frames *http2.Framer, n uint32) error {
			if n == 0 {
				return frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.Encode(connect...)})
			}
			return frames.WriteContinuation(1, false, s.Encode("x", strings.Repeat("x", 1000)))
		},
		"CONTINUATION without bytes": func(s *session, frames *http2.Framer, n uint32) error {
			if n == 0 {
				return frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.Encode(connect...)})
			}
			return frames.WriteContinuation(1, false, nil)
		},
		"a head that never ends": func(s *session, frames *http2.Framer, n uint32) error {
			if n == 0 {
				return frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.Encode(connect...)})
			}
			return errEnough
		},
		"WINDOW_UPDATE": func(_ *session, frames *http2.Framer, _ uint32) error { return frames.WriteWindowUpdate(0, 1) },
		"RST_STREAM": func(s *session, frames *http2.Framer, n uint32) error {
			if n == 0 {
				return frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.Encode(connect...), EndHeaders: true, EndStream: true})
			}
			return frames.WriteRSTStream(1, http2.ErrCodeCancel)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := g.session(t, "builder")
			s.Any(t) // SETTINGS, which it acknowledges, so that it does not interrupt a head
			var flooding sync.WaitGroup
			flooding.Go(func() {
				frames := http2.NewFramer(s.Conn, nil) // s reads, and answers what it reads
				frames.AllowIllegalWrites = true
				for n := uint32(0); send(s, frames, n) == nil; n++ {
				}
			})
			if e := s.goAway(t); e.Kind == h2test.GoAway && e.Code != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("got %+v", e)
			}
			_ = s.Close()
			flooding.Wait()
			other.wantEcho(t, stream, origin)
			r := <-g.records
			for ; r.Event != string(audit.EventHandshake); r = <-g.records {
			}
			if r.Reason != "rate-limited" || r.Wire != "h2" || r.Identity != id("builder").String() {
				t.Errorf("record %+v", r)
			}
		})
	}
	g.left(t, 1)
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		after := heap()
		if after < before+4<<20 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d KiB are in use, and %d KiB were before", after>>10, before>>10)
		}
	}
}

// errEnough ends a flood that sends nothing more.
var errEnough = errors.New("enough")

// heap returns the number of bytes that are in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestAHeadThatExpands sends heads whose fields are many times as large as their bytes.
func TestAHeadThatExpands(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "builder")
	large := strings.Repeat("x", 3900)
	s.Open(t, 1, true, ":method", "CONNECT", ":authority", "secret.example:443", "x-large", large)
	if got := s.refused(t, 1); got != "not-on-allowlist" {
		t.Fatalf("refused for %q", got)
	}
	fields := []string{":method", "CONNECT", ":authority", g.at("allowed.example")}
	for range 5000 { // a byte each, from the table
		fields = append(fields, "x-large", large)
	}
	before := heap()
	for id := uint32(3); id < 23; id += 2 {
		s.Open(t, id, true, fields...)
		if got := s.refused(t, id); got != "head-too-large" {
			t.Errorf("refused for %q", got)
		}
	}
	if after := heap(); after > before+4<<20 {
		t.Errorf("%d KiB are in use, and %d KiB were before", after>>10, before>>10)
	}
}

// TestAWindowOfZeroForEver takes no byte of any answer: a refusal waits for room as long as an
// answer may take to be written, and a tunnel until it is idle for too long. Neither borrows a
// buffer meanwhile.
func TestAWindowOfZeroForEver(t *testing.T) {
	const tunnels = 20
	g := newGateway(t, options{headTimeout: 500 * time.Millisecond, tunnel: tunnel.Config{Idle: time.Second}})
	other := g.session(t, "reporter")
	other.works(t)
	s := g.session(t, "builder", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	much := make([]byte, 16<<20) // more than the sockets take
	before := heap()
	for range tunnels {
		_, origin := s.tunnel(t, "allowed.example")
		go func() { _, _ = origin.Write(much) }()
	}
	refused := s.connect(t, "secret.example:443")
	if got := s.refused(t, refused); got != "not-on-allowlist" { // heads need no room
		t.Errorf("refused for %q", got)
	}
	if after := heap(); after > before+tunnels*(32<<10) {
		t.Errorf("%d KiB are in use, and %d KiB were before", after>>10, before>>10)
	}
	if body, end := s.Rest(t, refused); body != "" || end.Kind != h2test.Reset {
		t.Errorf("the refusal ended with %q and %+v, want a reset", body, end)
	}
	for id := uint32(1); id < refused; id += 2 {
		if data, end := s.Rest(t, id); data != "" || end.Kind != h2test.Reset {
			t.Errorf("stream %d: %d bytes and %+v, want a reset", id, len(data), end)
		}
	}
	for ended := 0; ended < tunnels+1; { // the other caller's tunnel is idle, too
		if r := <-g.records; r.CloseReason == "idle" {
			ended++
		}
	}
	other.works(t)
}
