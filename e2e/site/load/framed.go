package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The windows and the frames of Framed, which are those of Go's own client.
const (
	framedPayload = 16 << 10
	framedWindow  = 4 << 20 // of the stream
	sessionWindow = 1 << 30 // of the connection
)

// Framed is a client whose tunnels are each the only stream of a connection of HTTP/2. It
// reads and writes frames of 16 KiB, the largest that a peer may send if nothing else was
// agreed, each with a write of its own.
type Framed struct{ Client *Client }

// Open opens a tunnel to the target, HOST:PORT as the proxy resolves it.
func (c *Framed) Open(ctx context.Context, target string) (Conn, error) {
	conn, err := c.Client.Dial(ctx)
	if err != nil {
		return nil, err
	}
	s := &framedStream{Conn: conn, framer: http2.NewFramer(conn, conn), window: [2]int64{65535, 65535}}
	s.framer.SetReuseFrames()
	if err := s.begin(target); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("opening a tunnel to %s in frames: %w", target, err)
	}
	return s, nil
}

// framedStream is a tunnel of Framed. One goroutine may use it.
type framedStream struct {
	Conn // the connection to the proxy

	framer   *http2.Framer
	answered bool
	rest     []byte   // data that was received and not read
	taken    int64    // bytes received since credit was given
	ended    bool     // the proxy has ended its direction
	window   [2]int64 // bytes that may be sent: on the connection, on the stream
}

// begin sends the preface, settings, credit and the request, and waits for the answer.
func (s *framedStream) begin(target string) error {
	if _, err := io.WriteString(s.Conn, http2.ClientPreface); err != nil {
		return err
	}
	if err := s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: framedWindow}); err != nil {
		return err
	}
	if err := s.framer.WriteWindowUpdate(0, sessionWindow); err != nil {
		return err
	}
	var head appended
	encoder := hpack.NewEncoder(&head)
	_ = encoder.WriteField(hpack.HeaderField{Name: ":method", Value: http.MethodConnect})
	_ = encoder.WriteField(hpack.HeaderField{Name: ":authority", Value: target})
	if err := s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head, EndHeaders: true}); err != nil {
		return err
	}
	for !s.answered {
		if err := s.readFrame(); err != nil {
			return err
		}
	}
	return nil
}

// appended is what an encoder has written.
type appended []byte

// Write implements io.Writer.
func (b *appended) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// readFrame reads a frame and does what it says. Data is left in rest, which must be empty.
func (s *framedStream) readFrame() error {
	frame, err := s.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch f := frame.(type) {
	case *http2.HeadersFrame:
		fields, err := hpack.NewDecoder(4096, nil).DecodeFull(f.HeaderBlockFragment())
		if err != nil {
			return err
		}
		if len(fields) == 0 || fields[0].Value != "200" {
			return fmt.Errorf("answered %v", fields)
		}
		s.answered = true
	case *http2.DataFrame:
		s.rest, s.ended = f.Data(), f.StreamEnded()
		if s.taken += int64(f.Length); s.taken >= framedWindow/2 {
			for id := range uint32(2) {
				if err := s.framer.WriteWindowUpdate(id, uint32(s.taken)); err != nil {
					return err
				}
			}
			s.taken = 0
		}
	case *http2.WindowUpdateFrame:
		s.window[min(f.StreamID, 1)] += int64(f.Increment)
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			s.window[1] += int64(v) - 65535
		}
		return s.framer.WriteSettingsAck()
	case *http2.RSTStreamFrame, *http2.GoAwayFrame:
		return errors.New(f.Header().String())
	}
	return nil
}

// Read implements net.Conn.
func (s *framedStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.ended {
			return 0, io.EOF
		}
		if err := s.readFrame(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write implements net.Conn. While the windows are used up it reads, and then there may be
// no data that was not read.
func (s *framedStream) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m := min(int64(len(p)-n), framedPayload, s.window[0], s.window[1])
		if m <= 0 {
			if err := s.readFrame(); err != nil {
				return n, err
			}
			continue
		}
		if err := s.framer.WriteData(1, false, p[n:n+int(m)]); err != nil {
			return n, err
		}
		s.window[0], s.window[1] = s.window[0]-m, s.window[1]-m
		n += int(m)
	}
	return n, nil
}

// CloseWrite implements Conn.
func (s *framedStream) CloseWrite() error { return s.framer.WriteData(1, true, nil) }
