package head_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/exeat-dev/exeat/proxy/head"
)

const goClient = "CONNECT api.allowed.example:443 HTTP/1.1\r\nHost: api.allowed.example:443\r\nUser-Agent: Go-http-client/1.1\r\n\r\n"

// TestAllocations checks the number of allocations for a head.
func TestAllocations(t *testing.T) {
	src := strings.NewReader("")
	var h *head.Head
	got := testing.AllocsPerRun(100, func() {
		src.Reset(curl)
		r := head.NewReader(src, 0)
		h, _ = r.ReadHead()
		r.Release()
	})
	// The three allocations are the Head, the string that its parts share, and its fields.
	// The Reader stays on the stack, and its buffer comes from the pool, which drops some
	// buffers under the race detector.
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

// BenchmarkSizes reads heads of growing size. The time per byte must not grow with the
// size.
func BenchmarkSizes(b *testing.B) {
	const line = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"
	whole := func(r io.Reader) io.Reader { return r }
	for _, shape := range []struct {
		name string
		fill func(size int) string
		read func(io.Reader) io.Reader
	}{
		{"one-field", func(n int) string { return "X: " + strings.Repeat("a", n) + "\r\n" }, whole},
		{"one-field-byte-by-byte", func(n int) string { return "X: " + strings.Repeat("a", n) + "\r\n" }, iotest.OneByteReader},
		{"fields", func(n int) string { return strings.Repeat("X: "+strings.Repeat("a", n/240)+"\r\n", 240) }, whole},
		{"names", func(n int) string {
			return "Connection: " + strings.Repeat(strings.Repeat("a", n/240)+",", 240) + "\r\n"
		}, whole},
		{"target", func(n int) string { return "X: a\r\n\r\nGET /" + strings.Repeat("a", n) + " HTTP/1.0\r\n" }, whole},
	} {
		for _, size := range []int{1, 4, 16, 60} {
			raw := line + shape.fill(size<<10) + "\r\n"
			b.Run(fmt.Sprintf("%s/%dKiB", shape.name, size), func(b *testing.B) {
				b.SetBytes(int64(len(raw)))
				for b.Loop() {
					r := head.NewReader(shape.read(strings.NewReader(raw)), 0)
					for range strings.Count(raw, "\r\n\r\n") {
						if _, err := r.ReadHead(); err != nil {
							b.Fatal(err)
						}
					}
					r.Release()
				}
			})
		}
	}
}
