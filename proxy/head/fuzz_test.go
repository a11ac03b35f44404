package head_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/proxy/head"
)

// FuzzParse checks for any bytes that a head has allowed bytes only and is the same after
// it is written and parsed again, that there is no head with an error, and that the
// result of a Reader does not depend on how the bytes arrive.
func FuzzParse(f *testing.F) {
	for _, raw := range []string{
		curl, curl + curl, curl + "\r\n" + curl, curl + "\x16\x03\x01", "",
		"GET /\r\n", "\x16\x03\x01\x02\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET / HTTP/1.0\r\nA: b\r\n c\r\n\r\n", "GET / HTTP/1.0\nA: b\n\n", "\r\n\r\nGET /\xc3\xa9?\xff HTTP/1.0\r\n\r\n\r\n\r\n\r", strings.Repeat("\r\n", 17) + curl, "GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
		"GET / HTTP/1.0\r\n" + strings.Repeat("A:\r\n", head.MaxFields+1) + "\r\n",
		"GET / HTTP/1.0\r\nA: " + strings.Repeat("x", fuzzLimit) + "\r\n\r\n",
	} {
		f.Add([]byte(raw), uint16(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, split uint16) {
		if h, err := head.Parse(raw); err == nil {
			checkHead(t, h)
		} else if h != nil {
			t.Fatalf("got %v with error %v", h, err)
		}
		want := readAll(t, raw, []int{len(raw) + 1})
		for _, sizes := range [][]int{{1}, {int(split) + 1, len(raw) + 1}, {int(split) + 1, 1}} {
			if diff := cmp.Diff(readAll(t, raw, sizes), want); diff != "" {
				t.Fatalf("reads of %v: got -, whole +\n%s", sizes, diff)
			}
		}
	})
}

// fuzzLimit is small, so that some heads are too large and buffers grow.
const fuzzLimit = 6000

// outcome is the result of reading a connection.
type outcome struct {
	Heads []*head.Head
	Err   string
	Rest  string

	Method, Target string // the method and target of the head that was refused
}

// readAll reads heads until there is an error, and then the remaining bytes.
func readAll(t *testing.T, raw []byte, sizes []int) (got outcome) {
	t.Helper()
	src := &chunks{rest: raw, sizes: sizes}
	r := head.NewReader(src, fuzzLimit)
	defer r.Release()
	consumed := 0
	for {
		h, err := r.ReadHead()
		if src.taken > consumed+fuzzLimit+2*16 { // empty lines may come before the head
			t.Fatalf("read %d bytes with %d consumed, want at most %d more", src.taken, consumed, fuzzLimit)
		}
		if err != nil {
			if h != nil {
				t.Fatalf("got %v with error %v", h, err)
			}
			got.Err = err.Error()
			got.Method, got.Target = r.RequestLine()
			break
		}
		checkHead(t, h)
		got.Heads = append(got.Heads, h)
		consumed = src.taken - len(r.Buffered())
	}
	rest, err := io.ReadAll(r)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	got.Rest = string(rest)
	return got
}

func checkHead(t *testing.T, h *head.Head) {
	t.Helper()
	const digits, letters = "0123456789", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	token := func(s string) bool { return s != "" && strings.Trim(s, "!#$%&'*+-.^_`|~"+digits+letters) == "" }
	if !token(h.Method) || h.Target == "" || strings.ContainsAny(h.Target, " \t\v\f\r\n\x00\x7f") || h.Minor != 0 && h.Minor != 1 {
		t.Fatalf("got request line %q %q %d", h.Method, h.Target, h.Minor)
	}
	hosts := 0
	for _, f := range h.Fields {
		value := strings.IndexFunc(f.Value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
		if !token(f.Name) || value >= 0 || strings.Trim(f.Value, " \t") != f.Value {
			t.Fatalf("got field %q", f)
		}
		if strings.EqualFold(f.Name, "host") {
			hosts++
		}
	}
	if hosts > 1 || h.HasHost != (hosts == 1) || h.Minor == 1 && hosts == 0 || h.Host != h.Get("host") {
		t.Fatalf("got %d Host fields in %v", hosts, h)
	}
	again, err := head.Parse([]byte(render(h)))
	if err != nil {
		t.Fatalf("parsing the rendered head: %v", err)
	}
	if diff := cmp.Diff(again, h); diff != "" {
		t.Fatalf("rendered and parsed again: got -, want +\n%s", diff)
	}
}
