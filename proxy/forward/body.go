package forward

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// requestBody is the body of a request, as the transport reads it. The
// transport does so from a goroutine of its own, which may go on after the
// answer has come; stop ends that.
type requestBody struct {
	run      *run
	req      *http.Request
	inner    io.ReadCloser // framed by net/http
	buffered *bufio.Reader // below it
	expect   *expectation  // the client waits for 100 (Continue); the reader's alone

	over chan struct{} // closed by stop

	done atomic.Bool // the body was read to its end

	mu     sync.Mutex // held while the client is read from
	failed *allowlist.ReasonError
}

func newRequestBody(r *run, req *http.Request, buffered *bufio.Reader) *requestBody {
	b := &requestBody{run: r, req: req, inner: req.Body, buffered: buffered, over: make(chan struct{})}
	if r.Head.Minor == 1 && r.Head.Lists("Expect", "100-continue") {
		b.expect = &expectation{proceed: make(chan struct{}), final: make(chan struct{})}
		r.expect = b.expect
	}
	return b
}

// expectation is a body that waits for leave to be sent (RFC 9110 section
// 10.1.1). The transport reads it when the origin has said 100, when it has said
// nothing for a while, and also when it has given its final answer: in that case
// nobody wants it.
type expectation struct {
	heard   atomic.Bool   // something came from the origin
	proceed chan struct{} // closed when it was 100
	final   chan struct{} // closed when there is, or will be, no other answer
	once    sync.Once     // for proceed
}

// wanted reports whether the body should be sent on a connection. If that ends,
// nothing else need come: the transport waits for the reader before it says so.
func (e *expectation) wanted(conn *upstream) bool {
	if !e.heard.Load() {
		return true
	}
	select {
	case <-e.proceed:
		return true
	case <-e.final:
	case <-conn.closed:
	}
	return false
}

var (
	errStopped = errors.New("the exchange is over")
	errSpent   = errors.New("the upload limit is reached")
)

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (n int, err error) {
	defer b.run.panics.contain(&err)
	conn, expect := b.run.upstream, b.expect
	b.expect = nil
	if expect != nil && !expect.wanted(conn) {
		select {
		case <-b.over: // an error before would cost the client the rest of the answer
		case <-conn.closed:
		}
		return 0, errStopped
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle(conn) { // and the client's deadlines may be the door's again
		return 0, errStopped
	}
	if expect != nil {
		if err := b.run.down.proceed(); err != nil {
			b.fail(allowlist.ClientGone, err)
			return 0, err
		}
	}
	if err := b.run.Client.SetReadDeadline(time.Now().Add(b.run.cfg.Body)); err != nil {
		b.fail(allowlist.ClientGone, err)
		return 0, err
	}
	if b.idle(conn) { // whoever has seen to that sets a deadline afterwards
		return 0, errStopped
	}
	n, err = b.inner.Read(p)
	if errors.Is(err, io.EOF) {
		b.done.Store(true)
		b.filterTrailer()
		if !b.run.spend(trailerSize(b.req.Trailer)) {
			n, err = 0, errSpent
		}
	}
	if !b.run.spend(n) {
		n, err = 0, errSpent
	}
	switch {
	case err == nil, errors.Is(err, io.EOF):
	case errors.Is(err, errSpent):
		b.fail(allowlist.UploadLimit, err)
	case b.idle(conn):
		return n, errStopped // and not the client's fault
	default:
		b.fail(bodyReason(err), &unquotedError{err})
	}
	return n, err
}

// idle reports whether nobody takes what is read for a connection any more.
func (b *requestBody) idle(conn *upstream) bool {
	select {
	case <-b.over:
	case <-b.run.done:
	case <-conn.closed:
	default:
		return false
	}
	return true
}

// interrupt ends a read of the client that is under way.
func (b *requestBody) interrupt() {
	if b != nil {
		_ = b.run.Client.SetReadDeadline(time.Unix(1, 0))
	}
}

func (b *requestBody) fail(reason allowlist.Reason, err error) {
	if b.failed == nil {
		b.failed = &allowlist.ReasonError{Reason: reason, Err: err}
	}
}

// bodyReason tells a client that left or stalled from one whose chunks are
// malformed.
func bodyReason(err error) allowlist.Reason {
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return allowlist.ClientGone
	}
	return allowlist.MalformedHeader
}

// filterTrailer leaves in the trailer what was announced and may be sent on.
// net/http adds whatever came.
func (b *requestBody) filterTrailer() {
	for name := range b.req.Trailer {
		if !b.run.trailers[name] {
			delete(b.req.Trailer, name)
		}
	}
}

// trailerSize is how many bytes go out for a trailer.
func trailerSize(trailer http.Header) int {
	size := 0
	for name, values := range trailer {
		for _, v := range values {
			size += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return size
}

// Close implements io.Closer; the client's connection stays open.
func (b *requestBody) Close() error { return nil }

// stop returns when the body is read no more, and reports whether it was read
// to its end; what the client sent behind it is given back to the reader of
// heads.
func (b *requestBody) stop() (done bool) {
	if b == nil {
		return true
	}
	close(b.over)
	if !b.mu.TryLock() { // the transport waits for the client
		b.interrupt()
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	if b.done.Load() && b.run.Body == head.Chunked {
		behind, _ := b.buffered.Peek(b.buffered.Buffered())
		b.run.Reader.Unread(behind)
	}
	return b.done.Load()
}

// failure returns why the body could not be read to its end, if it was the
// client's fault.
func (b *requestBody) failure() *allowlist.ReasonError {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// answerBody is the body of an answer, as goproxy reads it.
type answerBody struct {
	io.ReadCloser
	run *run
}

// Read implements io.Reader. goproxy takes an error for the end: the writer is
// told here which of the two it was.
func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.run.meter.moved()
	}
	switch {
	case errors.Is(err, io.EOF):
		b.run.received = true
	case err != nil:
		b.run.broken = err
	}
	return n, err
}
