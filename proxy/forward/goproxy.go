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

// newProxy makes the proxy between the two connections. It is made by hand:
// goproxy's constructor reads the environment and trusts any certificate. What
// comes to it without an exchange of ours it refuses, and it never sees a
// CONNECT.
func newProxy() *goproxy.ProxyHttpServer {
	p := &goproxy.ProxyHttpServer{
		Logger:             quiet{},
		NonproxyHandler:    http.HandlerFunc(refuse),
		Tr:                 &http.Transport{DialContext: connect, DisableKeepAlives: true},
		KeepAcceptEncoding: true,
		KeepHeader:         true, // what remains is ours; it would take Connection away from every upgrade but WebSocket
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

// quiet drops what goproxy says of copies that ended: the exchange knows.
type quiet struct{}

// Printf implements goproxy.Logger.
func (quiet) Printf(string, ...any) {}

func refuse(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }

// roundTrip asks the origin. Whatever fails is noted here, since goproxy makes
// a text of it.
func (r *run) roundTrip(req *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
	resp, err := r.lane.transport.RoundTrip(req)
	if r.expect != nil {
		close(r.expect.final)
	}
	var protocol string
	if err == nil && resp.StatusCode < http.StatusOK { // 101, or less than three digits
		protocol = resp.Header.Get("Upgrade")
		if _, ours := resp.Body.(io.Writer); !ours || !asksFor(r.Upgrade, protocol) {
			_ = resp.Body.Close()
			err = unaskedSwitch(resp.StatusCode)
		}
	}
	if err == nil {
		err = r.headed(resp)
	}
	if err == nil && protocol != "" {
		err = r.become(req.Context(), resp, protocol)
	}
	if err != nil {
		r.fail(err)
		return nil, err
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, run: r}
	return resp, nil
}

// headed takes from the head of the final answer what is not for the client.
func (r *run) headed(resp *http.Response) error {
	fields, err := r.heads.last(resp)
	if err == nil {
		err = check(resp, fields)
	}
	if err != nil {
		_ = resp.Body.Close()
		return err
	}
	r.nominated = nominated(slices.Values(fields["Connection"]))
	offers := offersLogin(resp.Header)
	if offers || isLoggedIn(resp.Header) {
		r.lane.own = true
	}
	strip(resp.Header, r.nominated, resp.ProtoMinor, r.cfg)
	if _, dated := resp.Header["Date"]; !dated && resp.StatusCode >= http.StatusOK { // RFC 9110 section 6.6.1
		resp.Header["Date"] = []string{time.Now().UTC().Format(http.TimeFormat)}
	}
	if offers && resp.StatusCode == http.StatusUnauthorized {
		resp.Header[proxySupport] = []string{"Session-Based-Authentication"} // RFC 4559 section 6
	}
	return nil
}

// errSwitched tells goproxy that there is no answer for it.
var errSwitched = errors.New("the origin has switched protocols")

// become makes a tunnel of the connection on which the origin has agreed to a
// protocol (RFC 9110 section 7.8). The transport has let go of it, and may still
// be about to send the rest of the request.
func (r *run) become(ctx context.Context, resp *http.Response, protocol string) error {
	var err error
	select {
	case err = <-r.upstream.sent:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = r.upstream.Close()
		return err
	}
	r.switched = &Switched{
		Conn: r.upstream.Conn, Dialed: r.upstream.dialed,
		Head: append(switchedHead(resp, protocol), r.heads.behind...),
	}
	return errSwitched
}
