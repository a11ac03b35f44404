package front

import (
	"errors"
	"io"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/head"
)

// queryPath is the path of DNS queries over HTTPS. A server may choose the path (RFC 8484
// section 4.1); this is the one that clients expect.
const queryPath = "/dns-query"

// Query is the part of a request that may contain a DNS query.
type Query struct {
	// Parameters is the query part of the target, without the question mark.
	Parameters string
	// Body reads the body of the request, and no byte behind it. It is nil for a body in
	// chunks over HTTP/1, which this package does not read.
	Body io.Reader
}

// isQueryTarget reports whether a target is that of a query: the path itself, in the form
// in which a client sends it to an origin server, with any parameters.
func isQueryTarget(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	return path == queryPath
}

// parseQuery parses a request that has the target of a query and names an authority. The
// front then sets Body of the query.
func (r *Request) parseQuery(authority string, isQueryAuthority func(string) bool) allowlist.Reason {
	if !isQueryAuthority(authority) {
		r.Detail = "malformed target: " + queryPath + " is for DNS queries to this gateway; Host must be a name or address in its certificate, with the port of the listener or none"
		return allowlist.MalformedTarget
	}
	length, err := r.Head.Body()
	if err != nil {
		r.Detail = err.Error()
		return allowlist.MalformedHeader
	}
	_, parameters, _ := strings.Cut(r.Target, "?")
	r.Body, r.Query = length, &Query{Parameters: parameters}
	return allowlist.NoReason
}

// parseQuery parses a query over HTTP/1. Its body has to come within the time for the
// head.
func (c *h1) parseQuery(r *Request) allowlist.Reason {
	if reason := r.parseQuery(r.Head.Host, c.conn.IsQueryAuthority); reason != allowlist.NoReason {
		return reason
	}
	if r.Body != head.Chunked {
		r.Query.Body = &queryBody{conn: c, left: r.Body, awaited: r.Head.Minor == 1 && r.Head.Lists("Expect", "100-continue")}
	}
	return allowlist.NoReason
}

// queryBody reads the body of a query over HTTP/1.
type queryBody struct {
	conn    *h1
	left    int64 // number of bytes that have not been read
	awaited bool  // the client may be waiting for 100 (Continue)
}

// Read implements io.Reader.
func (b *queryBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.awaited && len(b.conn.reader.Buffered()) == 0 {
		if err := b.conn.write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
			return 0, err
		}
	}
	b.awaited = false
	n, err := b.conn.reader.Read(p[:min(int64(len(p)), b.left)])
	if b.left -= int64(n); errors.Is(err, io.EOF) && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// streamQueryBody reads the body of a query over HTTP/2.
type streamQueryBody struct {
	stream  *h2.Stream
	left    int64 // number of bytes that are missing; negative if the length was not announced
	awaited bool  // the client may be waiting for 100 (Continue)
}

// errBodyLength is the error for a body that is not as long as announced (RFC 9113 section
// 8.1.1).
var errBodyLength = errors.New("the body has another length than Content-Length says")

// Read implements io.Reader.
func (b *streamQueryBody) Read(p []byte) (int, error) {
	if b.awaited {
		b.awaited = false
		if err := b.stream.WriteFields([]h2.Field{{Name: ":status", Value: "100"}}, false); err != nil {
			return 0, err
		}
	}
	n, err := b.stream.Read(p)
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 || errors.Is(err, io.EOF) && b.left > 0 {
			return 0, errBodyLength
		}
	}
	return n, err
}

// hasUnread reports whether bytes of the request's body have not been read. They would be
// taken for the next request.
func (r *Request) hasUnread() bool {
	if r.Query == nil {
		return r.Body != 0
	}
	body, ok := r.Query.Body.(*queryBody)
	return !ok || body.left > 0
}
