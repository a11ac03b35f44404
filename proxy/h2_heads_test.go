package proxy_test

import (
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/h2/h2test"
)

// TestLongHeadsAreNotKept opens a tunnel on each of many connections of HTTP/2. It takes no
// more memory if the heads are long, in one frame or in several.
func TestLongHeadsAreNotKept(t *testing.T) {
	const conns, size, most = 20, 60_000, 32 << 10 // bytes of a field, and of more memory for each connection
	g := newGateway(t, options{})
	open := func(value string, frames int) int {
		block := h2test.NewSilentPeer(nil).Encode(":method", "CONNECT", ":authority", g.at("allowed.example"), "x", value)
		var text strings.Builder
		framer := http2.NewFramer(&text, nil)
		text.WriteString(http2.ClientPreface)
		_ = framer.WriteSettings()
		part := len(block)/frames + 1
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:min(part, len(block))], EndHeaders: frames == 1})
		for n := part; n < len(block); n += part {
			_ = framer.WriteContinuation(1, n+part >= len(block), block[n:min(n+part, len(block))])
		}
		before := heap()
		for range conns {
			if _, err := io.WriteString(g.call(t, "builder"), text.String()); err != nil {
				t.Fatal(err)
			}
			if r := g.next(t, audit.EventDecision); r.Status != 200 {
				t.Fatalf("record %+v", r)
			}
			g.origin.next(t)
		}
		return int(heap()) - int(before)
	}
	open("", 1) // allocates what lasts, such as pools
	short := open("", 1)
	for _, frames := range []int{1, 10} {
		if long := open(strings.Repeat("a", size), frames); long > short+conns*most {
			t.Errorf("%d tunnels hold %d KiB, and %d behind heads in %d frames", conns, short>>10, long>>10, frames)
		}
	}
}
