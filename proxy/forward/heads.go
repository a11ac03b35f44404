package forward

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"sync"

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

	behind []byte // what came behind the head of a 101
}

// reset forgets what another connection has said.
func (h *heads) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.raw.Reset()
	h.lines = nil
}

// add is told what comes from the origin. The transport reads no more than one
// head, and what comes with its end, before it is known.
func (h *heads) add(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.raw.Write(p)
	}
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

// errDoubtful is an answer that others might read in another way than net/http,
// or that has more fields, or names more, than it is worth to keep: many of a few
// bytes take up thirty times as much in memory.
var errDoubtful = errors.New("the answer is of another version, has or names too many fields, or leaves a doubt about its end")

// check returns errDoubtful for such an answer.
func check(resp *http.Response, fields map[string][]string) error {
	for name := range fields {
		switch bare := strings.TrimRight(name, " \t"); {
		case bare != name && (variableOf(bare).isFraming() || variableOf(bare).isHop()): // RFC 9112 section 5.1
			return errDoubtful
		case name == "Transfer-Encoding" && !resp.ProtoAtLeast(1, 1): // RFC 9112 section 6.1
			return errDoubtful
		}
	}
	if resp.ProtoMajor != 1 || tooMany(fields, len(resp.Trailer)) {
		return errDoubtful
	}
	return nil
}

// tooMany reports whether a head, also that of an interim answer, has too many
// fields, or names too many in Connection and Trailer; trailers is how many
// trailers it announces.
func tooMany(fields map[string][]string, trailers int) bool {
	n := 0
	for _, values := range fields {
		n += len(values)
	}
	return n > head.MaxFields || membersOf(fields["Connection"])+trailers > head.MaxMembers
}

// membersOf returns how many members lists have.
func membersOf(lists []string) int {
	n := len(lists)
	for _, v := range lists {
		n += strings.Count(v, ",")
	}
	return n
}
