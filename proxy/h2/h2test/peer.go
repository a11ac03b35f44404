// Package h2test has a peer that speaks HTTP/2 frame by frame, for tests. It sends what it
// is told to send, right or wrong, and reports what comes.
package h2test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Patience bounds every wait.
const Patience = time.Minute

// Peer is the client's end of a connection. One goroutine may use it, except that others may
// call TrySend while it reads.
type Peer struct {
	net.Conn
	*http2.Framer // writes frames, also illegal ones

	// Keeps says that the peer returns no credit for the data that comes.
	Keeps bool

	initial int64            // window of a new stream
	windows map[uint32]int64 // what may be sent on each stream, and under 0 on all; a stream that is missing has initial

	writing sync.Mutex // held while frames are encoded and written
	encoded bytes.Buffer
	encoder *hpack.Encoder
	waiting []Event // what has come and was not asked for
}

// Kind says what an Event is.
type Kind string

// The kinds of events.
const (
	Head    Kind = "head"
	Data    Kind = "data"
	Reset   Kind = "reset"
	GoAway  Kind = "goaway"
	Ping    Kind = "ping"   // the answer to a PING
	Window  Kind = "window" // WINDOW_UPDATE
	Ended   Kind = "ended"  // the connection has ended
	Setting Kind = "settings"
)

// Event is something that has come.
type Event struct {
	Kind   Kind
	ID     uint32
	Fields []hpack.HeaderField
	Data   string
	End    bool          // END_STREAM
	Code   http2.ErrCode // of RST_STREAM and GOAWAY
	Last   uint32        // the last stream of GOAWAY
	Text   string        // debug data of GOAWAY
	Err    error         // the error of the connection, if it has ended
	Values map[http2.SettingID]uint32
	Size   uint32 // increment of a window
}

// Field returns the value of a field.
func (e *Event) Field(name string) string {
	for _, f := range e.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// Status returns the status of the head of an answer.
func (e *Event) Status() string { return e.Field(":status") }

// NewPeer returns a peer that has sent the preface and its settings.
func NewPeer(tb testing.TB, conn net.Conn, settings ...http2.Setting) *Peer {
	tb.Helper()
	p := NewSilentPeer(conn)
	p.Send(tb, func() error {
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return err
		}
		return p.WriteSettings(settings...)
	})
	return p
}

// window is every window before SETTINGS and WINDOW_UPDATE (RFC 9113 section 6.9.2).
const window = 65535

// NewSilentPeer returns a peer that has sent nothing.
func NewSilentPeer(conn net.Conn) *Peer {
	p := &Peer{Conn: conn, Framer: http2.NewFramer(conn, conn), initial: window, windows: map[uint32]int64{0: window}}
	p.encoder = hpack.NewEncoder(&p.encoded)
	p.AllowIllegalWrites = true
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return p
}

// Send calls something that writes.
func (p *Peer) Send(tb testing.TB, write func() error) {
	tb.Helper()
	if err := p.TrySend(write); err != nil {
		tb.Fatalf("writing: %v", err)
	}
}

// TrySend is Send for a connection that may have ended.
func (p *Peer) TrySend(write func() error) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	_ = p.SetWriteDeadline(time.Now().Add(Patience))
	return write()
}

// Encode returns the encoded head of pairs of names and values. While several goroutines
// send, call it within Send, so that heads are sent in the order in which they are encoded.
func (p *Peer) Encode(pairs ...string) []byte {
	p.encoded.Reset()
	for pair := range slices.Chunk(pairs, 2) {
		_ = p.encoder.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1]}) // a buffer returns no error
	}
	return slices.Clone(p.encoded.Bytes())
}

// Open sends a head of pairs of names and values.
func (p *Peer) Open(tb testing.TB, id uint32, end bool, pairs ...string) {
	tb.Helper()
	p.Send(tb, func() error {
		return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.Encode(pairs...), EndHeaders: true, EndStream: end})
	})
}

// Connect sends a CONNECT.
func (p *Peer) Connect(tb testing.TB, id uint32, target string) {
	tb.Helper()
	p.Open(tb, id, false, ":method", "CONNECT", ":authority", target)
}

// Body sends data in one frame, whether or not there is room for it.
func (p *Peer) Body(tb testing.TB, id uint32, data string, end bool) {
	tb.Helper()
	p.add(id, -int64(len(data)))
	p.windows[0] -= int64(len(data))
	p.Send(tb, func() error { return p.WriteData(id, end, []byte(data)) })
}

// Upload sends data in frames of at most 16,000 bytes, and waits for room.
func (p *Peer) Upload(tb testing.TB, id uint32, data string, end bool) {
	tb.Helper()
	for first := true; first || data != ""; first = false {
		n := min(len(data), 16000)
		for p.Room(id) < n {
			p.waiting = append(p.waiting, p.read(tb))
		}
		p.Body(tb, id, data[:n], end && n == len(data))
		data = data[n:]
	}
}

// Room returns how many bytes may be sent on a stream.
func (p *Peer) Room(id uint32) int {
	own, known := p.windows[id]
	if !known {
		own = p.initial
	}
	return int(max(0, min(own, p.windows[0])))
}

// add changes the window of a stream.
func (p *Peer) add(id uint32, n int64) {
	if _, known := p.windows[id]; !known {
		p.windows[id] = p.initial
	}
	p.windows[id] += n
}

// Next returns what comes next, but SETTINGS, WINDOW_UPDATE and the answers to PING. The
// peer acknowledges SETTINGS, and returns credit for data unless it keeps it.
func (p *Peer) Next(tb testing.TB) Event {
	tb.Helper()
	for {
		e := p.Any(tb)
		switch e.Kind {
		case Setting, Window, Ping:
			continue
		case Head, Data, Reset, GoAway, Ended:
		}
		return e
	}
}

// Any returns what comes next.
func (p *Peer) Any(tb testing.TB) Event {
	tb.Helper()
	if len(p.waiting) > 0 {
		e := p.waiting[0]
		p.waiting = p.waiting[1:]
		return e
	}
	return p.read(tb)
}

// On returns what comes next on a stream, or the end of the connection. What comes for
// others meanwhile is kept.
func (p *Peer) On(tb testing.TB, id uint32) Event {
	tb.Helper()
	wanted := func(e Event) bool {
		switch e.Kind {
		case Head, Data, Reset:
			return e.ID == id
		case Ended:
			return true
		case GoAway, Ping, Window, Setting:
		}
		return false
	}
	if i := slices.IndexFunc(p.waiting, wanted); i >= 0 {
		e := p.waiting[i]
		p.waiting = slices.Delete(p.waiting, i, i+1)
		return e
	}
	for {
		e := p.read(tb)
		if wanted(e) {
			return e
		}
		p.waiting = append(p.waiting, e)
	}
}

// Status returns the status of the answer on a stream, or "" if it is reset or the
// connection ends.
func (p *Peer) Status(tb testing.TB, id uint32) string {
	tb.Helper()
	e := p.On(tb, id)
	return e.Status()
}

// Rest returns the data of a stream up to its end, and how it ends: with the last data,
// with a reset, or with the connection.
func (p *Peer) Rest(tb testing.TB, id uint32) (data string, end Event) {
	tb.Helper()
	for {
		e := p.On(tb, id)
		data += e.Data
		if e.Kind != Data && e.Kind != Head || e.End {
			return data, e
		}
	}
}

// read reads one frame.
func (p *Peer) read(tb testing.TB) Event {
	tb.Helper()
	_ = p.SetReadDeadline(time.Now().Add(Patience))
	e := p.Receive()
	if errors.Is(e.Err, os.ErrDeadlineExceeded) {
		tb.Fatal("nothing has come")
	}
	if e.Kind == "" {
		tb.Fatal("an unexpected frame has come")
	}
	return e
}

// Receive returns the frame that comes next, for as long as it takes. It has no kind if no
// server sends such a frame. A goroutine that calls it must use no other method that reads.
func (p *Peer) Receive() Event {
	frame, err := p.ReadFrame()
	if err != nil {
		return Event{Kind: Ended, Err: err}
	}
	e := Event{ID: frame.Header().StreamID}
	switch f := frame.(type) {
	case *http2.MetaHeadersFrame:
		e.Kind, e.Fields, e.End = Head, slices.Clone(f.Fields), f.StreamEnded()
	case *http2.DataFrame:
		e.Kind, e.Data, e.End = Data, string(f.Data()), f.StreamEnded()
		p.credit(f)
	case *http2.RSTStreamFrame:
		e.Kind, e.Code = Reset, f.ErrCode
	case *http2.GoAwayFrame:
		e.Kind, e.Code, e.Last, e.Text = GoAway, f.ErrCode, f.LastStreamID, string(f.DebugData())
	case *http2.WindowUpdateFrame:
		e.Kind, e.Size = Window, f.Increment
		p.add(e.ID, int64(e.Size))
	case *http2.PingFrame:
		e.Kind = Ping
	case *http2.SettingsFrame:
		e.Kind, e.Values = Setting, make(map[http2.SettingID]uint32)
		_ = f.ForeachSetting(func(s http2.Setting) error { e.Values[s.ID] = s.Val; return nil })
		if initial, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for id := range p.windows {
				if id != 0 {
					p.windows[id] += int64(initial) - p.initial
				}
			}
			p.initial = int64(initial)
		}
		if !f.IsAck() {
			_ = p.TrySend(p.WriteSettingsAck) // the next read reports an error
		}
	}
	return e
}

// credit returns credit for data.
func (p *Peer) credit(f *http2.DataFrame) {
	n := f.Length
	if n == 0 || p.Keeps {
		return
	}
	_ = p.TrySend(func() error { // the next read reports an error
		if !f.StreamEnded() {
			_ = p.WriteWindowUpdate(f.StreamID, n)
		}
		return p.WriteWindowUpdate(0, n)
	})
}
