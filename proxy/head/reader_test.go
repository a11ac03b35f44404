package head_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/exeat-dev/exeat/proxy/head"
)

func TestReaderLeavesBytesAfterTheHead(t *testing.T) {
	const behind = "\x16\x03\x01 early bytes\r\n\r\n"
	for split := range len(curl) + len(behind) {
		r := head.NewReader(&chunks{rest: []byte(curl + behind), sizes: []int{split + 1, 1 << 20}}, 0)
		h, err := r.ReadHead()
		if err != nil {
			t.Fatalf("split at %d: %v", split+1, err)
		}
		if h.Target != "api.allowed.example:443" {
			t.Errorf("split at %d: got target %q", split+1, h.Target)
		}
		if got := r.Buffered(); !strings.HasPrefix(behind, string(got)) {
			t.Errorf("split at %d: got %q buffered, want the start of %q", split+1, got, behind)
		}
		rest, err := io.ReadAll(r)
		if string(rest) != behind || err != nil {
			t.Errorf("split at %d: got %q, %v after the head, want %q", split+1, rest, err, behind)
		}
		r.Release()
	}
}

func TestReaderReadsHeadAfterHead(t *testing.T) {
	r := head.NewReader(strings.NewReader("GET /1 HTTP/1.0\r\n\r\nPOST /2 HTTP/1.0\r\nContent-Length: 4\r\n\r\nbodyGET /3 HTTP/1.0\r\n\r\n"), 0)
	defer r.Release()
	for _, want := range []string{"/1", "/2"} {
		if h, err := r.ReadHead(); err != nil || h.Target != want {
			t.Fatalf("got %v, %v, want %s", h, err, want)
		}
	}
	body := make([]byte, 4)
	if _, err := io.ReadFull(r, body); err != nil || string(body) != "body" {
		t.Fatalf("got %q, %v, want the body", body, err)
	}
	if h, err := r.ReadHead(); err != nil || h.Target != "/3" {
		t.Fatalf("got %v, %v, want /3", h, err)
	}
	if h, err := r.ReadHead(); !errors.Is(err, io.EOF) || h != nil {
		t.Errorf("got %v, %v, want %v", h, err, io.EOF)
	}
}

func TestReaderSkipsEmptyLinesBeforeHeads(t *testing.T) {
	const get = "GET / HTTP/1.0\r\n\r\n"
	tests := map[string]struct {
		before string
		want   error
	}{
		"none":                         {get, nil},
		"one empty line":               {"\r\n" + get, nil},
		"two empty lines":              {"\r\n\r\n" + get, nil},
		"sixteen empty lines":          {strings.Repeat("\r\n", 16) + get, nil},
		"seventeen empty lines":        {strings.Repeat("\r\n", 17) + get, head.ErrRequestLine},
		"one empty line and the end":   {"\r\n", io.EOF},
		"many empty lines, the end":    {strings.Repeat("\r\n", 16), io.EOF},
		"half an empty line, the end":  {"\r", io.ErrUnexpectedEOF},
		"bare LF":                      {"\n" + get, head.ErrRequestLine},
		"bare LF behind an empty line": {"\r\n\n" + get, head.ErrRequestLine},
		"bare CR":                      {"\r" + get, head.ErrRequestLine},
		"CR CR LF":                     {"\r\r\n" + get, head.ErrRequestLine},
		"a space":                      {" " + get, head.ErrRequestLine},
		"a line with a space":          {" \r\n" + get, head.ErrRequestLine},
		"no head and no newline":       {"", io.EOF},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, first := range []string{"", get} { // the first head of the connection, and a later one
				for _, size := range []int{1, 2, 3, 1 << 20} {
					r := head.NewReader(&chunks{rest: []byte(first + tt.before), sizes: []int{size}}, 0)
					if first != "" {
						if _, err := r.ReadHead(); err != nil {
							t.Fatalf("first head: %v", err)
						}
					}
					if h, err := r.ReadHead(); !errors.Is(err, tt.want) || (h == nil) != (tt.want != nil) {
						t.Errorf("by %d: got %v, %v, want error %v", size, h, err, tt.want)
					}
					r.Release()
				}
			}
		})
	}
}

// TestAwait checks that Await consumes empty lines and not the head.
func TestAwait(t *testing.T) {
	for _, size := range []int{1, 2, 3, 1 << 20} {
		r := head.NewReader(&chunks{rest: []byte("\r\n\r\nGET / HTTP/1.0\r\n\r\n\r\n\r\n"), sizes: []int{size}}, 0)
		if err := r.Await(); err != nil {
			t.Fatalf("by %d: %v", size, err)
		}
		if h, err := r.ReadHead(); err != nil || h.Target != "/" {
			t.Fatalf("by %d: got %v, %v", size, h, err)
		}
		if err := r.Await(); !errors.Is(err, io.EOF) || len(r.Buffered()) != 0 {
			t.Errorf("by %d: got %v with %q left, want %v", size, err, r.Buffered(), io.EOF)
		}
		r.Release()
	}
}

// TestReaderLimit checks that a head of exactly the limit is read, and a larger one
// refused, however the bytes arrive.
func TestReaderLimit(t *testing.T) {
	sized := func(n int) string {
		const frame = "GET / HTTP/1.0\r\nA: \r\n\r\n"
		return strings.Replace(frame, "A: ", "A: "+strings.Repeat("x", n-len(frame)), 1)
	}
	tests := map[string]struct {
		limit, set int
		size       int
		want       error
	}{
		"a head of the default limit":     {head.DefaultLimit, 0, head.DefaultLimit, nil},
		"one byte over the default limit": {head.DefaultLimit, 0, head.DefaultLimit + 1, head.ErrTooLarge},
		"a head of a small limit":         {100, 100, 100, nil},
		"one byte over a small limit":     {100, 100, 101, head.ErrTooLarge},
		"a head of an odd limit":          {9999, 9999, 9999, nil},
		"far too large":                   {9999, 9999, 1 << 20, head.ErrTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 7, 4096, 1 << 20} {
				src := &chunks{rest: []byte(sized(tt.size)), sizes: []int{size}}
				r := head.NewReader(src, tt.set)
				h, err := r.ReadHead()
				if !errors.Is(err, tt.want) || (h == nil) != (tt.want != nil) {
					t.Errorf("by %d: got error %v, want %v", size, err, tt.want)
				}
				if src.taken > tt.limit {
					t.Errorf("by %d: read %d bytes, want at most %d", size, src.taken, tt.limit)
				}
				r.Release()
			}
		})
	}
}

func TestReaderLimitCountsOneHeadOnly(t *testing.T) {
	const get = "GET / HTTP/1.0\r\n\r\n"
	r := head.NewReader(strings.NewReader(strings.Repeat(get, 50)), len(get))
	defer r.Release()
	for i := range 50 {
		if _, err := r.ReadHead(); err != nil {
			t.Fatalf("head %d: %v", i, err)
		}
	}
}

func TestReaderRefusesBeforeTheHeadIsComplete(t *testing.T) {
	for name, sent := range map[string]string{
		"HTTP/0.9":          "GET /\r\n",
		"TLS in clear":      "\x16",
		"a malformed field": "GET / HTTP/1.1\r\nA: b\n",
		"too many fields":   "GET / HTTP/1.1\r\n" + strings.Repeat("A:\r\n", head.MaxFields+1),
	} {
		t.Run(name, func(t *testing.T) {
			waiting := errors.New("read for more")
			r := head.NewReader(io.MultiReader(strings.NewReader(sent), iotest.ErrReader(waiting)), 0)
			defer r.Release()
			if h, err := r.ReadHead(); err == nil || errors.Is(err, waiting) || h != nil {
				t.Errorf("got %v, %v, want a refusal", h, err)
			}
			// A second call must not skip the refused bytes.
			if h, err := r.ReadHead(); err == nil || errors.Is(err, waiting) || h != nil {
				t.Errorf("again: got %v, %v, want a refusal", h, err)
			}
		})
	}
}

func TestReaderContinuesAfterADeadline(t *testing.T) {
	r := head.NewReader(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(curl))), 0)
	defer r.Release()
	if h, err := r.ReadHead(); !errors.Is(err, iotest.ErrTimeout) || h != nil {
		t.Fatalf("got %v, %v, want %v", h, err, iotest.ErrTimeout)
	}
	if h, err := r.ReadHead(); err != nil || h.Method != "CONNECT" {
		t.Errorf("got %v, %v, want the head", h, err)
	}
}

// TestReaderKeepsAnErrorThatCameWithBytes checks that an error which a connection
// returns together with bytes is returned by the next Read.
func TestReaderKeepsAnErrorThatCameWithBytes(t *testing.T) {
	r := head.NewReader(iotest.DataErrReader(strings.NewReader(curl)), 0)
	defer r.Release()
	if _, err := r.ReadHead(); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("got %d, %v, want %v", n, err, io.EOF)
	}
}

func TestReaderGivesUpOnAConnectionThatReturnsNothing(t *testing.T) {
	r := head.NewReader(readerFunc(func([]byte) (int, error) { return 0, nil }), 0)
	defer r.Release()
	if _, err := r.ReadHead(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v, want %v", err, io.ErrNoProgress)
	}
}

func TestHeadOutlivesTheBuffer(t *testing.T) {
	r := head.NewReader(strings.NewReader(curl), 0)
	h, err := r.ReadHead()
	if err != nil {
		t.Fatal(err)
	}
	r.Release()
	r.Release() // a second Release must not put the buffer back twice
	if got := r.Buffered(); len(got) != 0 {
		t.Errorf("got %q buffered, want nothing", got)
	}
	other := head.NewReader(strings.NewReader(strings.Repeat("#", 4000)), 0)
	defer other.Release()
	if err := other.Await(); err != nil || len(other.Buffered()) != 4000 {
		t.Fatalf("%d bytes, %v", len(other.Buffered()), err)
	}
	if got := render(h); got != curl {
		t.Errorf("got %q, want %q", got, curl)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
