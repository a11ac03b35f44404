package agent

import (
	"context"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/front"
	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// server is the name of the agent in Proxy-Status.
const server = "exeat-agent"

// The bounds of what a gateway answers.
const (
	maxRefusal    = 64 << 10         // bytes of the body of a refusal
	answerTimeout = 2 * time.Minute  // for an answer to a CONNECT; a gateway that is gone is noticed earlier
	earlyTimeout  = 10 * time.Second // for the bytes that came behind a request, and for the body of a refusal
)

// forever is longer than any tunnel or exchange lasts: the gateway bounds them.
const forever = 10 * 365 * 24 * time.Hour

// plainIdle is how long an exchange may last in which no byte moves, so that a client which
// does not read holds nothing for ever.
const plainIdle = time.Hour

// client handles the requests of one connection of a client.
type client struct {
	agent   *Agent
	lasting context.Context //nolint:containedctx // that of the connection, for tunnels, which outlast their requests
	conn    *listen.Conn
	why     *refusal.Response // why every request is refused; nil if they are not
}

// Handle implements front.Handler.
func (c *client) Handle(ctx context.Context, r *front.Request) (a front.Answer) {
	defer func() {
		if cause := recover(); cause != nil {
			c.agent.panicked(ctx, cause, debug.Stack())
			a = front.Answer{Kind: front.Forwarded, End: front.Close}
		}
	}()
	c.conn.MarkUsed()
	if !c.conn.Begin() {
		return given(ownRefusal(r, http.StatusServiceUnavailable, "connection_limit_reached", "busy", "as many connections are open as may be"))
	}
	a = c.answer(ctx, r)
	if a.Kind != front.Opened { // a tunnel keeps its place
		done := a.Done
		a.Done = func(err error) {
			defer c.conn.End()
			if done != nil {
				done(err)
			}
		}
		if a.Kind == front.Forwarded { // the front does not call Done
			c.conn.End()
		}
	}
	return a
}

func (c *client) answer(ctx context.Context, r *front.Request) front.Answer {
	switch {
	case c.why != nil:
		return given(c.why)
	case r.Reason != allowlist.NoReason:
		refused := refusal.Refusal{Reason: r.Reason, Detail: r.Detail}
		refused.Decision.Request = r.Asked
		return front.Answer{Refusal: refused}
	case c.agent.draining.Load():
		return given(ownRefusal(r, http.StatusServiceUnavailable, "proxy_internal_error", "draining", "the agent is shutting down"))
	case r.IsPlain():
		return c.forward(ctx, r)
	}
	return c.connect(ctx, r)
}

// given returns the answer that refuses with a response.
func given(resp *refusal.Response) front.Answer { return front.Answer{Given: resp} }

// ownRefusal returns a refusal of the agent itself, which names the destination.
func ownRefusal(r *front.Request, status int, proxyError, reason, text string) *refusal.Response {
	sentence := text
	if !r.Asked.Dest.Host.IsZero() {
		sentence = r.Asked.Dest.String() + ": " + text
	}
	resp := refusal.Plain(server, status, proxyError, reason, sentence)
	return &resp
}

// noGateway returns the refusal of a request that no gateway was asked for.
func noGateway(r *front.Request, err error) *refusal.Response {
	return ownRefusal(r, http.StatusBadGateway, "destination_unavailable", "gateway-unavailable", err.Error())
}

// connect asks a gateway for a tunnel.
func (c *client) connect(ctx context.Context, r *front.Request) front.Answer {
	fields := append([]h2.Field{{Name: ":method", Value: http.MethodConnect}, {Name: ":authority", Value: r.Asked.Dest.String()}}, c.evidence(r)...)
	s, resp, err := c.agent.ask(ctx, fields, nil)
	switch {
	case resp != nil:
		return given(resp)
	case err != nil:
		return given(noGateway(r, err))
	}
	t := &relay{stream: s, local: r.Client, early: r.Early()}
	return front.Answer{
		Kind: front.Opened,
		Done: func(err error) {
			if err != nil {
				_ = s.Close()
				c.conn.End()
			}
		},
		Run: func() {
			defer c.conn.End()
			t.run(c.lasting)
		},
	}
}

// evidence returns the fields that say who has asked.
func (c *client) evidence(r *front.Request) []h2.Field {
	var fields []h2.Field
	trace := c.agent.cfg.TraceParent
	if r.Head != nil {
		if own := r.Head.Get("Traceparent"); own != "" {
			trace = own
		}
	}
	if trace != "" {
		fields = append(fields, h2.Field{Name: "traceparent", Value: trace})
	}
	if c.agent.cfg.Attribute != nil {
		if who := c.agent.cfg.Attribute(c.conn.Conn); who != "" {
			fields = append(fields, h2.Field{Name: "x-exeat-attributed", Value: who})
		}
	}
	return fields
}

// relay is a tunnel between a client and a gateway.
type relay struct {
	stream *stream
	local  net.Conn
	early  []byte // bytes that the client has sent behind its request
}

// run relays until the tunnel or ctx ends. For package tunnel the gateway is the client, because
// its side is a stream.
func (t *relay) run(ctx context.Context) {
	if len(t.early) > 0 {
		_ = t.stream.SetWriteDeadline(time.Now().Add(earlyTimeout)) // a stream takes any deadline
		if _, err := t.stream.Write(t.early); err != nil {
			t.stream.Abort()
			_ = t.local.Close()
			return
		}
		t.early = nil
	}
	relaying := tunnel.New(t.stream.Stream, t.local, tunnel.Config{Idle: forever, Max: forever})
	defer context.AfterFunc(ctx, func() { relaying.Close(tunnel.Drain) })()
	relaying.Run(nil)
}
