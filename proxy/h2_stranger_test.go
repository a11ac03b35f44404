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
	for !left && answered < most {
		if err := s.connectMaybe(g.at("allowed.example")); err != nil {
			t.Fatal(err)
		}
		for answer := false; !answer; {
			switch e := s.Next(t); e.Kind {
			case h2test.GoAway:
				left = true
				if e.Code != http2.ErrCodeNo || e.Last != s.last {
					t.Errorf("on stream %d came %+v", s.last, e)
				}
			case h2test.Head:
				answer = true
				if e.Status() != "407" {
					t.Fatalf("stream %d: got %+v", s.last, e)
				}
			case h2test.Ended:
				t.Fatalf("stream %d: got %+v", s.last, e)
			case h2test.Data, h2test.Reset, h2test.Ping, h2test.Window, h2test.Setting: // of the answer before
			}
		}
		answered++
	}
	if answered != 4 {
		t.Errorf("%d requests were answered, want 4", answered)
	}
	for e := s.Next(t); e.Kind != h2test.Ended; e = s.Next(t) {
		if e.Kind == h2test.GoAway {
			t.Errorf("got %+v, want the end", e)
		}
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
