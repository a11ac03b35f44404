package forward

import "net/http"

// wire is the protocol by which the client sends its request and gets the answer: HTTP/1.x or
// HTTP/2. The request and the answer are the same for both; a wire only frames them. The
// methods that write are called by downstream, which holds its lock meanwhile.
type wire interface {
	// readRequest returns the request whose head is text, with its body.
	readRequest(text string) (*http.Request, error)
	// offerLogin changes the fields of a 401 that asks the client to log its connection
	// in. If the client cannot do so over this wire, it returns why, for the record.
	offerLogin(fields http.Header) (problem string)
	// writeHead writes the head of an interim or final answer. end says that neither a
	// body nor a trailer follows a final one.
	writeHead(status int, fields http.Header, end bool) error
	// writeBody writes n bytes of the body, which begin at chunkHead in b. It may change
	// the bytes around them.
	writeBody(b *copyBuffer, n int) error
	// writeTrailer writes the trailer, which may be empty, and the end of the answer.
	writeTrailer(fields http.Header) error
	// end sets the fields of a result that say what to do with the client's connection or
	// stream. bodyDone says that the body of the request was read to its end.
	end(res *Result, bodyDone bool)
}

// newWire returns the wire of an exchange.
func newWire(r *run) wire {
	if stream, ok := r.Client.(Stream); ok {
		return &streamWire{run: r, stream: stream}
	}
	return &h1Wire{run: r, keepAlive: !r.Head.IsHTTP10() && !r.Head.Lists("Connection", "close")}
}
