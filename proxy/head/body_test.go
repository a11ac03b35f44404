package head_test

import (
	"errors"
	"testing"

	"github.com/exeat-dev/exeat/proxy/head"
)

// TestBody checks the length of the body that the fields of a head announce, and which
// heads are refused for theirs.
func TestBody(t *testing.T) {
	const chunked = head.Chunked
	for _, c := range []struct {
		name, version, fields string
		want                  int64
		refused               bool
	}{
		{"no field is no body", "1.1", "", 0, false},
		{"a length", "1.1", "Content-Length: 42\r\n", 42, false},
		{"a length of zero", "1.1", "content-length: 0\r\n", 0, false},
		{"leading zeros", "1.1", "Content-Length: 0042\r\n", 42, false},
		{"chunks", "1.1", "Transfer-Encoding: chunked\r\n", chunked, false},
		{"chunks in capitals", "1.1", "Transfer-Encoding: CHUNKED\r\n", chunked, false},

		{"both", "1.1", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", 0, true},
		{"both, the other way round", "1.1", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", 0, true},
		{"two lengths", "1.1", "Content-Length: 4\r\nContent-Length: 5\r\n", 0, true},
		{"two equal lengths", "1.1", "Content-Length: 4\r\nContent-Length: 4\r\n", 0, true},
		{"a list of lengths", "1.1", "Content-Length: 4, 4\r\n", 0, true},
		{"a signed length", "1.1", "Content-Length: +4\r\n", 0, true},
		{"a negative length", "1.1", "Content-Length: -1\r\n", 0, true},
		{"a hexadecimal length", "1.1", "Content-Length: 0x4\r\n", 0, true},
		{"no length", "1.1", "Content-Length:\r\n", 0, true},
		{"a length that no number holds", "1.1", "Content-Length: 18446744073709551620\r\n", 0, true},
		{"chunks in HTTP/1.0", "1.0", "Transfer-Encoding: chunked\r\n", 0, true},
		{"another coding", "1.1", "Transfer-Encoding: gzip\r\n", 0, true},
		{"a coding before chunks", "1.1", "Transfer-Encoding: gzip, chunked\r\n", 0, true},
		{"a coding with a prefix", "1.1", "Transfer-Encoding: xchunked\r\n", 0, true},
		{"chunks twice", "1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 0, true},
		{"chunks and identity", "1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 0, true},
		{"a quoted coding", "1.1", "Transfer-Encoding: \"chunked\"\r\n", 0, true},
		{"a coding with a vertical tab", "1.1", "Transfer-Encoding: chunked\xff\r\n", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := head.Parse([]byte("POST / HTTP/" + c.version + "\r\nHost: a\r\n" + c.fields + "\r\n"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := h.Body()
			if got != c.want || errors.Is(err, head.ErrFraming) != c.refused {
				t.Errorf("body of %d bytes, %v, want %d, refused: %t", got, err, c.want, c.refused)
			}
		})
	}
}

// TestLists checks which tokens are found in the lists of all fields of a name, in any
// case.
func TestLists(t *testing.T) {
	h, err := head.Parse([]byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close ,y\r\nCONNECTION: upgrade\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{"close": true, "UPGRADE": true, "y": true, "clos": false, "": false, "x, close": false} {
		if got := h.Lists("connection", token); got != want {
			t.Errorf("lists %q: %t, want %t", token, got, want)
		}
	}
}
