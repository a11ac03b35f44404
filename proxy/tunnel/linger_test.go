package tunnel

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// half is an end of a pipe that has a CloseWrite.
type half struct{ net.Conn }

func (half) CloseWrite() error { return nil }

// TestLingerIsBounded checks that lingering waits two seconds for the next byte, ten
// seconds in all, and reads at most 16 MiB.
func TestLingerIsBounded(t *testing.T) {
	for _, row := range []struct {
		name string
		peer func(net.Conn)
		want time.Duration
	}{
		{"a peer that has closed", func(c net.Conn) { _ = c.Close() }, 0},
		{"a peer that is silent", func(net.Conn) {}, 2 * time.Second},
		{"a peer that sends a byte a second", func(c net.Conn) {
			for {
				if _, err := c.Write([]byte("b")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, 10 * time.Second},
		{"a peer that stops after a while", func(c net.Conn) {
			for range 3 {
				_, _ = c.Write([]byte("b"))
				time.Sleep(time.Second)
			}
		}, 4 * time.Second},
		{"a peer that sends without end", func(c net.Conn) {
			for block := make([]byte, 1<<20); ; {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					row.peer(b)
				}()
				start := time.Now()
				Linger(half{a})
				if took := time.Since(start); took != row.want {
					t.Errorf("it took %v, want %v", took, row.want)
				}
				_ = a.Close()
				<-ended
			})
		})
	}
}
