package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/textproto"
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

// errNoAnswer is an origin that says something else than an answer.
var errNoAnswer = errors.New("the origin switched to a protocol nobody had asked for, or gave no status")

// roundTrip asks the origin. Whatever fails is noted here, since goproxy makes
// a text of it.
func (r *run) roundTrip(req *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
	ask := r.switchProtocols
	if r.lane != nil {
		ask = r.lane.transport.RoundTrip
	}
	resp, err := ask(req)
	if r.expect != nil {
		close(r.expect.final)
	}
	if err == nil && resp.StatusCode < http.StatusOK { // 101, or less than three digits
		_ = resp.Body.Close()
		resp, err = nil, errNoAnswer
	}
	if err == nil {
		err = r.headed(resp)
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
	if r.lane != nil && (offers || isLoggedIn(resp.Header)) {
		r.lane.own = true
	}
	strip(resp.Header, r.nominated, resp.ProtoMinor, r.cfg)
	if _, dated := resp.Header["Date"]; !dated && resp.StatusCode >= http.StatusOK { // RFC 9110 section 6.6.1
		resp.Header["Date"] = []string{time.Now().UTC().Format(http.TimeFormat)}
	}
	if r.lane != nil && offers && resp.StatusCode == http.StatusUnauthorized {
		resp.Header[proxySupport] = []string{"Session-Based-Authentication"} // RFC 4559 section 6
	}
	return nil
}

// errSwitched tells goproxy that there is no answer for it.
var errSwitched = errors.New("the origin has switched protocols")

// switchProtocols asks on a connection of its own, which becomes a tunnel if
// the origin agrees (RFC 9110 section 7.8). No transport watches over it: until
// then, the end of the exchange closes it.
func (r *run) switchProtocols(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	conn, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	r.connected(conn, false)
	if r.failure != nil {
		return nil, r.failure
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	resp, behind, err := r.exchangeHeads(conn, req)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		resp.Body = &closing{ReadCloser: resp.Body, conn: conn, stop: stop}
		return resp, nil
	}
	if !stop() {
		return nil, context.Cause(ctx) // and not that the connection is closed
	}
	var protocol string
	if err == nil {
		protocol, err = resp.Header.Get("Upgrade"), r.headed(resp)
	}
	if err == nil && !asksFor(r.Upgrade, protocol) {
		err = errNoAnswer
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	r.switched = &Switched{Conn: conn.Conn, Dialed: conn.dialed, Head: switchedHead(resp, protocol)}
	rest, _ := behind.Peek(behind.Buffered())
	r.switched.Head = append(r.switched.Head, rest...)
	return nil, errSwitched
}

// exchangeHeads sends the request and reads the head of the answer, bounded in
// bytes and time.
func (r *run) exchangeHeads(conn *upstream, req *http.Request) (*http.Response, *bufio.Reader, error) {
	if err := conn.SetDeadline(time.Now().Add(r.cfg.Response)); err != nil {
		return nil, nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, nil, fmt.Errorf("sending the request: %w", err)
	}
	bounded := &io.LimitedReader{R: conn, N: maxAnswerHead}
	behind := bufio.NewReader(bounded)
	for {
		resp, err := http.ReadResponse(behind, req)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the answer: %w", err)
		}
		if final := resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols; !final {
			if err := r.interim(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
				return nil, nil, err
			}
			continue
		}
		bounded.N = math.MaxInt64
		return resp, behind, conn.SetDeadline(time.Time{})
	}
}

// closing closes a connection of its own with the body of the answer.
type closing struct {
	io.ReadCloser
	conn io.Closer
	stop func() bool // the end of the exchange closes it no more
}

// Close implements io.Closer.
func (c *closing) Close() error {
	c.stop()
	return errors.Join(c.conn.Close(), c.ReadCloser.Close()) // which would read to the end first
}
