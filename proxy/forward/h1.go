package forward

import (
	"bufio"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/proxy/head"
)

// h1Wire is the wire of a client that speaks HTTP/1.x. It frames the body of an answer by its
// length if the origin has sent that, and otherwise with chunks, or for HTTP/1.0 by the end
// of the connection.
type h1Wire struct {
	run         *run
	buffered    *bufio.Reader // reads a request with a chunked body; nil for others, since it holds the head too
	keepAlive   bool          // the connection may stay open
	chunked     bool          // the body of the answer is sent in chunks
	endsByClose bool          // the end of the connection marks the end of the body of the answer
}

// readRequest implements wire. net/http frames the body.
func (w *h1Wire) readRequest(text string) (*http.Request, error) {
	var source io.Reader = strings.NewReader(text)
	switch {
	case w.run.Body == head.Chunked:
		source = io.MultiReader(source, w.run.Reader)
	case w.run.Body > 0:
		source = io.MultiReader(source, io.LimitReader(w.run.Reader, w.run.Body))
	}
	buffered := bufio.NewReader(source)
	if w.run.Body == head.Chunked {
		w.buffered = buffered
	}
	return readHead(buffered)
}

// offerLogin implements wire. The connection to the origin is kept for the client's: see
// Logins.
func (w *h1Wire) offerLogin(fields http.Header) (problem string) {
	fields[proxySupport] = []string{"Session-Based-Authentication"} // RFC 4559 section 6
	return ""
}

// writeHead implements wire.
func (w *h1Wire) writeHead(status int, fields http.Header, end bool) error {
	return w.send(w.head(status, fields, end))
}

// head returns the text of a head.
func (w *h1Wire) head(status int, fields http.Header, end bool) []byte {
	final := status >= http.StatusOK
	if final {
		w.frame(fields, end)
	}
	trailer := fields["Trailer"]
	delete(fields, "Trailer")
	b := appendFields(appendStatus(make([]byte, 0, 512), status), fields)
	if w.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if len(trailer) > 0 {
			b = append(b, "Trailer: "+trailer[0]+"\r\n"...)
		}
	}
	switch {
	case !final:
	case !w.keepAlive:
		b = append(b, "Connection: close\r\n"...)
	case fields[proxySupport] != nil: // the field concerns this connection only
		b = append(b, "Connection: "+proxySupport+"\r\n"...)
	}
	return append(b, "\r\n"...)
}

// frame decides how the body of the final answer is framed (RFC 9112 section 6), and whether
// the connection may stay open after it.
func (w *h1Wire) frame(fields http.Header, end bool) {
	_, hasLength := fields["Content-Length"]
	switch {
	case end, hasLength:
	case w.run.Head.IsHTTP10():
		w.endsByClose = true
	default:
		w.chunked = true
	}
	if body := w.run.body; body != nil && !body.done.Load() {
		w.keepAlive = false // the rest of the request will not be read
	}
	if last := w.run.Last; last != nil && last() {
		w.keepAlive = false
	}
	if !w.keepAlive {
		delete(fields, proxySupport)
	}
}

// writeBody implements wire.
func (w *h1Wire) writeBody(b *copyBuffer, n int) error {
	from, to := chunkHead, chunkHead+n
	if w.chunked {
		size := append(strconv.AppendInt(make([]byte, 0, chunkHead), int64(n), 16), '\r', '\n')
		from -= len(size)
		copy(b[from:], size)
		b[to], b[to+1] = '\r', '\n'
		to += chunkTail
	}
	return w.send(b[from:to])
}

// writeTrailer implements wire. Only chunks have an end of their own.
func (w *h1Wire) writeTrailer(fields http.Header) error {
	if !w.chunked {
		return nil
	}
	return w.send(lastChunk(fields))
}

// end implements wire. Bytes that were read beyond a chunked body go back to the reader of
// heads.
func (w *h1Wire) end(res *Result, bodyDone bool) {
	if bodyDone && w.run.Body == head.Chunked {
		behind, _ := w.buffered.Peek(w.buffered.Buffered())
		w.run.Reader.Unread(behind)
	}
	res.Reusable = res.Complete && bodyDone && w.keepAlive && w.run.Client.SetDeadline(time.Time{}) == nil
	res.Linger = res.Complete && !res.Reusable
	res.Cut = !res.Complete && w.endsByClose
}

func (w *h1Wire) send(p []byte) error {
	return w.run.down.send(func() (int, error) { return w.run.Client.Write(p) })
}

// lastChunk returns the last chunk with the trailer.
func lastChunk(trailer http.Header) []byte {
	return append(appendFields([]byte("0\r\n"), trailer), "\r\n"...)
}

func appendStatus(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// appendFields appends fields in the order of their names. It leaves out values with a
// line break, which net/http does not let through anyway.
func appendFields(b []byte, h http.Header) []byte {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range h[name] {
			if strings.ContainsAny(v, "\r\n\x00") {
				continue
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}

// switchedHead returns the head of a 101 for the client.
func switchedHead(resp *http.Response, protocol string) []byte {
	resp.Header.Del("Content-Length")
	resp.Header["Connection"], resp.Header["Upgrade"] = []string{"Upgrade"}, []string{protocol}
	return append(appendFields(appendStatus(nil, resp.StatusCode), resp.Header), "\r\n"...)
}
