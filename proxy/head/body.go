package head

import (
	"errors"
	"fmt"
	"strings"
)

// ErrFraming is the error for a head whose fields do not say unambiguously where the body
// ends (RFC 9112 section 6.3). The request must be refused and the connection closed.
var ErrFraming = errors.New("the length of the body is in doubt")

// Chunked is the length of a body that is sent in chunks.
const Chunked = -1

// maxLength bounds a Content-Length so that sums of lengths fit into an int64.
const maxLength = 1 << 62

// Body returns the number of bytes of the body after the head, or Chunked. A head has
// either neither field (no body), or one Content-Length in decimal, or, in HTTP/1.1, one
// Transfer-Encoding with the value chunked. Any other combination is ErrFraming. In HTTP/2
// a body may follow although there is neither field: the end of the stream ends it.
func (h *Head) Body() (int64, error) {
	length, lengths := singleValue(h, "Content-Length")
	coding, codings := singleValue(h, "Transfer-Encoding")
	switch {
	case lengths+codings == 0:
		return 0, nil
	case lengths > 0 && codings > 0:
		return 0, framingError("Content-Length stands beside Transfer-Encoding")
	case lengths > 1:
		return 0, framingError(fmt.Sprintf("Content-Length stands there %d times", lengths))
	case codings > 1:
		return 0, framingError(fmt.Sprintf("Transfer-Encoding stands there %d times", codings))
	case codings == 1 && h.IsHTTP10():
		return 0, framingError("Transfer-Encoding stands in HTTP/1.0")
	case codings == 1:
		if !sameName(coding, "chunked") {
			return 0, framingError("Transfer-Encoding is not chunked alone")
		}
		return Chunked, nil
	}
	return parseLength(length)
}

// framingError returns ErrFraming with its cause.
func framingError(cause string) error { return fmt.Errorf("%s: %w", cause, ErrFraming) }

// singleValue returns the first value of a field that should occur once, and the number of
// fields with this name.
func singleValue(h *Head, name string) (value string, n int) {
	for v := range h.Values(name) {
		if n == 0 {
			value = v
		}
		n++
	}
	return value, n
}

// parseLength parses a length in decimal digits, without sign, list or space.
func parseLength(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, framingError("Content-Length is no number")
	}
	var n int64
	for i := range len(s) {
		n = n*10 + int64(s[i]-'0')
		if n > maxLength/10 {
			return 0, framingError("Content-Length is too large")
		}
	}
	return n, nil
}

// Lists reports whether a field with the given name lists a token, such as close in
// Connection (RFC 9110 section 5.6.1). Case is ignored in both.
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
