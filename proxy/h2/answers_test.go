package h2_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// deaf is a connection whose peer has sent everything at once. After the first write, which
// has SETTINGS, the peer reads nothing until it hears.
type deaf struct {
	net.Conn // nil

	sent  io.Reader     // what the peer has sent
	hears chan struct{} // closed when the peer reads
	ended chan struct{} // closed when the connection has ended

	mu      sync.Mutex // guards the fields below
	written bytes.Buffer
	end     sync.Once
}

// Read implements net.Conn.
func (d *deaf) Read(p []byte) (int, error) {
	n, err := d.sent.Read(p)
	if n > 0 {
		return n, nil
	}
	<-d.ended
	return 0, err
}

// Write implements net.Conn.
func (d *deaf) Write(p []byte) (int, error) {
	d.mu.Lock()
	first := d.written.Len() == 0
	d.mu.Unlock()
	if !first {
		select {
		case <-d.hears:
		case <-d.ended:
			return 0, net.ErrClosed
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written.Write(p)
}

// SetReadDeadline ends the connection if the deadline has passed.
func (d *deaf) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && !t.After(time.Now()) {
		return d.Close()
	}
	return nil
}

// Close implements net.Conn.
func (d *deaf) Close() error {
	d.end.Do(func() { close(d.ended) })
	return nil
}

func (d *deaf) SetWriteDeadline(time.Time) error { return nil }
func (d *deaf) SetDeadline(time.Time) error      { return nil }

// TestAnswersWaitForTheClient asks for a thousand answers at once, of which only few fit in
// the queue, before the client reads any. All of them must arrive: a client that has asked
// for much is not one that does not read.
func TestAnswersWaitForTheClient(t *testing.T) {
	const streams = 1000
	body := []byte(strings.Repeat("a", 2000))
	for name, serve := range map[string]func(*h2.Stream) error{
		"whole answers": func(s *h2.Stream) error {
			return s.Respond([]h2.Field{{Name: ":status", Value: "403"}}, body)
		},
		"heads": func(s *h2.Stream) error {
			return s.WriteFields([]h2.Field{{Name: ":status", Value: "403"}, {Name: "detail", Value: string(body)}}, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := &deaf{sent: requests(streams), hears: make(chan struct{}), ended: make(chan struct{})}
				link, err := tunnel.NewLink(conn)
				if err != nil {
					t.Fatal(err)
				}
				c := h2.New(h2.Config{Serve: func(s *h2.Stream, _ h2.Head) func() {
					if err := serve(s); err != nil {
						t.Error(err)
					}
					return nil
				}}, link)
				ended := make(chan error)
				go func() { ended <- c.Run(t.Context(), nil) }()
				synctest.Wait()
				close(conn.hears)
				synctest.Wait()
				c.Close()
				if err := <-ended; !errors.Is(err, h2.ErrClosed) {
					t.Errorf("the connection has ended: %v", err)
				}
				if n := ends(t, &conn.written); n != streams {
					t.Errorf("%d answers arrived, want %d", n, streams)
				}
			})
		})
	}
}

// TestRequestsWaitForTheServer opens a thousand streams at once before the server reads any
// of their heads.
func TestRequestsWaitForTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 1000
		var settings bytes.Buffer
		_ = http2.NewFramer(&settings, nil).WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: streams}) // a buffer returns no error
		conn := &deaf{sent: &settings, hears: make(chan struct{}), ended: make(chan struct{})}
		link, err := tunnel.NewLink(conn)
		if err != nil {
			t.Fatal(err)
		}
		c := h2.New(h2.Config{Client: true}, link)
		ended := make(chan error)
		go func() { ended <- c.Run(t.Context(), nil) }()
		for range streams {
			go func() {
				head := []h2.Field{{Name: ":method", Value: "GET"}, {Name: "detail", Value: strings.Repeat("a", 2000)}}
				if _, err := c.Open(t.Context(), head, true); err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		close(conn.hears)
		synctest.Wait()
		c.Close()
		if err := <-ended; !errors.Is(err, h2.ErrClosed) {
			t.Errorf("the connection has ended: %v", err)
		}
		conn.written.Next(len(h2.Preface))
		if n := ends(t, &conn.written); n != streams {
			t.Errorf("%d requests arrived, want %d", n, streams)
		}
	})
}

// TestEndedStreamsLeaveRoom opens as many streams as the server allows, once more when they
// have been answered, and then others. What the server still has to do for a stream that
// has ended takes nothing from the client, but it is bounded.
func TestEndedStreamsLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 200
		release := make(chan struct{})
		sent, client := io.Pipe()
		conn := &deaf{sent: sent, hears: make(chan struct{}), ended: make(chan struct{})}
		close(conn.hears)
		link, err := tunnel.NewLink(conn)
		if err != nil {
			t.Fatal(err)
		}
		served := 0
		var mu sync.Mutex
		c := h2.New(h2.Config{MaxStreams: most, Serve: func(s *h2.Stream, _ h2.Head) func() {
			_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}}, true)
			mu.Lock()
			served++
			mu.Unlock()
			<-release
			return nil
		}}, link)
		ended := make(chan error)
		go func() { ended <- c.Run(t.Context(), nil) }()
		for rest := requests(3 * most); rest.Len() > 0; synctest.Wait() {
			if _, err := client.Write(rest.Next(requests(most).Len())); err != nil {
				t.Fatal(err)
			}
		}
		_ = client.Close()
		close(release)
		synctest.Wait()
		c.Close()
		<-ended
		if served < 2*most || served >= 3*most {
			t.Errorf("%d streams were served, want at least %d and not all %d", served, 2*most, 3*most)
		}
	})
}

// requests returns the frames of a client that opens windows for everything and sends
// requests.
func requests(n int) *bytes.Buffer {
	var frames, head bytes.Buffer
	framer, encoder := http2.NewFramer(&frames, nil), hpack.NewEncoder(&head)
	_ = framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}) // a buffer returns no error
	_ = framer.WriteWindowUpdate(0, 1<<30)
	for i := range n {
		head.Reset()
		_ = encoder.WriteField(hpack.HeaderField{Name: ":method", Value: "GET"})
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: head.Bytes(), EndHeaders: true, EndStream: true})
	}
	return &frames
}

// ends returns the number of streams that are ended in frames.
func ends(t *testing.T, frames io.Reader) (n int) {
	t.Helper()
	framer := http2.NewFramer(nil, frames)
	for {
		f, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		if typ := f.Header().Type; (typ == http2.FrameData || typ == http2.FrameHeaders) && f.Header().Flags.Has(http2.FlagDataEndStream) {
			n++
		}
	}
}
