package h2_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// dial returns the client of a connection between two engines, over TCP or over TLS. The
// configuration is that of the server.
func dial(tb testing.TB, cfg h2.Config, secure bool) *h2.Conn {
	tb.Helper()
	near, far := tcp(tb)
	client, conn := net.Conn(tunnel.Wrap(near)), net.Conn(tunnel.Wrap(far))
	if secure {
		client, conn = shakeHands(tb, client, conn)
	}
	c := h2.New(h2.Config{Client: true}, newLink(tb, client))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(context.Background(), nil) }()
	readPreface(conn)
	s := serveLink(tb, cfg, newLink(tb, conn), func() {})
	tb.Cleanup(func() {
		c.Close()
		if err := <-ended; !errors.Is(err, h2.ErrClosed) {
			tb.Errorf("the client ends with %v", err)
		}
		s.conn.Close()
	})
	return c
}

// shakeHands returns both ends with TLS on them.
func shakeHands(tb testing.TB, near, far net.Conn) (client, server net.Conn) {
	tb.Helper()
	site := httptest.NewTLSServer(nil) // for its certificate
	site.Close()
	c := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	s := tls.Server(far, &tls.Config{Certificates: site.TLS.Certificates})
	shaken := make(chan error, 1)
	go func() { shaken <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-shaken); err != nil {
		tb.Fatal(err)
	}
	return c, s
}

// sink takes what comes on a stream in the way in which a tunnel does, and checks it. It
// takes a part only, now and then, as a socket does whose buffer is full.
type sink struct {
	stream *h2.Stream
	n      int // bytes that have come, each with the value of its place
	wrong  bool
	ended  chan error
}

func (k *sink) add(p []byte) {
	for _, b := range p {
		k.wrong = k.wrong || b != byte(k.n)
		k.n++
	}
}

func (k *sink) Take(p []byte) int {
	n := len(p)
	if rand.IntN(3) == 0 {
		n = rand.IntN(len(p))
	}
	k.add(p[:n])
	return n
}

// End takes the end, now and then.
func (k *sink) End() bool {
	taken := rand.IntN(2) == 0
	if taken {
		k.end(io.EOF)
	}
	return taken
}

// end says how the stream has ended. What has parked may be woken again after that.
func (k *sink) end(err error) {
	select {
	case k.ended <- err:
	default:
	}
}

func (k *sink) Wake() {
	p := make([]byte, 3000)
	for !k.stream.Park(k) {
		n, err := k.stream.Read(p)
		k.add(p[:n])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = k.stream.SetReadDeadline(time.Time{})
		case err != nil:
			k.end(err)
			return
		}
	}
}

// TestSleepersGetEveryByte sends on many streams at once to sleepers, while deadlines wake
// them and other streams are reset.
func TestSleepersGetEveryByte(t *testing.T) {
	for name, secure := range map[string]bool{"TCP": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			const streams, size = 24, 700 << 10
			type result struct {
				n     int
				wrong bool
				err   error
			}
			results := make(chan result, streams)
			c := dial(t, h2.Config{Serve: func(s *h2.Stream, h h2.Head) func() {
				_ = s.WriteFields([]h2.Field{{Name: ":status", Value: "200"}}, false)
				return func() {
					k := &sink{stream: s, ended: make(chan error, 1)}
					stop := make(chan struct{})
					var waking sync.WaitGroup
					waking.Go(func() {
						for i := 0; ; i++ {
							select {
							case <-stop:
								return
							case <-time.After(time.Millisecond):
								_ = s.SetReadDeadline(time.Now().Add(time.Duration(i%3-1) * time.Millisecond))
							}
						}
					})
					k.Wake()
					err := <-k.ended
					close(stop)
					waking.Wait()
					results <- result{k.n, k.wrong, err}
				}
			}}, secure)
			var sending sync.WaitGroup
			for i := range streams {
				s := tunnelTo(t, c, "")
				sending.Go(func() { sendPlaces(s, size, i%4 == 0) })
			}
			sending.Wait()
			whole := 0
			for range streams {
				r := <-results
				_, reset := errors.AsType[*h2.ResetError](r.err)
				switch {
				case r.wrong, !reset && (!errors.Is(r.err, io.EOF) || r.n != size):
					t.Errorf("%d bytes, wrong: %v, %v", r.n, r.wrong, r.err)
				case !reset:
					whole++
				}
			}
			if whole != streams*3/4 {
				t.Errorf("%d streams came whole", whole)
			}
		})
	}
}

// sendPlaces sends bytes with the values of their places, and ends the stream. A stream that
// is cut is reset before the end.
func sendPlaces(s *h2.Stream, size int, cut bool) {
	for sent := 0; sent < size; {
		p := make([]byte, min(1+rand.IntN(40000), size-sent))
		for i := range p {
			p[i] = byte(sent + i)
		}
		if _, err := s.Write(p); err != nil {
			return
		}
		if sent += len(p); cut && sent > size/2 {
			s.Reset(http2.ErrCodeCancel)
			return
		}
	}
	_ = s.CloseWrite()
}

// TestBothWays echoes on many streams at once.
func TestBothWays(t *testing.T) {
	for name, secure := range map[string]bool{"TCP": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			const streams, size = 16, 500 << 10
			c := dial(t, h2.Config{}, secure)
			var running sync.WaitGroup
			for range streams {
				s := tunnelTo(t, c, "echo")
				running.Go(func() { sendPlaces(s, size, false) })
				running.Go(func() {
					got, err := io.ReadAll(s)
					for i, b := range got {
						if b != byte(i) {
							t.Errorf("byte %d is wrong", i)
							return
						}
					}
					if len(got) != size || err != nil {
						t.Errorf("%d bytes, %v", len(got), err)
					}
				})
			}
			running.Wait()
		})
	}
}
