package head_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/proxy/head"
)

// TestMaxForwards checks the limit that Max-Forwards sets for a method.
func TestMaxForwards(t *testing.T) {
	for _, row := range []struct {
		method, fields string
		want           int // -1 if there is no limit
		err            error
	}{
		{"TRACE", "", -1, nil},
		{"TRACE", "Max-Forwards: 0\r\n", 0, nil},
		{"OPTIONS", "max-forwards:\t10 \r\n", 10, nil},
		{"OPTIONS", "Max-Forwards: 007\r\n", 7, nil},
		{"OPTIONS", "Max-Forwards: " + strings.Repeat("9", 100) + "\r\n", math.MaxInt32, nil},
		{"TRACE", "Max-Forwards:\r\n", 0, head.ErrForwards},
		{"TRACE", "Max-Forwards: -1\r\n", 0, head.ErrForwards},
		{"TRACE", "Max-Forwards: +1\r\n", 0, head.ErrForwards},
		{"TRACE", "Max-Forwards: 1, 0\r\n", 0, head.ErrForwards},
		{"TRACE", "Max-Forwards: 1\r\nMax-Forwards: 1\r\n", 0, head.ErrForwards},
		{"GET", "Max-Forwards: 0\r\n", -1, nil},
		{"trace", "Max-Forwards: none\r\n", -1, nil},
	} {
		h, err := head.Parse([]byte(row.method + " / HTTP/1.0\r\n" + row.fields + "\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		n, bounded, err := h.MaxForwards()
		if !bounded && err == nil {
			n = -1
		}
		if n != row.want || !errors.Is(err, row.err) {
			t.Errorf("%s with %q: got %d, %v, want %d, %v", row.method, row.fields, n, err, row.want, row.err)
		}
	}
}
