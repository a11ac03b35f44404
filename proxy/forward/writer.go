package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/exeat-dev/exeat/allowlist"
)

// copySize is the largest number of bytes of an answer's body that are read at a time. A
// copyBuffer has room for the framing of one chunk around them.
const (
	copySize  = 32 << 10
	chunkHead = 10 // eight hexadecimal digits and CRLF
	chunkTail = 2
)

type copyBuffer [chunkHead + copySize + chunkTail]byte

//nolint:gochecknoglobals // a cache of buffers: nothing can be observed through it
var buffers = sync.Pool{New: func() any { return new(copyBuffer) }}

// writer is the http.ResponseWriter that goproxy writes to. It decides what is sent of one
// answer, and the wire of the client frames that.
type writer struct {
	run      *run
	header   http.Header
	bodyless bool            // neither a body nor a trailer follows, whatever the fields say
	length   int64           // announced length of the body; -1 if none is announced
	written  int64           // number of bytes of the body so far
	trailers map[string]bool // trailers that were announced and may be sent
}

func newWriter(r *run) *writer { return &writer{run: r, header: make(http.Header), length: -1} }

// Header implements http.ResponseWriter.
func (w *writer) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. After a failure it does nothing, because the
// answer is goproxy's own text about the failure.
func (w *writer) WriteHeader(status int) {
	if w.run.failure != nil || w.run.down.begun {
		return
	}
	w.prepare(status)
	err := w.run.Answer(status, w.run.loginProblem, func() error {
		return w.run.down.final(func() error { return w.run.wire.writeHead(status, w.header, w.bodyless) })
	})
	if err != nil {
		w.run.fail(err)
		w.run.cancel(err)
	}
}

// prepare sets the fields that say what follows the head.
func (w *writer) prepare(status int) {
	w.trailers = listed(slices.Values(w.header["Trailer"]), http.CanonicalHeaderKey)
	maps.DeleteFunc(w.trailers, func(name string, _ bool) bool { return !w.isTrailer(name) })
	w.header.Del("Trailer")
	if n, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err == nil {
		w.length = n
	} else {
		w.header.Del("Content-Length")
	}
	if status == http.StatusNoContent {
		w.header.Del("Content-Length") // RFC 9110 section 8.6
	}
	switch {
	case w.run.Head.Method == http.MethodHead, status == http.StatusNoContent, status == http.StatusNotModified, w.length == 0:
		w.bodyless = true
	case w.length < 0 && len(w.trailers) > 0:
		w.header["Trailer"] = []string{strings.Join(slices.Sorted(maps.Keys(w.trailers)), ", ")}
	}
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.ReadFrom(bytes.NewReader(p))
	return int(n), err
}

// ReadFrom implements io.ReaderFrom. It writes the bytes of each read at once, in one
// write.
func (w *writer) ReadFrom(src io.Reader) (int64, error) {
	b := buffers.Get().(*copyBuffer) //nolint:errcheck,forcetypeassert // nothing else is in the pool
	defer buffers.Put(b)
	var total int64
	for {
		n, err := src.Read(b[chunkHead : chunkHead+copySize])
		if n > 0 {
			total += int64(n)
			if err := w.body(b, n); err != nil {
				return total, err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

var errTooLong = errors.New("the body is longer than announced")

// body writes n bytes of the body, which begin at chunkHead in b.
func (w *writer) body(b *copyBuffer, n int) error {
	if w.discards() {
		return nil
	}
	if w.written += int64(n); w.length >= 0 && w.written > w.length {
		return errTooLong
	}
	return w.run.down.final(func() error { return w.run.wire.writeBody(b, n) })
}

// discards reports whether the body is not sent: there is none, or it is goproxy's text
// about a failure.
func (w *writer) discards() bool { return w.bodyless || w.run.failure != nil }

// Flush implements http.Flusher. It has nothing to do, because writes are not buffered.
func (w *writer) Flush() {}

// finish writes the end of the answer, and reports whether the whole answer was sent.
func (w *writer) finish() bool {
	switch {
	case w.run.down.err != nil, w.run.failure != nil:
		return false
	case w.bodyless:
		return true
	case w.length >= 0 && w.written != w.length:
		return false
	}
	return w.run.down.final(func() error { return w.run.wire.writeTrailer(w.trailer()) }) == nil
}

// isTrailer reports whether a field may be sent behind the body of this answer.
func (w *writer) isTrailer(name string) bool {
	return isTrailer(name) && !w.run.nominated[variableOf(name)]
}

// trailer returns the trailers that are sent. The names of those that were not announced have
// http.TrailerPrefix.
func (w *writer) trailer() http.Header {
	h := make(http.Header)
	for name, values := range w.header {
		plain := strings.TrimPrefix(name, http.TrailerPrefix)
		if w.isTrailer(plain) && (plain != name || w.trailers[name]) {
			h[plain] = values
		}
	}
	return h
}

var _ interface {
	http.ResponseWriter
	http.Flusher
	io.ReaderFrom
} = (*writer)(nil)

// interim is called by the transport for each 1xx answer. The transport bounds their size,
// and interim their number.
func (r *run) interim(status int, fields textproto.MIMEHeader) (err error) {
	defer r.panics.contain(&err)
	if r.interims++; r.interims > maxInterims {
		return &answerError{allowlist.CauseProtocol, fmt.Sprintf("more than %d interim answers came before the final one", maxInterims)}
	}
	minor, all := 1, map[string][]string(fields)
	if r.upstream != nil {
		minor, all, err = r.heads.next()
	}
	if err == nil {
		err = tooMany(all, 0)
	}
	if err != nil {
		return err
	}
	if r.expect != nil && status != http.StatusContinue {
		r.expect.heard.Store(false) // the answer was not final, and 100 may never come
	}
	switch {
	case status == http.StatusContinue, status == http.StatusSwitchingProtocols:
		return nil // Read of the body sends 100 to the client when it needs the body
	case r.Head.IsHTTP10():
		return nil // RFC 9110 section 15.2: HTTP/1.0 has no interim answers
	}
	h := http.Header(fields).Clone()
	stripFields(h, nominated(slices.Values(all["Connection"])), minor, r.cfg)
	h.Del("Content-Length")
	return r.down.interim(func() error { return r.wire.writeHead(status, h, false) })
}
