package forward

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// requestBody is the body of a request, which the transport reads. The transport reads it
// in a goroutine of its own, which may go on after the answer has come; stop ends that.
type requestBody struct {
	run    *run
	req    *http.Request
	inner  io.Reader    // the body without the framing of the client's wire
	expect *expectation // not nil if the client waits for 100 (Continue); used by Read only

	stopped chan struct{} // closed by stop

	done atomic.Bool // the body was read to its end

	mu     sync.Mutex             // held while Read reads from the client; guards failed
	failed *allowlist.ReasonError // the first failure of the client; nil if there is none
}

func newRequestBody(r *run, req *http.Request) *requestBody {
	b := &requestBody{run: r, req: req, inner: req.Body, stopped: make(chan struct{})}
	if !r.Head.IsHTTP10() && r.Head.Lists("Expect", "100-continue") {
		b.expect = &expectation{proceed: make(chan struct{}), final: make(chan struct{})}
		r.expect = b.expect
	}
	return b
}

// expectation is the state of a request whose client waits for 100 (Continue) before it
// sends the body (RFC 9110 section 10.1.1). The transport reads the body when the origin
// has sent 100 and when it has sent nothing for a while. It also does so after a final
// answer, and then the body is not needed.
type expectation struct {
	heard   atomic.Bool   // the origin has begun an answer; reset by an interim one other than 100
	proceed chan struct{} // closed when the origin has sent 100
	final   chan struct{} // closed when the final answer has come or there will be none
	once    sync.Once     // closes proceed once
}

// proceed sends 100 (Continue) to a client that waits for it before it sends its body.
func (r *run) proceed() error { return r.wire.writeHead(http.StatusContinue, nil, false) }

// waitWanted reports whether the body should be sent on a connection. It returns true if
// the origin has sent nothing. Otherwise it waits for 100, for the final answer, or for
// the end of the connection, which the transport reports only after Read has returned.
func (e *expectation) waitWanted(conn *upstream) bool {
	if !e.heard.Load() {
		return true
	}
	select {
	case <-e.proceed:
		return true
	case <-e.final:
	case <-conn.ended():
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
	if expect != nil && !expect.waitWanted(conn) {
		select {
		case <-b.stopped: // an error before that would end the answer too
		case <-conn.ended():
		}
		return 0, errStopped
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle(conn) { // the exchange may have ended, and the front may set the client's deadlines again
		return 0, errStopped
	}
	if expect != nil {
		if err := b.run.down.interim(b.run.proceed); err != nil {
			b.fail(allowlist.ClientGone, err)
			return 0, err
		}
	}
	if err := b.run.Client.SetReadDeadline(time.Now().Add(b.run.cfg.Body)); err != nil {
		b.fail(allowlist.ClientGone, err)
		return 0, err
	}
	if b.idle(conn) { // if it ends after this check, its end replaces the deadline set above
		return 0, errStopped
	}
	n, err = b.inner.Read(p)
	if errors.Is(err, io.EOF) {
		b.done.Store(true)
		b.filterTrailer()
		if !b.run.spend(fieldsSize(b.req.Trailer)) {
			n, err = 0, errSpent
		}
	}
	if conn == nil { // nothing else notices the bytes
		b.run.meter.moved()
	}
	if !b.run.spend(n) {
		n, err = 0, errSpent
	}
	switch {
	case err == nil, errors.Is(err, io.EOF):
	case errors.Is(err, errSpent):
		b.fail(allowlist.UploadLimit, err)
	case b.idle(conn):
		return n, errStopped // the client has not caused the error
	default:
		b.fail(bodyReason(err), &unquotedError{err})
	}
	return n, err
}

// idle reports whether a body that is read for a connection is no longer needed: the
// exchange or the connection has ended.
func (b *requestBody) idle(conn *upstream) bool {
	select {
	case <-b.stopped:
	case <-b.run.done:
	case <-conn.ended():
	default:
		return false
	}
	return true
}

// interrupt ends a read from the client that is under way.
func (b *requestBody) interrupt() {
	if b != nil {
		_ = b.run.Client.SetReadDeadline(time.Unix(1, 0))
	}
}

// fail notes why the body could not be read. The caller holds mu.
func (b *requestBody) fail(reason allowlist.Reason, err error) {
	if b.failed == nil {
		b.failed = &allowlist.ReasonError{Reason: reason, Err: err}
	}
}

// bodyReason returns ClientGone for a client that left or stalled, the reason that a Stream
// gives, and MalformedHeader for malformed chunks and for a body that has another length than
// announced.
func bodyReason(err error) allowlist.Reason {
	if known, ok := errors.AsType[*allowlist.ReasonError](err); ok {
		return known.Reason
	}
	_, network := errors.AsType[net.Error](err)
	_, ended := errors.AsType[*streamError](err)
	if network || ended || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return allowlist.ClientGone
	}
	return allowlist.MalformedHeader
}

// filterTrailer removes fields from the trailer that were not announced or may not be
// sent on. net/http adds every field that came.
func (b *requestBody) filterTrailer() {
	for name := range b.req.Trailer {
		if !b.run.trailers[name] {
			delete(b.req.Trailer, name)
		}
	}
}

// fieldsSize returns the number of bytes of fields as text of HTTP/1.1.
func fieldsSize(fields http.Header) int {
	size := 0
	for name, values := range fields {
		for _, v := range values {
			size += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return size
}

// Close implements io.Closer; the client's connection stays open.
func (b *requestBody) Close() error { return nil }

// stop ends reading of the body and waits until no read is under way. It reports whether
// the body was read to its end.
func (b *requestBody) stop() (done bool) {
	if b == nil {
		return true
	}
	close(b.stopped)
	if !b.mu.TryLock() { // the transport waits for the client
		b.interrupt()
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	return b.done.Load()
}

// failure returns why the body could not be read to its end, or nil if the client has not
// caused that.
func (b *requestBody) failure() *allowlist.ReasonError {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// answerBody is the body of an answer, which goproxy reads.
type answerBody struct {
	io.ReadCloser
	run *run
}

// Read implements io.Reader. goproxy treats an error like the end of the body, so Read
// notes in the run which of the two it was.
func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.run.meter.moved()
	}
	switch {
	case errors.Is(err, io.EOF):
		b.run.bodyComplete = true
	case err != nil:
		b.run.answerErr = err
	}
	return n, err
}
