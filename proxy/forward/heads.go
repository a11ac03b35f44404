package forward

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
)

// heads are the heads of the answers to one request, as they come: net/http
// takes Connection out of one that lists close, and nobody would know what else
// it lists. The zero value is ready.
type heads struct {
	mu    sync.Mutex
	over  bool // the last one was read
	raw   bytes.Buffer
	lines *textproto.Reader // of raw; nil until it is needed
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

// next reads the next head, as net/http has, and returns its Connection.
func (h *heads) next() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lines == nil {
		h.lines = textproto.NewReader(bufio.NewReader(&h.raw))
	}
	if _, err := h.lines.ReadLine(); err != nil { // sent before it was asked for
		return nil, fmt.Errorf("reading the head again: %w", err)
	}
	fields, err := h.lines.ReadMIMEHeader()
	if err != nil {
		return nil, fmt.Errorf("reading the head again: %w", err)
	}
	return fields["Connection"], nil
}

// last is next for the final answer, which nothing is kept behind.
func (h *heads) last(resp *http.Response) (connection []string, err error) {
	connection = resp.Header["Connection"]
	if connection == nil && resp.Close {
		connection, err = h.next()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over, h.raw, h.lines = true, bytes.Buffer{}, nil
	return connection, err
}

// nominated are the names that Connection lists, in their canonical spelling.
func nominated(connection []string) []string {
	var names []string
	for _, v := range connection {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.Trim(name, " \t")); !isFraming(name) {
				names = append(names, name)
			}
		}
	}
	return names
}
