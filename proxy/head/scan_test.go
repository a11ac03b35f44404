package head

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// TestNoByteIsLookedAtTwice while a line comes in pieces: a line of the largest
// size that comes byte by byte would cost its square.
func TestNoByteIsLookedAtTwice(t *testing.T) {
	r := NewReader(strings.NewReader(""), 0)
	defer r.Release()
	for i, piece := range []string{"GET / HT", "TP/1.0\r", "\nX: aaa", "aaa", "a\r\n", "Y:"} {
		r.src = strings.NewReader(piece)
		if _, err := r.ReadHead(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if r.seen != r.end-r.start {
			t.Errorf("after piece %d: %d of %d bytes were looked at", i, r.seen, r.end-r.start)
		}
	}
	r.src = strings.NewReader("b\r\n\r\n")
	if h, err := r.ReadHead(); err != nil || h.Get("X") != "aaaaaaa" || h.Get("Y") != "b" {
		t.Errorf("got %v, %v", h, err)
	}
}

// TestWhatIsGivenBackStaysInPlace: a connection on which many requests have come
// at once gives the bytes behind each body back, and moving all that follow would
// cost their square.
func TestWhatIsGivenBackStaysInPlace(t *testing.T) {
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
	r.Unread([]byte("GET /3 HTTP/1.0\r\n\r\n")) // these are not there
	if h, err := r.ReadHead(); err != nil || h.Target != "/3" || string(r.Buffered()) != "rest" {
		t.Errorf("got %v, %v and %q behind it", h, err, r.Buffered())
	}
}

// TestNamesInListsAreBounded, over all lines and lists.
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
		{"Accept: " + list(10*MaxMembers), nil}, // names no fields
	} {
		if _, err := Parse([]byte("GET / HTTP/1.0\r\n" + row.fields + "\r\n")); !errors.Is(err, row.want) {
			t.Errorf("%.40q...: %v, want %v", row.fields, err, row.want)
		}
	}
}
