package forward

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/elazarl/goproxy"
)

// newProxy returns the goproxy server that connects the two sides. It does not use
// goproxy's constructor, which reads the environment and trusts any certificate. The
// server refuses requests that do not belong to a run, and never gets a CONNECT.
func newProxy() *goproxy.ProxyHttpServer {
	p := &goproxy.ProxyHttpServer{
		Logger:             discardLogger{},
		NonproxyHandler:    http.HandlerFunc(refuse),
		Tr:                 &http.Transport{DialContext: connect, DisableKeepAlives: true},
		KeepAcceptEncoding: true,
		KeepHeader:         true, // our fields are final; goproxy would remove Connection from every upgrade but WebSocket
	}
	p.OnRequest().HandleConnect(goproxy.AlwaysReject)
	p.OnRequest().DoFunc(func(req *http.Request, ctx *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		r := runOf(req.Context())
		if r == nil {
			return req, goproxy.NewResponse(req, goproxy.ContentTypeText, http.StatusForbidden, "")
		}
		ctx.RoundTripper = goproxy.RoundTripperFunc(r.roundTrip)
		return req, nil
	})
	return p
}

// discardLogger discards goproxy's messages about copies that ended, which the run notes
// itself.
type discardLogger struct{}

// Printf implements goproxy.Logger.
func (discardLogger) Printf(string, ...any) {}

func refuse(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }

// roundTrip sends the request to the origin and returns its answer. It notes an error in
// the run, since goproxy turns errors into text.
func (r *run) roundTrip(req *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
	transport := r.cfg.RoundTripper
	if r.lane != nil {
		transport = r.lane.transport
	}
	resp, err := transport.RoundTrip(req)
	if r.expect != nil {
		close(r.expect.final)
	}
	var protocol string
	if err == nil && resp.StatusCode < http.StatusOK { // 101, or less than three digits
		protocol = resp.Header.Get("Upgrade")
		if _, ours := resp.Body.(io.Writer); !ours || r.upstream == nil || !requestsAll(r.Upgrade, protocol) {
			_ = resp.Body.Close()
			err = unexpectedStatus(resp.StatusCode)
		}
	}
	if err == nil {
		err = r.checkHead(resp)
	}
	if err == nil && protocol != "" {
		err = r.switchProtocol(req.Context(), resp, protocol)
	}
	if err != nil {
		r.fail(err)
		return nil, err
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, run: r}
	return resp, nil
}

// checkHead checks the head of the final answer, and removes the fields that are not for
// the client.
func (r *run) checkHead(resp *http.Response) error {
	fields, err := map[string][]string(resp.Header), error(nil)
	if r.upstream != nil {
		fields, err = r.heads.last(resp)
	}
	if err == nil {
		err = check(resp, fields)
	}
	if err != nil {
		_ = resp.Body.Close()
		return err
	}
	r.nominated = nominated(slices.Values(fields["Connection"]))
	offers := offersLogin(resp.Header)
	if r.lane != nil && (offers || isLoggedIn(resp.Header)) {
		r.lane.dedicated = true
	}
	stripFields(resp.Header, r.nominated, resp.ProtoMinor, r.cfg)
	if _, dated := resp.Header["Date"]; !dated && resp.StatusCode >= http.StatusOK { // RFC 9110 section 6.6.1
		resp.Header["Date"] = []string{time.Now().UTC().Format(http.TimeFormat)}
	}
	if r.Note != nil {
		if note := r.Note(); note != "" {
			resp.Header[proxyStatus] = []string{note}
		}
	}
	switch {
	case !offers || resp.StatusCode != http.StatusUnauthorized:
	case r.lane == nil:
		r.loginProblem = refuseLogin(resp.Header)
	default:
		r.loginProblem = r.wire.offerLogin(resp.Header)
	}
	return nil
}

// errSwitched is returned to goproxy, for which there is no answer after an upgrade.
var errSwitched = errors.New("the origin has switched protocols")

// switchProtocol takes the connection on which the origin has agreed to a protocol (RFC
// 9110 section 7.8) as the origin's side of a tunnel. The transport no longer uses the
// connection, except that it may still write the rest of the request; switchProtocol
// waits for that.
func (r *run) switchProtocol(ctx context.Context, resp *http.Response, protocol string) error {
	var err error
	select {
	case err = <-r.upstream.upgradeSent:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = r.upstream.Close()
		return err
	}
	r.switched = &Switched{
		Conn: r.upstream.Conn, Dialed: r.upstream.dialed,
		Head: append(switchedHead(resp, protocol), r.heads.trailing...),
	}
	return errSwitched
}
