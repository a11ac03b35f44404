package proxy_test

import (
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestAStrangersConnectionEnds sends requests without a certificate. After a few refusals the
// connection takes no more, so that each few cost another handshake, as with HTTP/1.1.
func TestAStrangersConnectionEnds(t *testing.T) {
	g := newGateway(t, options{})
	s := g.session(t, "")
	const most = 100
	answered, left := 0, false
	for range most {
		if s.connectMaybe(g.at("allowed.example")) != nil {
			break
		}
		e := s.Next(t)
		for ; e.Kind == h2test.Data || e.Kind == h2test.Reset; e = s.Next(t) {
		}
		if e.Kind == h2test.GoAway {
			left = true
			if e.Code != http2.ErrCodeNo || e.Last != s.last-2 && e.Last != s.last {
				t.Errorf("after stream %d came %+v", s.last, e)
			}
			break
		}
		if e.Status() != "407" {
			t.Fatalf("stream %d: got %+v", s.last, e)
		}
		answered++
	}
	if answered != 4 || !left {
		t.Errorf("%d requests were answered, want 4 and GOAWAY", answered)
	}
}

// connectMaybe sends a CONNECT on a connection that may have ended.
func (s *session) connectMaybe(target string) error {
	if s.last += 2; s.last == 2 {
		s.last = 1
	}
	block := s.Encode(":method", "CONNECT", ":authority", target)
	return s.WriteHeaders(http2.HeadersFrameParam{StreamID: s.last, BlockFragment: block, EndHeaders: true, EndStream: true})
}
