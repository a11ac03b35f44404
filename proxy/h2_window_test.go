package proxy_test

import (
	"io"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestCreditForTheConnectionIsUsed gives credit for the connection in small pieces while the
// origins of many streams have bytes. Some stream uses each piece, also after some of those
// that waited have ended.
func TestCreditForTheConnectionIsUsed(t *testing.T) {
	const streams, piece = 20, 8 << 10
	g := newGateway(t, options{})
	s := g.session(t, "builder", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	s.Keeps = true
	var sending sync.WaitGroup
	defer sending.Wait()
	for range streams {
		_, origin := s.tunnel(t, "allowed.example")
		defer func() { _ = origin.Close() }()
		sending.Go(func() { _, _ = io.WriteString(origin, strings.Repeat("x", 1<<20)) })
	}
	read := func(n int) {
		for n > 0 {
			e := s.Next(t)
			if e.Kind != h2test.Data {
				t.Fatalf("got %+v", e)
			}
			n -= len(e.Data)
		}
	}
	read(65535)
	for id := uint32(1); id < 2*streams-1; id += 2 {
		for range 10 {
			s.Send(t, func() error { return s.WriteWindowUpdate(0, piece) })
			read(piece)
		}
		s.Send(t, func() error { return s.WriteWindowUpdate(0, piece) })
		s.Send(t, func() error { return s.WriteRSTStream(id, http2.ErrCodeCancel) })
		read(piece)
	}
}
