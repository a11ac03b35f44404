package forward

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// Stream is the client's side of an exchange over HTTP/2. Read reads the body of the request
// and returns io.EOF at its end, at once if there is no body; Write writes bytes of the body
// of the answer. An error of Read means that the client has gone, unless it is an
// *allowlist.ReasonError, which keeps its reason. Deadlines can be set as long as the answer
// has not ended, also behind the end of the body. The methods do not keep the fields, whose
// names they write in lower case.
type Stream interface {
	net.Conn
	// WriteHead sends the head of an answer, interim or final. end says that neither body
	// nor trailer follows.
	WriteHead(status int, fields http.Header, end bool) error
	// WriteTrailer sends the trailer, which may be empty, and ends the answer.
	WriteTrailer(fields http.Header) error
}

// streamWire is the wire of a client that speaks HTTP/2. Its Stream frames bodies and has an
// end of its own for them, so that an answer which does not reach its end must be reset.
type streamWire struct {
	run    *run
	stream Stream
}

// loginNeedsH1 says why a client cannot log a connection in over HTTP/2, where requests of
// several users may share the connection.
const loginNeedsH1 = "HTTP/2 cannot carry a login that belongs to a connection (Negotiate, NTLM): use HTTP/1.1"

// readRequest implements wire. Before a request without a body goes out, the end of its
// stream must have come.
func (w *streamWire) readRequest(text string) (*http.Request, error) {
	req, err := readHead(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return nil, err
	}
	body := &streamBody{stream: w.stream, left: w.run.Body}
	if w.run.Body == 0 {
		return req, w.awaitEnd(body)
	}
	req.Body = io.NopCloser(body)
	return req, nil
}

// awaitEnd waits for the end of the stream of a request without a body.
func (w *streamWire) awaitEnd(body *streamBody) error {
	err := w.stream.SetReadDeadline(time.Now().Add(w.run.cfg.Body))
	if err != nil {
		return &allowlist.ReasonError{Reason: allowlist.ClientGone, Err: err}
	}
	select {
	case <-w.run.done: // the deadline set above may have replaced that of unblock
		return &allowlist.ReasonError{Reason: allowlist.ClientGone, Err: errStopped}
	default:
	}
	if err = body.readEnd(); errors.Is(err, io.EOF) {
		return nil
	}
	return &allowlist.ReasonError{Reason: bodyReason(err), Err: err}
}

// offerLogin implements wire. The connection to the origin is closed after each exchange.
func (w *streamWire) offerLogin(fields http.Header) (problem string) { return refuseLogin(fields) }

// refuseLogin tells the client why its login would fail.
func refuseLogin(fields http.Header) (problem string) {
	fields[proxyStatus] = append(fields[proxyStatus], pseudonym+`; details="`+loginNeedsH1+`"`) // RFC 9209 section 2.1.5
	return loginNeedsH1
}

// writeHead implements wire.
func (w *streamWire) writeHead(status int, fields http.Header, end bool) error {
	return w.send(fields, func() error { return w.stream.WriteHead(status, fields, end) })
}

// writeBody implements wire.
func (w *streamWire) writeBody(b *copyBuffer, n int) error {
	return w.run.down.send(func() (int, error) { return w.stream.Write(b[chunkHead : chunkHead+n]) })
}

// writeTrailer implements wire.
func (w *streamWire) writeTrailer(fields http.Header) error {
	return w.send(fields, func() error { return w.stream.WriteTrailer(fields) })
}

// send sends fields by write, and counts the bytes that they would have as text of HTTP/1.1.
func (w *streamWire) send(fields http.Header, write func() error) error {
	return w.run.down.send(func() (int, error) {
		if err := write(); err != nil {
			return 0, err
		}
		return fieldsSize(fields), nil
	})
}

// end implements wire.
func (w *streamWire) end(res *Result, _ bool) { res.Cut = !res.Complete }

// streamBody reads the body of a request from a stream. It returns the last bytes of a body
// with an announced length only after the end of the stream has come, so that an origin
// cannot take a part of a malformed request for the whole (RFC 9113 section 8.1.1).
type streamBody struct {
	stream io.Reader
	left   int64 // number of announced bytes that have not come; head.Chunked if no length was announced
}

var (
	errTooFewBytes  = errors.New("the body is shorter than Content-Length says")
	errTooManyBytes = errors.New("the body is longer than Content-Length says")
)

// Read implements io.Reader.
func (b *streamBody) Read(p []byte) (int, error) {
	if b.left == head.Chunked {
		return b.read(p)
	}
	n, err := b.read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == nil && b.left == 0 {
		err = b.readEnd()
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return 0, err
	case b.left > 0:
		return 0, errTooFewBytes
	}
	return n, io.EOF
}

// readEnd reads the end of the stream behind the last announced byte. It returns io.EOF if
// the end comes.
func (b *streamBody) readEnd() error {
	var more [1]byte
	for {
		switch n, err := b.read(more[:]); {
		case n > 0:
			return errTooManyBytes
		case err != nil:
			return err
		}
	}
}

func (b *streamBody) read(p []byte) (int, error) {
	n, err := b.stream.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &streamError{err}
	}
	return n, err
}

// streamError is the error of a stream that the client has ended, or that has ended with its
// connection.
type streamError struct{ err error }

// Error implements error.
func (e *streamError) Error() string { return e.err.Error() }

// Unwrap returns the error of the stream.
func (e *streamError) Unwrap() error { return e.err }
