package forward

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/dial"
	"github.com/exeat-dev/exeat/proxy/head"
)

// fieldsOf are fields of so many bytes in all, which differ little in size.
func fieldsOf(size int) string {
	return strings.Repeat("Name: "+strings.Repeat("a", size/200-8)+"\r\n", 200)
}

// TestMemoryOfAWaitingExchangeIsBounded checks that the memory of an exchange that waits
// is bounded by the largest size of heads, and does not grow with what comes behind a
// head.
func TestMemoryOfAWaitingExchangeIsBounded(t *testing.T) {
	const largest = 62 << 10 // size of the largest head without its first line
	body := strings.Repeat("x", 1<<20)
	for name, row := range map[string]struct {
		request string // additional fields of the request
		answer  string
		reads   func(*bufio.Reader) error // reads what the client reads of the answer; nil if it reads nothing
		most    int                       // largest memory of an exchange in KiB
	}{
		"an origin that says nothing":                          {most: 32},
		"an origin that says nothing to the largest request":   {request: fieldsOf(largest), most: 192},
		"half of the largest answer":                           {answer: "HTTP/1.1 200 OK\r\n" + fieldsOf(largest), most: 224},
		"a slow client, of the largest answer":                 {answer: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + fieldsOf(largest) + "\r\n", reads: aByte, most: 224},
		"a slow client, of an interim answer":                  {answer: "HTTP/1.1 103 Early Hints\r\n" + fieldsOf(largest) + "\r\n", reads: aByte, most: 224},
		"an origin that says nothing behind an interim answer": {answer: "HTTP/1.1 103 Early Hints\r\n" + fieldsOf(largest) + "\r\n", reads: aHead, most: 48},
		"a slow client, of a long body":                        {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + body, reads: aHead, most: 96},
		"a slow client, of a long body in chunks":              {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + body, reads: aHead, most: 96},
	} {
		t.Run(name, func(t *testing.T) {
			const exchanges = 40
			kib := memoryOf(t, exchanges, row.request, []byte(row.answer), row.reads) / exchanges / 1024
			if t.Logf("%d KiB", kib); kib > row.most {
				t.Errorf("an exchange holds %d KiB, want no more than %d", kib, row.most)
			}
		})
	}
}

// aByte reads the first byte of an answer.
func aByte(r *bufio.Reader) error {
	_, err := r.Peek(1)
	return err
}

// aHead reads the head of an answer.
func aHead(r *bufio.Reader) error {
	_, err := http.ReadResponse(r, nil)
	return err
}

// memoryOf returns by how many bytes the heap grows with exchanges that wait: for more bytes
// from the origin after answer was read, or, if reads is not nil, for a client that has
// stopped reading.
func memoryOf(t *testing.T, exchanges int, fields string, answer []byte, reads func(*bufio.Reader) error) int {
	t.Helper()
	var origins, clients []net.Conn
	asked := make(chan net.Conn)
	f, err := New(Config{Dial: func(context.Context, *allowlist.Decision) (dial.Result, error) {
		near, far := net.Pipe()
		asked <- far
		return dial.Result{Conn: near}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var forwarding, answering sync.WaitGroup
	before := heap()
	for range exchanges {
		h, err := head.Parse([]byte("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + fields + "\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		url, err := allowlist.ParseURL(h.Target)
		if err != nil {
			t.Fatal(err)
		}
		decision := *decisionFor("a")
		decision.Dest = url.Dest
		near, client := net.Pipe()
		forwarding.Go(func() {
			f.Forward(ctx, &Exchange{
				Decision: decision, Head: h, URL: url, Reader: head.NewReader(near, head.DefaultLimit), Client: near,
				Connected: func(Upstream) error { return nil }, Answer: func(_ int, _ string, write func() error) error { return write() },
			})
		})
		origin := <-asked
		origins, clients = append(origins, origin), append(clients, client)
		if _, err := http.ReadRequest(bufio.NewReader(origin)); err != nil {
			t.Fatal(err)
		}
		answering.Go(func() { _, _ = origin.Write(answer) })
		if reads == nil {
			answering.Wait() // until the gateway has read the answer
		} else if err := reads(bufio.NewReaderSize(client, 16)); err != nil {
			t.Fatal(err)
		}
	}
	held := heap() - before
	cancel()
	for _, conn := range append(origins, clients...) {
		_ = conn.Close()
	}
	forwarding.Wait()
	answering.Wait()
	return held
}

// heap returns the number of bytes in use.
func heap() int {
	var stats runtime.MemStats
	for range 2 { // the contents of a sync.Pool survive one collection
		runtime.GC()
	}
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}
