package h2_test

import (
	"context"
	"io"
	"testing"

	"github.com/exeat-dev/exeat/proxy/h2"
)

// tunnelTo opens a stream that the server answers.
func tunnelTo(tb testing.TB, c *h2.Conn, does string) *h2.Stream {
	tb.Helper()
	s, err := c.Open(context.Background(), []h2.Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: does}}, false)
	if err != nil {
		tb.Fatal(err)
	}
	if h, err := s.Answer(context.Background()); err != nil || h.Get(":status") != "200" {
		tb.Fatalf("%v: %v", h, err)
	}
	return s
}

// BenchmarkStream opens a stream, sends 512 bytes there and back, and ends it.
func BenchmarkStream(b *testing.B) {
	c := dial(b, h2.Config{}, false)
	p := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		s := tunnelTo(b, c, "echo")
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			b.Fatal(err)
		}
		if got, err := io.ReadAll(s); len(got) != len(p) || err != nil {
			b.Fatalf("%d bytes, %v", len(got), err)
		}
		_ = s.Close()
	}
}

// BenchmarkRoundTrip sends 512 bytes there and back on an open stream.
func BenchmarkRoundTrip(b *testing.B) {
	s := tunnelTo(b, dial(b, h2.Config{}, false), "echo")
	p := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUp sends bulk data to the server, and BenchmarkDown to the client.
func BenchmarkUp(b *testing.B) {
	s := tunnelTo(b, dial(b, h2.Config{}, false), "hold")
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDown(b *testing.B) {
	s := tunnelTo(b, dial(b, h2.Config{}, false), "send")
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(s, p); err != nil {
			b.Fatal(err)
		}
	}
}
