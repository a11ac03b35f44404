package head_test

import (
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/head"
)

const goClient = "CONNECT api.allowed.example:443 HTTP/1.1\r\nHost: api.allowed.example:443\r\nUser-Agent: Go-http-client/1.1\r\n\r\n"

func TestAllocations(t *testing.T) {
	src := strings.NewReader("")
	var h *head.Head
	got := testing.AllocsPerRun(100, func() {
		src.Reset(curl)
		r := head.NewReader(src, 0)
		h, _ = r.ReadHead()
		r.Release()
	})
	// 1 the Head, 2 the string that its parts lie in, 3 its fields. The
	// Reader stays on the stack; its buffer comes from the pool, which under
	// the race detector throws some away.
	if want := 3.0; got > want && !raceEnabled {
		t.Errorf("got %v allocations for a head, want %v", got, want)
	}
	got = testing.AllocsPerRun(100, func() {
		for range h.Values("user-agent") {
			_ = h.Get("proxy-connection")
		}
	})
	if got != 0 {
		t.Errorf("got %v allocations for looking up fields, want 0", got)
	}
}

func BenchmarkReadHead(b *testing.B) {
	for name, raw := range map[string]string{"curl": curl, "go": goClient} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(raw)))
			src := strings.NewReader("")
			for b.Loop() {
				src.Reset(raw)
				r := head.NewReader(src, 0)
				if _, err := r.ReadHead(); err != nil {
					b.Fatal(err)
				}
				r.Release()
			}
		})
	}
}
