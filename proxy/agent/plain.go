package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/forward"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/refusal"
)

// forward sends a plain request to a gateway, and writes the answer.
func (c *client) forward(ctx context.Context, r *front.Request) front.Answer {
	ctx = context.WithValue(ctx, evidenceKey{}, c.evidence(r))
	res := c.agent.forwarder.Forward(ctx, &forward.Exchange{
		Head: r.Head, URL: r.URL, Body: r.Body, Reader: r.Reader, Client: r.Client,
		Last:   c.agent.draining.Load,
		Answer: func(_ int, _ string, write func() error) error { return write() },
	})
	if res.Reason == allowlist.NoReason {
		return front.Answer{Kind: front.Forwarded, End: endOf(&res)}
	}
	refused, isRefusal := errors.AsType[*refusedError](res.Err)
	unreached, isUnreached := errors.AsType[*unreachedError](res.Err)
	switch {
	case isRefusal:
		a := given(&refused.response)
		a.WasAllowed = true
		return a
	case isUnreached:
		return given(noGateway(r, unreached.err))
	}
	a := front.Answer{Refusal: refusal.Refusal{Reason: res.Reason, Detail: allowlist.DetailOf(res.Err)}}
	a.Refusal.Decision.Request = r.Asked
	return a
}

// endOf returns what to do with the connection of the client after an answer.
func endOf(res *forward.Result) front.End {
	switch {
	case res.Reusable:
		return front.Keep
	case res.Cut:
		return front.Abort
	case res.Linger:
		return front.Linger
	}
	return front.Close
}

// evidenceKey is the context key of the fields that say who has asked.
type evidenceKey struct{}

// refusedError is the refusal of a gateway in place of an answer.
type refusedError struct{ response refusal.Response }

// Error implements error.
func (e *refusedError) Error() string { return e.response.Phrase }

// unreachedError says why no gateway has answered.
type unreachedError struct{ err error }

// Error implements error.
func (e *unreachedError) Error() string { return e.err.Error() }

// roundTripper sends plain requests over streams to gateways.
type roundTripper struct{ uplink *Uplink }

// RoundTrip implements http.RoundTripper.
func (rt *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	fields := headOf(req)
	t := &tries{uplink: rt.uplink}
	for {
		s, err := rt.uplink.open(ctx, fields, req.Body == nil, t.avoid)
		if err != nil {
			if t.refused != nil {
				return nil, &refusedError{*t.refused}
			}
			return nil, &unreachedError{err}
		}
		x := &exchange{stream: s, req: req, proceed: make(chan struct{})}
		resp, err := x.answer(ctx)
		if err == nil {
			return resp, nil
		}
		refused, isRefusal := errors.AsType[*refusedError](err)
		again := false
		if isRefusal {
			again = t.refusedBy(s, refused.response)
		} else {
			again = t.failed(s, err)
		}
		if took := x.stop(); again && !took {
			continue
		}
		if t.refused != nil {
			return nil, &refusedError{*t.refused}
		}
		return nil, &unreachedError{t.err}
	}
}

// headOf returns the head of a request that package forward has built.
func headOf(req *http.Request) []h2.Field {
	fields := []h2.Field{
		{Name: ":method", Value: req.Method},
		{Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: req.Host},
		{Name: ":path", Value: pathOf(req)},
	}
	for name, values := range req.Header {
		switch name {
		case "Connection", "Te", "Transfer-Encoding", "Upgrade", "Content-Length", "Trailer":
			continue
		}
		for _, v := range values {
			fields = append(fields, h2.Field{Name: strings.ToLower(name), Value: v})
		}
	}
	if req.ContentLength > 0 || req.Header.Get("Content-Length") != "" {
		fields = append(fields, h2.Field{Name: "content-length", Value: strconv.FormatInt(max(0, req.ContentLength), 10)})
	}
	evidence, _ := req.Context().Value(evidenceKey{}).([]h2.Field)
	for _, f := range evidence {
		if f.Name != "traceparent" || req.Header.Get("Traceparent") == "" {
			fields = append(fields, f)
		}
	}
	return fields
}

// pathOf returns the value of :path.
func pathOf(req *http.Request) string {
	if path := req.URL.RequestURI(); path != "" && (req.Method != http.MethodOptions || req.URL.Path != "") {
		return path
	}
	return allowlist.Asterisk
}

// exchange is a plain request on a stream.
type exchange struct {
	stream  *stream
	req     *http.Request
	proceed chan struct{} // closed when the body is to be sent, if the client waits for that
	trace   *httptrace.ClientTrace

	sending chan struct{} // closed when the body is not read any more; nil without a body
	took    bool          // a byte of the body was read; set before sending is closed
	cancel  func() bool
}

// continueAfter is how long a gateway may take to say that it wants a body (RFC 9110 section
// 10.1.1).
const continueAfter = time.Second

// answer sends the body and waits for the head of the final answer.
func (x *exchange) answer(ctx context.Context) (*http.Response, error) {
	x.trace = httptrace.ContextClientTrace(ctx)
	x.cancel = context.AfterFunc(ctx, func() { x.stream.Reset(http2.ErrCodeCancel) })
	if x.req.Body != nil {
		x.sending = make(chan struct{})
		go x.send(ctx)
	}
	for {
		head, err := x.stream.Answer(ctx)
		if err != nil {
			return nil, err
		}
		status := statusOf(head)
		if status >= http.StatusOK {
			return x.response(head, status)
		}
		if err := x.interim(head, status); err != nil {
			return nil, err
		}
	}
}

// interim passes an interim answer on.
func (x *exchange) interim(head h2.Head, status int) error {
	if status == http.StatusContinue {
		if x.trace != nil && x.trace.Got100Continue != nil {
			x.trace.Got100Continue()
		}
		select {
		case <-x.proceed:
		default:
			close(x.proceed)
		}
	}
	if x.trace != nil && x.trace.Got1xxResponse != nil {
		return x.trace.Got1xxResponse(status, textproto.MIMEHeader(fieldsOf(head)))
	}
	return nil
}

// send sends the body.
func (x *exchange) send(ctx context.Context) {
	defer close(x.sending)
	if x.req.Header.Get("Expect") != "" {
		timer := time.NewTimer(continueAfter)
		defer timer.Stop()
		select {
		case <-x.proceed:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
	body := &countedBody{body: x.req.Body, took: &x.took}
	if _, err := io.Copy(streamWriter{x.stream}, body); err != nil || x.stream.CloseWrite() != nil {
		if body.failed { // the gateway must not take what it has for the whole
			x.stream.Reset(http2.ErrCodeCancel)
		}
	}
}

// stop ends the sending of the body, and reports whether a byte of it was read.
func (x *exchange) stop() (took bool) {
	x.cancel()
	if x.sending == nil {
		return false
	}
	select {
	case <-x.sending:
		return x.took
	default: // it is being read; package forward ends that
		return true
	}
}

// countedBody is the body of a request.
type countedBody struct {
	body   io.Reader
	took   *bool
	failed bool
}

// Read implements io.Reader.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	*b.took = *b.took || n > 0
	b.failed = err != nil && !errors.Is(err, io.EOF)
	return n, err
}

// streamWriter hides the methods of a stream that io.Copy would look for.
type streamWriter struct{ io.Writer }

// response returns the final answer, or the refusal of the gateway as an error.
func (x *exchange) response(head h2.Head, status int) (*http.Response, error) {
	header := fieldsOf(head)
	if values := header["Proxy-Status"]; len(values) > 0 {
		if s, ok := refusal.ParseStatus(values[0]); ok && s.Refuses() {
			return nil, &refusedError{readRefusal(x.stream, head)}
		}
	}
	resp := &http.Response{
		StatusCode: status, Status: strconv.Itoa(status) + " " + http.StatusText(status),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header, ContentLength: -1, Request: x.req,
	}
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		resp.ContentLength = n
	}
	resp.Body = &answerBody{exchange: x, resp: resp}
	return resp, nil
}

// fieldsOf returns the fields of a head without those that HTTP/1.1 does not have.
func fieldsOf(head h2.Head) http.Header {
	header := make(http.Header, len(head.Fields))
	for _, f := range head.Fields {
		if !strings.HasPrefix(f.Name, ":") {
			header.Add(f.Name, f.Value)
		}
	}
	return header
}

// answerBody is the body of an answer.
type answerBody struct {
	exchange *exchange
	resp     *http.Response
}

// Read implements io.Reader. At the end it sets the trailer of the answer.
func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.exchange.stream.Read(p)
	if errors.Is(err, io.EOF) {
		ctx, cancel := context.WithTimeout(b.exchange.req.Context(), 0) // without waiting
		defer cancel()
		if head, err := b.exchange.stream.Answer(ctx); err == nil {
			b.resp.Trailer = fieldsOf(head)
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	b.exchange.cancel()
	return b.exchange.stream.Close()
}
