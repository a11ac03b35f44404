package h2_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// The streams of a frameCase.
const (
	open   = 1  // it echoes
	closed = 3  // both directions have ended
	half   = 5  // the peer has ended its direction
	theirs = 7  // the peer has reset it
	ours   = 9  // the server has reset it
	other  = 11 // it echoes, and nothing wrong is sent on it
	idle   = 13 // it was not opened
)

// openScene opens the streams of a frameCase.
func (s *server) openScene(t *testing.T) {
	t.Helper()
	for _, opened := range []struct {
		id   uint32
		does string
		end  bool
	}{{open, "echo", false}, {closed, "echo", true}, {half, "hold", true}, {theirs, "echo", false}, {ours, "reset", false}, {other, "echo", false}} {
		s.Open(t, opened.id, opened.end, connect(opened.does)...)
		if e := s.On(t, opened.id); e.Status() != "200" && e.Code != http2.ErrCodeConnect {
			t.Fatalf("stream %d: %+v", opened.id, e)
		}
	}
	if e := s.On(t, closed); !e.End {
		t.Fatalf("%+v, want the end of the stream", e)
	}
	s.Send(t, func() error { return s.WriteRSTStream(theirs, http2.ErrCodeCancel) })
}

// connect returns the fields of a CONNECT.
func connect(does string) []string { return []string{":method", "CONNECT", ":authority", does} }

// wantEcho checks that a stream works.
func (s *server) wantEcho(t *testing.T, id uint32) {
	t.Helper()
	s.Body(t, id, "still there?", false)
	got := ""
	for !strings.HasSuffix(got, "still there?") {
		e := s.On(t, id)
		if e.Kind != h2test.Data {
			t.Fatalf("stream %d does not work any more: %+v", id, e)
		}
		got += e.Data
	}
}

// wantEnd checks that the connection ends with a code.
func (s *server) wantEnd(t *testing.T, code http2.ErrCode) {
	t.Helper()
	e := s.Next(t)
	for e.Kind != h2test.GoAway && e.Kind != h2test.Ended {
		e = s.Next(t)
	}
	if e.Kind != h2test.GoAway || e.Code != code || e.Text == "" {
		t.Errorf("%+v, want GOAWAY with %s and a text", e, code)
	}
	if e = s.Next(t); e.Kind != h2test.Ended {
		t.Errorf("%+v behind GOAWAY, want the end of the connection", e)
	}
	s.Close() // the server waits for it for a while
	err := s.wait(t)
	if broken, ok := errors.AsType[*h2.Error](err); !ok || broken.Code != code || broken.IsFlood() != (code == http2.ErrCodeEnhanceYourCalm) {
		t.Errorf("Run returns %v, want %s", err, code)
	}
}

// frame is one frame as it is sent.
type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	id      uint32
	payload string
}

// frameCase is frames that are sent, and what they cause.
type frameCase struct {
	section string // of RFC 9113, or RFC 7541 if it begins with a C
	name    string
	frames  []frame
	conn    http2.ErrCode // the code of GOAWAY; zero if the connection stays
	stream  http2.ErrCode // the code of RST_STREAM on the stream of the last frame; zero if there is none
}

// The flags by their values, which stand for different things on different frames.
const (
	endStream  = http2.FlagDataEndStream
	ack        = http2.FlagSettingsAck
	endHeaders = http2.FlagHeadersEndHeaders
	padded     = http2.FlagDataPadded
	priority   = http2.FlagHeadersPriority
)

// The frames that carry what they name.
func data(id uint32, flags http2.Flags, p string) frame { return frame{http2.FrameData, flags, id, p} }

func headers(id uint32, flags http2.Flags, p string) frame {
	return frame{http2.FrameHeaders, flags, id, p}
}

func continuation(id uint32, flags http2.Flags, p string) frame {
	return frame{http2.FrameContinuation, flags, id, p}
}
func reset(id uint32, p string) frame      { return frame{http2.FrameRSTStream, 0, id, p} }
func prioritize(id uint32, p string) frame { return frame{http2.FramePriority, 0, id, p} }
func grow(id, n uint32) frame              { return frame{http2.FrameWindowUpdate, 0, id, number(n)} }

func settings(pairs ...uint32) frame {
	p := ""
	for pair := range slices.Chunk(pairs, 2) {
		p += string(binary.BigEndian.AppendUint16(nil, uint16(pair[0]))) + number(pair[1])
	}
	return frame{kind: http2.FrameSettings, payload: p}
}

func number(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

// head is the head "CONNECT echo" in a form that needs no table.
const head = "\x02\x07CONNECT\x01\x04echo"

func (c *frameCase) run(t *testing.T) {
	s := serve(t, h2.Config{})
	s.openScene(t)
	for _, f := range c.frames {
		s.Send(t, func() error { return s.WriteRawFrame(f.kind, f.flags, f.id, []byte(f.payload)) })
	}
	id := c.frames[len(c.frames)-1].id &^ (1 << 31)
	switch {
	case c.conn != 0:
		s.wantEnd(t, c.conn)
		return
	case c.stream != 0:
		e := s.On(t, id)
		for e.Kind == h2test.Data || e.Kind == h2test.Head {
			e = s.On(t, id)
		}
		if e.Kind != h2test.Reset || e.Code != c.stream {
			t.Errorf("%+v, want a reset with %s", e, c.stream)
		}
	case id == open:
		s.wantEcho(t, open)
	}
	s.wantEcho(t, other)
	s.Send(t, func() error { return s.WriteRawFrame(http2.FrameHeaders, endHeaders, 101, []byte(head)) })
	if e := s.On(t, 101); e.Status() != "200" {
		t.Errorf("a new stream: %+v", e)
	}
	s.wantEcho(t, 101)
}

// TestMalformedFrames sends every frame and every order of frames that RFC 9113 sections 4
// to 6 and RFC 7541 forbid, and some that they allow and that are rare.
func TestMalformedFrames(t *testing.T) {
	for _, c := range slices.Concat(formCases(), dataCases(), headCases(), compressionCases(), streamCases(), connectionCases(), windowCases()) {
		t.Run(c.section+"/"+strings.ReplaceAll(c.name, " ", "_"), c.run)
	}
}

// formCases are about sections 4 and 5.5: the form of frames, and extensions.
func formCases() []frameCase {
	const unknown = 0xbe
	return []frameCase{
		{"4.1", "reserved bit of the stream", []frame{data(open|1<<31, 0, "")}, 0, 0},
		{"4.1", "unused flags", []frame{{http2.FramePing, 0xfe, 0, "12345678"}, data(open, 0xf6, "")}, 0, 0},
		{"4.1", "unknown type", []frame{{unknown, 0xff, open, "anything"}}, 0, 0},
		{"4.1", "unknown type on an idle stream", []frame{{unknown, 0, idle, ""}}, 0, 0},
		{"5.5", "unknown type inside a head", []frame{headers(idle, 0, head), {unknown, 0, idle, ""}}, http2.ErrCodeProtocol, 0},
		{"4.2", "DATA larger than the largest frame", []frame{data(open, 0, strings.Repeat("x", h2.MaxFrame+1))}, http2.ErrCodeFrameSize, 0},
		{"4.2", "DATA of the largest size", []frame{data(open, 0, strings.Repeat("x", h2.MaxFrame))}, 0, 0},
		{"4.2", "HEADERS larger than the largest frame", []frame{headers(idle, endHeaders, strings.Repeat("x", h2.MaxFrame+1))}, http2.ErrCodeFrameSize, 0},
		{"4.2", "unknown type larger than the largest frame", []frame{{unknown, 0, 0, strings.Repeat("x", h2.MaxFrame+1)}}, http2.ErrCodeFrameSize, 0},
		{"4.2", "unknown type of the largest size", []frame{{unknown, 0, 0, strings.Repeat("x", h2.MaxFrame)}}, 0, 0},
	}
}

// dataCases are about section 6.1.
func dataCases() []frameCase {
	return []frameCase{
		{"6.1", "stream 0", []frame{data(0, 0, "x")}, http2.ErrCodeProtocol, 0},
		{"6.1", "idle", []frame{data(idle, 0, "x")}, http2.ErrCodeProtocol, 0},
		{"6.1", "even stream", []frame{data(2, 0, "x")}, http2.ErrCodeProtocol, 0},
		{"6.1", "half closed", []frame{data(half, 0, "x")}, 0, http2.ErrCodeStreamClosed},
		{"6.1", "half closed, only an end", []frame{data(half, endStream, "")}, 0, http2.ErrCodeStreamClosed},
		{"6.1", "closed", []frame{data(closed, 0, "x")}, 0, http2.ErrCodeStreamClosed},
		{"6.1", "skipped", []frame{headers(idle+2, endHeaders, head), data(idle, 0, "x")}, 0, http2.ErrCodeStreamClosed},
		{"6.1", "reset by the peer", []frame{data(theirs, 0, "x")}, 0, http2.ErrCodeStreamClosed},
		{"6.1", "reset by the server", []frame{data(ours, 0, "x")}, 0, 0},
		{"6.1", "padding of the length of the frame", []frame{data(open, padded, "\x01")}, http2.ErrCodeProtocol, 0},
		{"6.1", "padding longer than the frame", []frame{data(open, padded, "\x06hello")}, http2.ErrCodeProtocol, 0},
		{"6.1", "padding that fills the frame", []frame{data(open, padded, "\x05\x00\x00\x00\x00\x00")}, 0, 0},
		{"6.1", "no length of padding", []frame{data(open, padded, "")}, http2.ErrCodeFrameSize, 0},
		{"6.1", "padding of zero bytes", []frame{data(open, padded, "\x00")}, 0, 0},
		{"6.1", "padding that is not zero", []frame{data(open, padded, "\x02xx")}, 0, 0},
	}
}

// headCases are about sections 6.2, 6.10 and 8.1.
func headCases() []frameCase {
	const end = endHeaders
	return []frameCase{
		{"6.2", "stream 0", []frame{headers(0, end, head)}, http2.ErrCodeProtocol, 0},
		{"6.2", "padding longer than the frame", []frame{headers(idle, end|padded, "\xff"+head)}, http2.ErrCodeProtocol, 0},
		{"6.2", "padding longer than the frame on an open stream", []frame{headers(open, end|padded, "\xff"+head)}, http2.ErrCodeProtocol, 0},
		{"6.2", "padding", []frame{headers(idle, end|padded, "\x02"+head+"xx")}, 0, 0},
		{"6.2", "no length of padding", []frame{headers(idle, end|padded, "")}, http2.ErrCodeFrameSize, 0},
		{"6.2", "cut priority", []frame{headers(idle, end|priority, "\x00\x00\x00")}, http2.ErrCodeFrameSize, 0},
		{"6.2", "no weight", []frame{headers(idle, end|priority, "\x00\x00\x00\x00")}, http2.ErrCodeFrameSize, 0},
		{"5.3", "a stream that depends on itself", []frame{headers(idle, end|priority, number(idle)+"\x00"+head)}, 0, 0},
		{"5.1.1", "even stream", []frame{headers(idle+1, end, head)}, http2.ErrCodeProtocol, 0},
		{"5.1.1", "skipped", []frame{headers(idle+2, end, head), headers(idle, end, head)}, http2.ErrCodeProtocol, 0},
		{"5.1", "closed", []frame{headers(closed, end, head)}, http2.ErrCodeStreamClosed, 0},
		{"5.1", "half closed", []frame{headers(half, end|endStream, head)}, 0, http2.ErrCodeStreamClosed},
		{"5.1", "reset by the server", []frame{headers(ours, end, head)}, 0, 0},
		{"5.1", "reset by the peer", []frame{headers(theirs, end, head)}, http2.ErrCodeStreamClosed, 0},
		{"8.1", "a trailer", []frame{headers(open, end|endStream, head)}, 0, http2.ErrCodeProtocol},
		{"8.1", "a head behind the head", []frame{headers(open, end, head)}, 0, http2.ErrCodeProtocol},
		{"6.10", "without HEADERS", []frame{continuation(open, end, head)}, http2.ErrCodeProtocol, 0},
		{"6.10", "stream 0", []frame{headers(idle, 0, head), continuation(0, end, "")}, http2.ErrCodeProtocol, 0},
		{"6.10", "other stream", []frame{headers(idle, 0, head), continuation(idle+2, end, "")}, http2.ErrCodeProtocol, 0},
		{"6.10", "behind the end of the head", []frame{headers(idle, end, head), continuation(idle, end, "")}, http2.ErrCodeProtocol, 0},
		{"6.10", "behind the last CONTINUATION", []frame{headers(idle, 0, head), continuation(idle, end, ""), continuation(idle, end, "")}, http2.ErrCodeProtocol, 0},
		{"6.10", "DATA inside a head", []frame{headers(idle, 0, head), data(open, 0, "x")}, http2.ErrCodeProtocol, 0},
		{"6.10", "HEADERS inside a head", []frame{headers(idle, 0, head), headers(idle, end, "")}, http2.ErrCodeProtocol, 0},
		{"6.10", "PRIORITY inside a head", []frame{headers(idle, 0, head), prioritize(open, "\x00\x00\x00\x00\x00")}, http2.ErrCodeProtocol, 0},
		{"6.10", "SETTINGS inside a head", []frame{headers(idle, 0, head), settings()}, http2.ErrCodeProtocol, 0},
		{"6.10", "a head in pieces", []frame{headers(idle, 0, head[:5]), continuation(idle, 0, head[5:9]), continuation(idle, 0, ""), continuation(idle, end, head[9:])}, 0, 0},
	}
}

// compressionCases are about RFC 7541.
func compressionCases() []frameCase {
	bad := func(section, name, block string) frameCase {
		return frameCase{section, name, []frame{headers(idle, endHeaders, block)}, http2.ErrCodeCompression, 0}
	}
	return []frameCase{
		bad("C2.3.3", "an index that is not in the table", "\xff\x00"),
		bad("C6.1", "index zero", "\x80"),
		bad("C6.2.1", "a name that is not in the table", "\x7f\x7e\x01x"),
		bad("C5.1", "an index of too many bytes", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
		bad("C5.2", "the end of the string in Huffman code", "\x00\x01x\x84\xff\xff\xff\xff"),
		bad("C5.2", "padding of more than 7 bits", "\x00\x01x\x82\x1f\xff"),
		bad("C5.2", "padding of zeros", "\x00\x01x\x81\x18"),
		bad("C5.2", "a string longer than the head", head+"\x00\x01x\x03x"),
		bad("C4.2", "a table that is too large", "\x3f\xe2\x1f"+head),
		bad("C4.2", "a size of the table behind a field", "\x40\x01x\x01y\x20"),
		bad("4.3", "a head that is cut", head[:5]),
		{"C4.2", "a size of the table at the beginning", []frame{headers(idle, endHeaders, "\x20"+head)}, 0, 0},
		{"4.3", "a malformed head on a stream that was reset", []frame{headers(ours, endHeaders, "\x80")}, http2.ErrCodeCompression, 0},
		{"4.3", "the table after a head that is thrown away", []frame{headers(ours, endHeaders, "\x40\x01x\x01y"), headers(idle, endHeaders, head+"\xbe")}, 0, 0},
	}
}

// streamCases are about sections 6.3 and 6.4.
func streamCases() []frameCase {
	const five = "\x00\x00\x00\x00\x00"
	return []frameCase{
		{"6.3", "stream 0", []frame{prioritize(0, five)}, http2.ErrCodeProtocol, 0},
		{"6.3", "too short", []frame{prioritize(open, five[:4])}, 0, http2.ErrCodeFrameSize},
		{"6.3", "too long", []frame{prioritize(open, five+"x")}, 0, http2.ErrCodeFrameSize},
		{"6.3", "too long on a closed stream", []frame{prioritize(closed, five+"x")}, 0, 0},
		{"6.3", "too long on an idle stream", []frame{prioritize(idle, five+"x")}, http2.ErrCodeFrameSize, 0},
		{"6.3", "open", []frame{prioritize(open, five)}, 0, 0},
		{"6.3", "idle", []frame{prioritize(idle, five)}, 0, 0},
		{"6.3", "closed", []frame{prioritize(closed, five)}, 0, 0},
		{"5.3", "a stream that depends on itself", []frame{prioritize(open, number(open)+"x")}, 0, 0},
		{"6.4", "stream 0", []frame{reset(0, number(8))}, http2.ErrCodeProtocol, 0},
		{"6.4", "idle", []frame{reset(idle, number(8))}, http2.ErrCodeProtocol, 0},
		{"6.4", "even stream", []frame{reset(2, number(8))}, http2.ErrCodeProtocol, 0},
		{"6.4", "too short", []frame{reset(open, "\x00\x00\x08")}, http2.ErrCodeFrameSize, 0},
		{"6.4", "too long", []frame{reset(open, number(8)+"x")}, http2.ErrCodeFrameSize, 0},
		{"6.4", "closed", []frame{reset(closed, number(8))}, 0, 0},
		{"6.4", "half closed", []frame{reset(half, number(8))}, 0, 0},
		{"6.4", "twice", []frame{reset(theirs, number(8))}, 0, 0},
		{"6.4", "reset by the server", []frame{reset(ours, number(8))}, 0, 0},
		{"7", "unknown code", []frame{reset(half, number(0xfefefefe))}, 0, 0},
	}
}

// connectionCases are about sections 6.5 to 6.8.
func connectionCases() []frameCase {
	const eight = "12345678"
	return []frameCase{
		{"6.5", "stream 1", []frame{{http2.FrameSettings, 0, open, ""}}, http2.ErrCodeProtocol, 0},
		{"6.5", "cut", []frame{{http2.FrameSettings, 0, 0, "\x00\x03\x00"}}, http2.ErrCodeFrameSize, 0},
		{"6.5", "ACK with a payload", []frame{{http2.FrameSettings, ack, 0, settings(3, 1).payload}}, http2.ErrCodeFrameSize, 0},
		{"6.5", "ACK of nothing", []frame{{http2.FrameSettings, ack, 0, ""}}, 0, 0},
		{"6.5", "empty", []frame{settings()}, 0, 0},
		{"6.5.2", "ENABLE_PUSH of 2", []frame{settings(2, 2)}, http2.ErrCodeProtocol, 0},
		{"6.5.2", "ENABLE_PUSH of 1", []frame{settings(2, 1)}, 0, 0},
		{"6.5.2", "INITIAL_WINDOW_SIZE too large", []frame{settings(4, 1<<31)}, http2.ErrCodeFlowControl, 0},
		{"6.5.2", "INITIAL_WINDOW_SIZE too large the second time", []frame{settings(4, 10, 4, 1<<31)}, http2.ErrCodeFlowControl, 0},
		{"6.5.2", "MAX_FRAME_SIZE too small", []frame{settings(5, 1<<14-1)}, http2.ErrCodeProtocol, 0},
		{"6.5.2", "MAX_FRAME_SIZE too large", []frame{settings(5, 1<<24)}, http2.ErrCodeProtocol, 0},
		{"6.5.2", "MAX_FRAME_SIZE of the largest", []frame{settings(5, 1<<24-1)}, 0, 0},
		{"6.5.2", "unknown", []frame{settings(0x0a0a, 1<<32-1)}, 0, 0},
		{"6.5.2", "no table", []frame{settings(1, 0)}, 0, 0},
		{"6.5.2", "the largest table", []frame{settings(1, 1<<32-1)}, 0, 0},
		{"8441", "ENABLE_CONNECT_PROTOCOL of 2", []frame{settings(8, 2)}, http2.ErrCodeProtocol, 0},
		{"6.6", "PUSH_PROMISE", []frame{{http2.FramePushPromise, endHeaders, open, number(2) + head}}, http2.ErrCodeProtocol, 0},
		{"6.6", "PUSH_PROMISE on stream 0", []frame{{http2.FramePushPromise, endHeaders, 0, number(2) + head}}, http2.ErrCodeProtocol, 0},
		{"6.6", "cut PUSH_PROMISE", []frame{{http2.FramePushPromise, endHeaders, open, "\x00"}}, http2.ErrCodeFrameSize, 0},
		{"6.7", "stream 1", []frame{{http2.FramePing, 0, open, eight}}, http2.ErrCodeProtocol, 0},
		{"6.7", "too short", []frame{{http2.FramePing, 0, 0, eight[1:]}}, http2.ErrCodeFrameSize, 0},
		{"6.7", "too long", []frame{{http2.FramePing, 0, 0, eight + "9"}}, http2.ErrCodeFrameSize, 0},
		{"6.7", "ACK of nothing", []frame{{http2.FramePing, ack, 0, eight}}, 0, 0},
		{"6.8", "stream 1", []frame{{http2.FrameGoAway, 0, open, number(0) + number(0)}}, http2.ErrCodeProtocol, 0},
		{"6.8", "too short", []frame{{http2.FrameGoAway, 0, 0, number(0) + "\x00\x00\x00"}}, http2.ErrCodeFrameSize, 0},
		{"6.8", "more streams behind it", []frame{{http2.FrameGoAway, 0, 0, number(0) + number(0) + "bye"}}, 0, 0},
	}
}

// windowCases are about section 6.9.
func windowCases() []frameCase {
	const most = 1<<31 - 1
	return []frameCase{
		{"6.9", "too short", []frame{{http2.FrameWindowUpdate, 0, 0, "\x00\x00\x01"}}, http2.ErrCodeFrameSize, 0},
		{"6.9", "too long on a stream", []frame{{http2.FrameWindowUpdate, 0, open, number(1) + "x"}}, http2.ErrCodeFrameSize, 0},
		{"6.9", "zero", []frame{grow(0, 0)}, http2.ErrCodeProtocol, 0},
		{"6.9", "zero on a stream", []frame{grow(open, 0)}, 0, http2.ErrCodeProtocol},
		{"6.9", "zero on a half closed stream", []frame{grow(half, 0)}, 0, http2.ErrCodeProtocol},
		{"6.9", "zero on a closed stream", []frame{grow(closed, 0)}, 0, 0},
		{"6.9", "zero on an idle stream", []frame{grow(idle, 0)}, http2.ErrCodeProtocol, 0},
		{"6.9", "reserved bit", []frame{grow(open, 1<<31+1)}, 0, 0},
		{"6.9", "idle", []frame{grow(idle, 1)}, http2.ErrCodeProtocol, 0},
		{"6.9", "even stream", []frame{grow(2, 1)}, http2.ErrCodeProtocol, 0},
		{"6.9", "closed", []frame{grow(closed, 1)}, 0, 0},
		{"6.9", "half closed", []frame{grow(half, 1)}, 0, 0},
		{"6.9", "reset by the server", []frame{grow(ours, 1)}, 0, 0},
		{"6.9.1", "the window of the connection overflows", []frame{grow(0, most)}, http2.ErrCodeFlowControl, 0},
		{"6.9.1", "the window of the connection overflows the second time", []frame{grow(0, most-1<<16), grow(0, 1<<17)}, http2.ErrCodeFlowControl, 0},
		{"6.9.1", "the window of a stream overflows", []frame{grow(open, most)}, 0, http2.ErrCodeFlowControl},
		{"6.9.1", "the largest window", []frame{grow(open, most-65535), grow(0, most-65535)}, 0, 0},
		{"6.9.2", "SETTINGS make a window overflow", []frame{grow(open, 1<<17), settings(4, most)}, http2.ErrCodeFlowControl, 0},
		{"6.9.2", "SETTINGS make a window negative and then large", []frame{settings(4, 0), settings(4, 1<<20), data(open, 0, "")}, 0, 0},
	}
}
