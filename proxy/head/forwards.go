package head

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// ErrForwards is the error for a Max-Forwards field that is not a number or occurs twice.
var ErrForwards = errors.New("malformed Max-Forwards")

// MaxForwards returns how often the request may still be forwarded, at most
// math.MaxInt32. bounded is false if there is no such limit. Only OPTIONS and TRACE have
// the field (RFC 9110 section 7.6.2); it is ignored in other requests.
func (h *Head) MaxForwards() (n int, bounded bool, err error) {
	if h.Method != "OPTIONS" && h.Method != "TRACE" {
		return 0, false, nil
	}
	text, fields := singleValue(h, "Max-Forwards")
	switch {
	case fields == 0:
		return 0, false, nil
	case fields > 1:
		return 0, false, fmt.Errorf("it stands there %d times: %w", fields, ErrForwards)
	case text == "", strings.Trim(text, "0123456789") != "":
		return 0, false, fmt.Errorf("it is no number: %w", ErrForwards)
	}
	for i := range len(text) {
		n = min(n*10+int(text[i]-'0'), math.MaxInt32)
	}
	return n, true, nil
}
