package forward

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"sync"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// heads holds the raw heads of the answers to one request. They are read a second time,
// because net/http removes Connection from an answer that lists close, and with it the
// other names that it lists. The zero value is ready to use.
type heads struct {
	mu        sync.Mutex // guards the fields below, but for trailing
	finalRead bool       // the final head was read
	raw       bytes.Buffer
	lines     *textproto.Reader // reads raw; nil until it is needed
	unread    int               // number of bytes that came behind the last head that next has read

	trailing []byte // bytes that came behind the head of a 101
}

// reset discards what came from an earlier connection.
func (h *heads) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.raw.Reset()
	h.lines, h.unread = nil, 0
}

// add adds bytes from the origin until the final head was read. The transport reads at
// most one head, and the bytes that come with its end, before next or last reads it.
func (h *heads) add(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.finalRead {
		h.raw.Write(p)
		h.unread += len(p)
	}
}

// partialLen returns how many bytes have come of a head that was not read to its end.
func (h *heads) partialLen() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unread
}

// next reads the next head, which net/http has already read, and returns its minor version
// and its fields.
func (h *heads) next() (minor int, fields map[string][]string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() {
		if h.raw.Len() == 0 {
			h.raw = bytes.Buffer{} // free the memory of a long interim head: the next answer may take long
		}
	}()
	if h.lines == nil {
		h.lines = textproto.NewReader(bufio.NewReader(&h.raw))
	}
	line, err := h.lines.ReadLine()
	if err != nil { // the head came before the request was given the connection
		return 0, nil, fmt.Errorf("reading the head again: %w", err)
	}
	fields, err = h.lines.ReadMIMEHeader()
	if err != nil {
		return 0, nil, fmt.Errorf("reading the head again: %w", err)
	}
	h.unread = h.raw.Len() + h.lines.R.Buffered()
	version, _, _ := strings.Cut(line, " ")
	_, minor, _ = http.ParseHTTPVersion(version) // cannot fail: net/http has accepted it
	return minor, fields, nil
}

// last returns the fields of the final answer, including those that net/http removes. It
// discards what has come behind the head, except for a 101.
func (h *heads) last(resp *http.Response) (fields map[string][]string, err error) {
	fields = resp.Header
	switches := resp.StatusCode == http.StatusSwitchingProtocols
	if resp.Close || switches || !resp.ProtoAtLeast(1, 1) {
		_, fields, err = h.next()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if switches {
		h.trailing, _ = io.ReadAll(h.lines.R) // from memory
	}
	h.finalRead, h.raw, h.lines = true, bytes.Buffer{}, nil
	return fields, err
}

// check returns an error for an answer that is not accepted: one that other programs might
// read differently from net/http, or one that has or names too many fields. Many fields of
// a few bytes each need thirty times as much memory.
func check(resp *http.Response, fields map[string][]string) error {
	for name := range fields {
		switch bare := strings.TrimRight(name, " \t"); {
		case bare != name && (variableOf(bare).isFraming() || variableOf(bare).isHop()): // RFC 9112 section 5.1
			return &answerError{allowlist.CauseProtocol, "a space stands behind the name of the field " + textproto.CanonicalMIMEHeaderKey(bare)}
		case name == "Transfer-Encoding" && !resp.ProtoAtLeast(1, 1): // RFC 9112 section 6.1
			return &answerError{allowlist.CauseTransferCoding, "Transfer-Encoding stands in an answer of HTTP/1.0"}
		}
	}
	if resp.ProtoMajor != 1 {
		return &answerError{allowlist.CauseProtocol, fmt.Sprintf("the answer is of HTTP/%d", resp.ProtoMajor)}
	}
	return tooMany(fields, len(resp.Trailer))
}

// tooMany returns an error if the head of a final or an interim answer has too many
// fields, or names too many in Connection and Trailer. trailers is the number of trailers
// that it announces.
func tooMany(fields map[string][]string, trailers int) error {
	n := 0
	for _, values := range fields {
		n += len(values)
	}
	named := membersOf(fields["Connection"]) + trailers
	switch {
	case n > head.MaxFields:
		return &answerError{allowlist.CauseAnswerHead, fmt.Sprintf("the answer has %d fields, more than %d", n, head.MaxFields)}
	case named > head.MaxMembers:
		return &answerError{allowlist.CauseAnswerHead, fmt.Sprintf("the answer names %d fields in Connection and Trailer, more than %d", named, head.MaxMembers)}
	}
	return nil
}

// membersOf returns the number of members of comma-separated lists.
func membersOf(lists []string) int {
	n := len(lists)
	for _, v := range lists {
		n += strings.Count(v, ",")
	}
	return n
}
