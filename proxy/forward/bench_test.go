package forward

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// half is the number of names in each of the two lists, which together have the largest
// allowed number.
const half = head.MaxMembers / 2

// lists returns two lists of field names, of size bytes together.
func lists(size int) (connection, trailer string) {
	var c, t []string
	for i := range half {
		name := fmt.Sprintf("X%03d%s", i, strings.Repeat("a", max(0, size/head.MaxMembers-5)))
		c, t = append(c, name), append(t, name[1:])
	}
	return strings.Join(c, ","), strings.Join(t, ",")
}

// runOfSize returns an exchange with a head of size bytes, either in its two lists or in
// its other fields.
func runOfSize(tb testing.TB, shape string, size int) *run {
	tb.Helper()
	text := "POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n"
	switch shape {
	case "lists":
		connection, trailer := lists(size)
		text += "Connection: " + connection + "\r\nTrailer: " + trailer + "\r\n"
	case "fields":
		text += "Connection: close\r\n" + strings.Repeat("Name: "+strings.Repeat("a", size/240)+"\r\n", 240)
	}
	h, err := head.Parse([]byte(text + "\r\n"))
	if err != nil {
		tb.Fatal(err)
	}
	url, err := allowlist.ParseURL(h.Target)
	if err != nil {
		tb.Fatal(err)
	}
	return &run{Exchange: &Exchange{Head: h, URL: url, Body: head.Chunked}, cfg: &Config{}}
}

// In the following benchmarks, the time for each byte of a rebuilt head or trailer must
// not grow with the size of the head.

func BenchmarkRequest(b *testing.B) {
	bySize(b, []string{"lists", "fields"}, func(b *testing.B, shape string, size int) {
		b.Helper()
		r := runOfSize(b, shape, size)
		for b.Loop() {
			r.rebuild("a.example")
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	bySize(b, []string{"lists", "fields"}, func(b *testing.B, shape string, size int) {
		b.Helper()
		r := runOfSize(b, "", 0)
		for b.Loop() {
			b.StopTimer()
			resp := answerOfSize(shape, size)
			b.StartTimer()
			if err := r.checkHead(resp); err != nil {
				b.Fatal(err)
			}
			w := newWriter(r)
			w.header = resp.Header
			w.prepare(resp.StatusCode)
			(&h1Wire{run: r}).head(resp.StatusCode, w.header, w.bodyless)
			lastChunk(w.trailer())
		}
	})
}

func BenchmarkTrailer(b *testing.B) {
	bySize(b, []string{"lists"}, func(b *testing.B, shape string, size int) {
		b.Helper()
		r := runOfSize(b, shape, size)
		r.rebuild("a.example")
		body := &requestBody{run: r, req: &http.Request{}}
		for b.Loop() {
			b.StopTimer()
			body.req.Trailer = make(http.Header)
			for name := range r.trailers {
				body.req.Trailer[name] = []string{"a"}
				body.req.Trailer["Not-"+name] = []string{"a"}
			}
			b.StartTimer()
			body.filterTrailer()
		}
	})
}

func bySize(b *testing.B, shapes []string, bench func(b *testing.B, shape string, size int)) {
	b.Helper()
	for _, shape := range shapes {
		for _, size := range []int{1, 4, 16, 60} {
			b.Run(fmt.Sprintf("%s/%dKiB", shape, size), func(b *testing.B) {
				b.SetBytes(int64(size) << 10)
				bench(b, shape, size<<10)
			})
		}
	}
}

func answerOfSize(shape string, size int) *http.Response {
	resp := &http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header)}
	switch shape {
	case "lists":
		connection, trailer := lists(size)
		resp.Header["Connection"], resp.Header["Trailer"] = []string{connection}, []string{trailer}
	case "fields":
		for i := range 240 {
			resp.Header[fmt.Sprintf("Name-%d", i)] = []string{strings.Repeat("a", size/240)}
		}
	}
	return resp
}

// TestLargestListsOfNamesAreCompared checks for each name of the largest allowed lists
// whether it is removed or sent on.
func TestLargestListsOfNamesAreCompared(t *testing.T) {
	r := runOfSize(t, "lists", 60<<10)
	connection, trailer := lists(60 << 10)
	for i, name := range strings.Split(connection, ",") { // every second name is announced as a trailer too
		if i%2 == 0 {
			trailer = strings.Replace(trailer, name[1:], name, 1)
		}
	}
	h, err := head.Parse([]byte("POST / HTTP/1.1\r\nHost: x\r\nConnection: " + strings.ToUpper(connection) + "\r\nTrailer: " + trailer + "\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	r.Head = h
	text := r.rebuild("a.example")
	if n := len(r.trailers); n != half/2 {
		t.Errorf("%d trailers may be sent on, want %d", n, half/2)
	}
	for i, name := range strings.Split(trailer, ",") {
		sent := i%2 == 1
		if strings.Contains(text, name) != sent || r.trailers[name] != sent {
			t.Errorf("the name %d is announced: %v, want %v", i, !sent, sent)
		}
	}
}
