package h2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// FuzzFrames sends any bytes behind the preface to a server that echoes. It ends, gives back
// what it has borrowed, serves no stream that RFC 9113 does not allow to be opened, and
// sends only what is allowed.
func FuzzFrames(f *testing.F) {
	add := func(frames ...frame) {
		var b bytes.Buffer
		framer := http2.NewFramer(&b, nil)
		framer.AllowIllegalWrites = true
		for _, f := range frames {
			_ = framer.WriteRawFrame(f.kind, f.flags, f.id, []byte(f.payload))
		}
		f.Add(b.Bytes())
	}
	add(settings(4, 100, 5, 1<<16), headers(1, endHeaders, head), data(1, 0, "hello"), data(1, endStream, "!"))
	add(settings(), headers(1, endHeaders|endStream, head), headers(3, 0, head[:5]), continuation(3, endHeaders, head[5:]), data(3, padded, "\x01x\x00"), reset(3, number(8)))
	add(settings(4, 0), headers(1, endHeaders|priority, "\x00\x00\x00\x00\x10"+head), data(1, 0, "waits"), grow(1, 3), settings(4, 1), grow(0, 7), frame{kind: http2.FramePing, payload: "12345678"}, frame{kind: http2.FrameGoAway, payload: number(0) + number(0)})
	add(settings(), headers(5, endHeaders, "\x40\x01x\x01y"), headers(7, endHeaders, "\xbe\x20"), data(5, 0, "x"), data(5, endStream, ""), data(5, 0, "closed"), frame{kind: 0xbe, payload: "unknown"})
	f.Fuzz(func(t *testing.T, input []byte) {
		conn := &canned{in: bytes.NewReader(input)}
		link, err := tunnel.NewLink(tunnel.Wrap(conn))
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var served []uint32
		c := h2.New(h2.Config{MaxStreams: 10, Serve: func(s *h2.Stream, h h2.Head) func() {
			mu.Lock()
			served = append(served, h2.ID(s))
			mu.Unlock()
			return perform(s, h)
		}}, link)
		if err := c.Run(context.Background(), nil); err == nil {
			t.Error("Run returns no error")
		}
		if n := h2.Lent(); n != 0 {
			t.Errorf("%d buffers were not given back", n)
		}
		opened, room := readInput(input)
		slices.Sort(served)
		if len(slices.Compact(slices.Clone(served))) != len(served) {
			t.Errorf("streams were served twice: %d", served)
		}
		for _, id := range served {
			if !slices.Contains(opened, id) {
				t.Errorf("stream %d was served; %d were opened", id, opened)
			}
		}
		if err := checkOutput(conn.out.Bytes(), served, room); err != nil {
			t.Error(err)
		}
	})
}

// canned is a connection on which certain bytes come, and then the end.
type canned struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *canned) Read(p []byte) (int, error)     { return c.in.Read(p) }
func (c *canned) Write(p []byte) (int, error)    { return c.out.Write(p) }
func (*canned) SetDeadline(time.Time) error      { return nil }
func (*canned) SetReadDeadline(time.Time) error  { return nil }
func (*canned) SetWriteDeadline(time.Time) error { return nil }
func (*canned) Close() error                     { return nil }

// readInput reads frames by rules of its own. It returns the streams that they open before
// the first frame that must end the connection, and how much data they allow at most.
func readInput(p []byte) (opened []uint32, room int64) {
	room = 65535
	last, head := uint32(0), uint32(0) // the last stream, and the one whose head has not ended
	for first := true; len(p) >= 9; first = false {
		n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
		kind, flags, id := http2.FrameType(p[3]), http2.Flags(p[4]), binary.BigEndian.Uint32(p[5:])&^(1<<31)
		p = p[9:]
		switch {
		case n > h2.MaxFrame, n > len(p), first && kind != http2.FrameSettings, (head != 0) != (kind == http2.FrameContinuation), head != 0 && id != head:
			return opened, room
		}
		payload := p[:n]
		p = p[n:]
		switch kind {
		case http2.FrameHeaders, http2.FrameContinuation:
			if id%2 == 0 {
				return opened, room
			}
			head = id
			if flags.Has(endHeaders) {
				head = 0
				if id > last {
					last = id
					opened = append(opened, id)
				}
			}
		case http2.FrameData, http2.FrameRSTStream:
			if id == 0 || id > last || id%2 == 0 {
				return opened, room
			}
		case http2.FrameSettings, http2.FramePing, http2.FrameGoAway:
			if id != 0 {
				return opened, room
			}
		case http2.FrameWindowUpdate:
			if n != 4 || id > last || id != 0 && id%2 == 0 {
				return opened, room
			}
			if id == 0 {
				room += int64(binary.BigEndian.Uint32(payload) &^ (1 << 31))
			}
		case http2.FramePushPromise:
			return opened, room
		case http2.FramePriority, http2.FramePriorityUpdate:
		}
	}
	return opened, room
}

// checkOutput returns an error for frames that a server may not send.
func checkOutput(p []byte, served []uint32, room int64) error {
	framer := http2.NewFramer(nil, bytes.NewReader(p))
	framer.ReadMetaHeaders = hpack.NewDecoder(0, nil)
	ended := map[uint32]bool{}
	for {
		f, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		id := f.Header().StreamID
		switch f := f.(type) {
		case *http2.DataFrame:
			if room -= int64(f.Length); room < 0 {
				return errors.New("more data than the window of the connection")
			}
			if ended[id] || !slices.Contains(served, id) {
				return errors.New("data on a stream that is not open")
			}
			ended[id] = f.StreamEnded()
		case *http2.MetaHeadersFrame:
			if ended[id] || !slices.Contains(served, id) {
				return errors.New("a head on a stream that is not open")
			}
			ended[id] = f.StreamEnded()
		case *http2.RSTStreamFrame:
			ended[id] = true
		}
	}
}
