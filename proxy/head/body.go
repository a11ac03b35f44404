package head

import (
	"errors"
	"fmt"
	"strings"
)

// ErrFraming is a head whose fields leave a doubt about where its body ends
// (RFC 9112 section 6.3): the request must be refused and the connection
// closed.
var ErrFraming = errors.New("the length of the body is in doubt")

// Chunked is the length of a body that is sent in chunks.
const Chunked = -1

// maxLength bounds a Content-Length to what any int64 holds, with room for
// sums.
const maxLength = 1 << 62

// Body returns the number of bytes of the body behind the head, or Chunked.
// There is one way to say it: no field (no body), one Content-Length in
// decimal, or, in HTTP/1.1, one Transfer-Encoding that is chunked and nothing
// else. Any other combination is ErrFraming.
func (h *Head) Body() (int64, error) {
	length, lengths := only(h, "Content-Length")
	coding, codings := only(h, "Transfer-Encoding")
	switch {
	case lengths+codings == 0:
		return 0, nil
	case lengths > 0 && codings > 0:
		return 0, doubt("Content-Length stands beside Transfer-Encoding")
	case lengths > 1:
		return 0, doubt(fmt.Sprintf("Content-Length stands there %d times", lengths))
	case codings > 1:
		return 0, doubt(fmt.Sprintf("Transfer-Encoding stands there %d times", codings))
	case codings == 1 && h.Minor == 0:
		return 0, doubt("Transfer-Encoding stands in HTTP/1.0")
	case codings == 1:
		if !sameName(coding, "chunked") {
			return 0, doubt("Transfer-Encoding is not chunked alone")
		}
		return Chunked, nil
	}
	return parseLength(length)
}

// doubt is ErrFraming with its cause.
func doubt(cause string) error { return fmt.Errorf("%s: %w", cause, ErrFraming) }

// only returns the first value of a field and how many there are.
func only(h *Head, name string) (value string, n int) {
	for v := range h.Values(name) {
		if n == 0 {
			value = v
		}
		n++
	}
	return value, n
}

// parseLength reads decimal digits: no sign, no list, no space.
func parseLength(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, doubt("Content-Length is no number")
	}
	var n int64
	for i := range len(s) {
		n = n*10 + int64(s[i]-'0')
		if n > maxLength/10 {
			return 0, doubt("Content-Length is too large")
		}
	}
	return n, nil
}

// Lists reports whether one of the fields of that name lists a token, such as
// close in Connection (RFC 9110 section 5.6.1). Case is ignored in both.
func (h *Head) Lists(name, token string) bool {
	for v := range h.Values(name) {
		for item := range strings.SplitSeq(v, ",") {
			if sameName(strings.Trim(item, " \t"), token) {
				return true
			}
		}
	}
	return false
}
