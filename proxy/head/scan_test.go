package head

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// TestNoByteIsScannedTwice checks that the bytes of a line that arrives in pieces are
// scanned once. Otherwise the cost of a line that arrives byte by byte would be
// quadratic.
func TestNoByteIsScannedTwice(t *testing.T) {
	r := NewReader(strings.NewReader(""), 0)
	defer r.Release()
	for i, piece := range []string{"GET / HT", "TP/1.0\r", "\nX: aaa", "aaa", "a\r\n", "Y:"} {
		r.src = strings.NewReader(piece)
		if _, err := r.ReadHead(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if r.seen != r.end-r.start {
			t.Errorf("after piece %d: %d of %d bytes were scanned", i, r.seen, r.end-r.start)
		}
	}
	r.src = strings.NewReader("b\r\n\r\n")
	if h, err := r.ReadHead(); err != nil || h.Get("X") != "aaaaaaa" || h.Get("Y") != "b" {
		t.Errorf("got %v, %v", h, err)
	}
}

// TestUnreadLeavesBytesInPlace checks that Unread does not move bytes that are still
// in the buffer. If many requests arrive together, the bytes after each body are given
// back, and the cost of moving all that follow would be quadratic.
func TestUnreadLeavesBytesInPlace(t *testing.T) {
	r := NewReader(strings.NewReader("GET / HTTP/1.0\r\n\r\nbodyGET /2 HTTP/1.0\r\n\r\nrest"), 0)
	defer r.Release()
	if _, err := r.ReadHead(); err != nil {
		t.Fatal(err)
	}
	taken := make([]byte, 10)
	if _, err := io.ReadFull(r, taken); err != nil {
		t.Fatal(err)
	}
	buffer := &r.buf[0]
	r.Unread(taken[4:])
	if &r.buf[0] != buffer {
		t.Error("the bytes were moved")
	}
	if h, err := r.ReadHead(); err != nil || h.Target != "/2" || string(r.Buffered()) != "rest" {
		t.Errorf("got %v, %v and %q behind it", h, err, r.Buffered())
	}
	r.Unread([]byte("GET /3 HTTP/1.0\r\n\r\n")) // these bytes are not in the buffer
	if h, err := r.ReadHead(); err != nil || h.Target != "/3" || string(r.Buffered()) != "rest" {
		t.Errorf("got %v, %v and %q behind it", h, err, r.Buffered())
	}
}

// TestNamesInListsAreBounded checks that the bound applies to all lines and lists
// together.
func TestNamesInListsAreBounded(t *testing.T) {
	list := func(n int) string { return strings.Repeat("a,", n-1) + "a\r\n" }
	for _, row := range []struct {
		fields string
		want   error
	}{
		{"Connection: " + list(MaxMembers), nil},
		{"Connection: " + list(MaxMembers+1), ErrTooLarge},
		{"TRAILER:" + list(MaxMembers), nil},
		{"trailer: " + list(MaxMembers+1), ErrTooLarge},
		{"Connection: " + list(MaxMembers/2) + "Trailer: " + list(MaxMembers/2), nil},
		{"Connection: " + list(MaxMembers/2) + "X: 1\r\nconnection:" + list(MaxMembers/2) + "Trailer:\r\n", ErrTooLarge},
		{"Connection: " + strings.Repeat(",", MaxMembers) + "\r\n", ErrTooLarge},
		{"Accept: " + list(10*MaxMembers), nil}, // lists no names of fields
	} {
		if _, err := Parse([]byte("GET / HTTP/1.0\r\n" + row.fields + "\r\n")); !errors.Is(err, row.want) {
			t.Errorf("%.40q...: %v, want %v", row.fields, err, row.want)
		}
	}
}
