package tunnel

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkRelay compares the tunnel with a plain relay on the same sockets. The load
// runs in this process, too, so that cpu-ms/op includes it. The difference between exeat
// and plain is that of the relays.
func BenchmarkRelay(b *testing.B) {
	relays := []struct {
		name string
		run  func(b *testing.B, kind string) (client, origin net.Conn)
	}{{"exeat", exeatRelay}, {"plain", plainRelay}}
	loads := []struct {
		name string
		run  func(b *testing.B, client, origin net.Conn)
	}{{"up", bulkUp}, {"down", bulkDown}, {"ping-pong", pingPong}}
	for _, load := range loads {
		for _, kind := range []string{"tls", "tcp"} {
			for _, relay := range relays {
				b.Run(load.name+"/"+kind+"/"+relay.name, func(b *testing.B) {
					client, origin := relay.run(b, kind)
					client.SetDeadline(time.Time{})
					origin.SetDeadline(time.Time{})
					b.ReportAllocs()
					used := cpu(b)
					load.run(b, client, origin)
					b.ReportMetric(float64((cpu(b)-used).Microseconds())/1000/float64(b.N), "cpu-ms/op")
				})
			}
		}
	}
}

const chunk = 1 << 20

func bulkUp(b *testing.B, client, origin net.Conn) {
	b.Helper()
	bulk(b, client, origin)
}

func bulkDown(b *testing.B, client, origin net.Conn) {
	b.Helper()
	bulk(b, origin, client)
}

func bulk(b *testing.B, from io.Writer, to io.Reader) {
	b.Helper()
	b.SetBytes(chunk)
	var sending sync.WaitGroup
	next := make(chan struct{}, 16) // number of blocks that the sender may be ahead
	sending.Go(func() {
		p := make([]byte, chunk)
		for range next {
			if _, err := from.Write(p); err != nil {
				b.Error(err)
			}
		}
	})
	p := make([]byte, 64<<10)
	for b.Loop() {
		next <- struct{}{}
		for got := 0; got < chunk; {
			m, err := to.Read(p[:min(len(p), chunk-got)])
			if err != nil {
				b.Fatal(err)
			}
			got += m
		}
	}
	close(next)
	sending.Wait()
}

func pingPong(b *testing.B, client, origin net.Conn) {
	b.Helper()
	p := make([]byte, 512)
	for b.Loop() {
		client.Write(p)
		readFull(origin, p)
		origin.Write(p)
		readFull(client, p)
	}
}

func exeatRelay(b *testing.B, kind string) (client, origin net.Conn) {
	b.Helper()
	r := startRig(b, kind, Config{}, "")
	return r.client, r.origin
}

// plainRelay relays with two loops of io.CopyBuffer, each with a buffer of its own.
func plainRelay(b *testing.B, kind string) (client, origin net.Conn) {
	b.Helper()
	wire, accepted := pair(b, "tcp")
	origin, upstream := pair(b, "tcp")
	client, down := wire, accepted
	if kind == "tls" {
		var c, s *tls.Conn
		c, s = secure(b, wire, accepted)
		client, down = c, s
	}
	type readerOnly struct{ io.Reader }
	type writerOnly struct{ io.Writer }
	var relays sync.WaitGroup
	for _, way := range [][2]net.Conn{{down, upstream}, {upstream, down}} {
		relays.Go(func() {
			_, _ = io.CopyBuffer(writerOnly{way[0]}, readerOnly{way[1]}, make([]byte, 32<<10))
		})
	}
	b.Cleanup(func() {
		down.Close()
		upstream.Close()
		relays.Wait()
	})
	return client, origin
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
