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

// heads are the heads of the answers to one request, as they come: net/http
// takes Connection out of one that lists close, and nobody would know what else
// it lists. The zero value is ready.
type heads struct {
	mu    sync.Mutex
	over  bool // the last one was read
	raw   bytes.Buffer
	lines *textproto.Reader // of raw; nil until it is needed
	got   int               // bytes behind the last head that next has read

	behind []byte // what came behind the head of a 101
}

// reset forgets what another connection has said.
func (h *heads) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.raw.Reset()
	h.lines, h.got = nil, 0
}

// add is told what comes from the origin. The transport reads no more than one
// head, and what comes with its end, before it is known.
func (h *heads) add(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.raw.Write(p)
		h.got += len(p)
	}
}

// begun returns how many bytes of a head have come that was not read to its end.
func (h *heads) begun() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got
}

// next reads the next head, as net/http has, and returns its minor version and
// its fields.
func (h *heads) next() (minor int, fields map[string][]string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() {
		if h.raw.Len() == 0 {
			h.raw = bytes.Buffer{} // an interim head may have been long, and the next answer far
		}
	}()
	if h.lines == nil {
		h.lines = textproto.NewReader(bufio.NewReader(&h.raw))
	}
	line, err := h.lines.ReadLine()
	if err != nil { // sent before it was asked for
		return 0, nil, fmt.Errorf("reading the head again: %w", err)
	}
	fields, err = h.lines.ReadMIMEHeader()
	if err != nil {
		return 0, nil, fmt.Errorf("reading the head again: %w", err)
	}
	h.got = h.raw.Len() + h.lines.R.Buffered()
	version, _, _ := strings.Cut(line, " ")
	_, minor, _ = http.ParseHTTPVersion(version) // which net/http has taken
	return minor, fields, nil
}

// last returns the fields of the final answer, those included that net/http has
// taken out, and keeps nothing that comes behind it unless that is of another
// protocol.
func (h *heads) last(resp *http.Response) (fields map[string][]string, err error) {
	fields = resp.Header
	switches := resp.StatusCode == http.StatusSwitchingProtocols
	if resp.Close || switches || !resp.ProtoAtLeast(1, 1) {
		_, fields, err = h.next()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if switches {
		h.behind, _ = io.ReadAll(h.lines.R) // from memory
	}
	h.over, h.raw, h.lines = true, bytes.Buffer{}, nil
	return fields, err
}

// check returns why an answer is not taken: others might read it in another way than
// net/http, or it has more fields, or names more, than it is worth to keep: many of a
// few bytes take up thirty times as much in memory.
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

// tooMany returns an error if a head, also that of an interim answer, has too many
// fields, or names too many in Connection and Trailer; trailers is how many
// trailers it announces.
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

// membersOf returns how many members lists have.
func membersOf(lists []string) int {
	n := len(lists)
	for _, v := range lists {
		n += strings.Count(v, ",")
	}
	return n
}
