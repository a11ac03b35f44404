package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// maxGrowth is how much the gateway's peak memory may grow while it relays bytes, in KiB.
const maxGrowth = 16 << 10

// TestStream sends pseudo-random bytes both ways at once through one tunnel.
func TestStream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s := newSite(t, l.Addr().(*net.TCPAddr).Port)
	p := start(t, s.dir, "serve")
	addr := p.listening(t, "mtls").String()

	s.stream(t, l, addr, 8<<20)
	before := p.peakMemory(t)
	began := time.Now()
	s.stream(t, l, addr, *streamBytes)
	took := time.Since(began)
	growth := p.peakMemory(t) - before
	t.Logf("%d MiB each way in %s, %.0f MiB/s together; %d KiB before, %d KiB more at the peak",
		*streamBytes>>20, took.Round(time.Millisecond), float64(2**streamBytes>>20)/took.Seconds(), before, growth)
	if growth > maxGrowth {
		t.Errorf("memory grew by %d KiB, at most %d are fine", growth, maxGrowth)
	}
	if r := p.record(t, "tunnel.close", 1); r.Up != *streamBytes || r.Down != *streamBytes {
		t.Errorf("record %+v, want %d bytes each way", r, *streamBytes)
	}
}

// stream opens a tunnel, sends size bytes each way, and compares hashes of what was sent
// with hashes of what arrived.
func (s prodSite) stream(t *testing.T, l net.Listener, gateway string, size int64) {
	t.Helper()
	client, err := tls.Dial("tcp", gateway, &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: s.roots(t), ServerName: "localhost", Certificates: s.pair(t, "builder"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	reader := connect(t, client, "CONNECT allowed.example:"+strconv.Itoa(l.Addr().(*net.TCPAddr).Port)+" HTTP/1.0\r\n\r\n")
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	deadline := time.Now().Add(patience + time.Duration(size>>20)*100*time.Millisecond) // allows for 10 MiB a second
	if err := client.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	if err := server.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	up, down := seeded('u', size), seeded('d', size)
	type end struct {
		what string
		sum  []byte
		err  error
	}
	ends := make(chan end, 4)
	type writer interface {
		io.Writer
		CloseWrite() error
	}
	send := func(what string, w writer, data io.Reader) {
		sum := sha256.New()
		_, err := io.Copy(w, io.TeeReader(data, sum))
		if err == nil {
			err = w.CloseWrite()
		}
		ends <- end{what, sum.Sum(nil), err}
	}
	receive := func(what string, r io.Reader) {
		sum := sha256.New()
		_, err := io.Copy(sum, r)
		ends <- end{what, sum.Sum(nil), err}
	}
	go send("up", client, up)
	go send("down", server.(*net.TCPConn), down)
	go receive("up", server)
	go receive("down", reader)
	sums := map[string][]byte{}
	for range 4 {
		e := <-ends
		if e.err != nil {
			t.Errorf("%s: %v", e.what, e.err)
		}
		if other := sums[e.what]; other != nil && !bytes.Equal(e.sum, other) {
			t.Errorf("%s: what arrived is not what was sent", e.what)
		}
		sums[e.what] = e.sum
	}
}

// seeded returns size pseudo-random bytes that depend only on the seed.
func seeded(seed byte, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size)
}

// peakMemory returns the peak resident memory of the process, in KiB.
func (p *process) peakMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.PID()), "status"))
	if err != nil {
		missing.Skip(t, "this system does not show the memory of a process: "+err.Error())
	}
	match := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatal("no VmHWM")
	}
	kib, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
