package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/head"
)

// request builds the request for the origin from the parsed one. net/http reads the
// result. request returns an error, with its reason, if net/http has understood it
// differently.
func (r *run) request(ctx context.Context) (*http.Request, error) {
	authority := authorityOf(r.URL.Dest)
	text := r.rebuild(authority)
	r.head = len(text)
	req, err := r.wire.readRequest(text)
	if err != nil {
		return nil, err
	}
	if req.URL.RequestURI() != r.URL.Path+r.URL.Query && !strings.HasPrefix(r.URL.Path, "//") {
		req.URL.Opaque = r.URL.Path // unchanged: net/http would escape more characters
	}
	if req.Method != r.Head.Method || req.URL.Scheme != "http" || req.URL.Host != authority || req.Host != authority ||
		req.URL.User != nil || req.ContentLength != r.Body || req.URL.RequestURI() != r.URL.Path+r.URL.Query {
		return nil, &allowlist.ReasonError{Reason: allowlist.MalformedTarget, Err: errors.New("net/http reads the request differently")}
	}
	req.RequestURI = ""
	req.Close = false // it concerns the client's connection, not that to the origin
	if r.Upgrade != "" {
		req.Header.Set("Connection", "Upgrade")
		// net/http pools connections for "websocket" separately, and would not find
		// the one that the client has logged in on. The space prevents that; it is
		// trimmed when the field is written.
		req.Header.Set("Upgrade", r.Upgrade+" ")
	}
	if r.Body != 0 {
		r.body = newRequestBody(r, req)
		req.Body = r.body
	} else {
		req.Body = nil
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = nil // otherwise the transport adds its own
	}
	return req.WithContext(httptrace.WithClientTrace(context.WithValue(ctx, runKey{}, r), r.trace())), nil
}

// readHead has net/http read a head that rebuild has returned.
func readHead(r *bufio.Reader) (*http.Request, error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, &allowlist.ReasonError{Reason: allowlist.MalformedTarget, Err: fmt.Errorf("reading the rebuilt request: %w", err)}
	}
	return req, nil
}

// authorityOf returns the value of Host: the canonical host, with the port unless it is 80.
func authorityOf(dest allowlist.Destination) string {
	s := dest.String()
	if dest.Port == 80 {
		s = strings.TrimSuffix(s, ":80")
	}
	return s
}

// rebuild returns a head with the fields of the parsed one, without those that belong to
// the client's connection.
func (r *run) rebuild(authority string) string {
	ex, cfg := r.Exchange, r.cfg
	nominated := nominated(ex.Head.Values("Connection"))
	var b strings.Builder
	b.Grow(512)
	path := strings.TrimPrefix(ex.URL.Path, allowlist.Asterisk) // an absolute target has no asterisk
	b.WriteString(ex.Head.Method + " http://" + authority + path + ex.URL.Query + " HTTP/1.1\r\nHost: " + authority + "\r\n")
	forwards, bounded, _ := ex.Head.MaxForwards()
	if bounded {
		b.WriteString("Max-Forwards: " + strconv.Itoa(max(0, forwards-1)) + "\r\n")
	}
	for i := range ex.Head.Fields {
		f := &ex.Head.Fields[i]
		if bounded && strings.EqualFold(f.Name, "Max-Forwards") || !keepRequestField(ex, nominated, f.Name, f.Value, cfg) {
			continue
		}
		b.WriteString(f.Name + ": " + f.Value + "\r\n")
	}
	switch {
	case ex.Body == head.Chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n")
		trailers := announced(ex.Head, nominated)
		if len(trailers) > 0 {
			b.WriteString("Trailer: " + strings.Join(trailers, ", ") + "\r\n")
		}
		r.trailers = listed(slices.Values(trailers), textproto.CanonicalMIMEHeaderKey)
	case ex.Body > 0, ex.Head.Get("Content-Length") != "": // zero too: a POST without a body says so
		b.WriteString("Content-Length: " + strconv.FormatInt(ex.Body, 10) + "\r\n")
	}
	if !cfg.NoVia {
		b.WriteString("Via: " + ex.Head.Version() + " " + pseudonym + "\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}

// announced returns the trailers that the client has announced and that may be sent on.
func announced(h *head.Head, nominated map[variable]bool) []string {
	var trailers []string
	if h.Major != 1 {
		return nil // a front of HTTP/2 refuses a request with a trailer
	}
	for v := range h.Values("Trailer") {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.Trim(name, " \t"); isTrailer(name) && !nominated[variableOf(name)] {
				trailers = append(trailers, name)
			}
		}
	}
	return trailers
}
