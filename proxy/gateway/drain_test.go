package gateway

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// pausing is a log handler that blocks the message that the gateway drains until the
// test releases it.
type pausing struct{ begun, proceed chan struct{} }

func (pausing) Enabled(context.Context, slog.Level) bool { return true }
func (p pausing) WithAttrs([]slog.Attr) slog.Handler     { return p }
func (p pausing) WithGroup(string) slog.Handler          { return p }

func (p pausing) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "draining" {
		p.begun <- struct{}{}
		<-p.proceed
	}
	return nil
}

// ready queries the admin listener and returns whether the gateway is ready.
func (r *rig) ready(t *testing.T) (status int, text string) {
	t.Helper()
	listening := r.Listening()
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + listening[len(listening)-1].Addr.String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// awaitClosed waits until connections to an address are refused.
func awaitClosed(t *testing.T, at net.Addr) {
	t.Helper()
	for end := time.Now().Add(patience); isServed(at.Network(), at.String()); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s accepts connections still", at)
		}
	}
}

// TestTheOrderOfTheShutdown checks that the gateway continues to serve when its context
// is done. It is not ready, ends idle connections, and marks each answer as the last one
// of its connection. Then it answers 503, then it stops accepting, and tunnels may
// finish. States that come into force until then are enforced.
func TestTheOrderOfTheShutdown(t *testing.T) {
	port := newOrigin(t)
	log := pausing{make(chan struct{}, 1), make(chan struct{})}
	proceed := sync.OnceFunc(func() { close(log.proceed) })
	r := newRig(t, allowing("one", to("*.example")), func(c *Config) {
		c.Log, c.DrainTimeout = slog.New(log), patience
		c.Admin = Admin{Address: "127.0.0.1:0", Metrics: http.NotFoundHandler()}
	})
	stop, served := r.serve(t)
	t.Cleanup(proceed)
	r.next(t, audit.EventPolicyReload)
	resting, stays, goes := r.call(t), r.call(t), r.call(t)
	if got := resting.ask(t, http.MethodGet, "a.example:"+port); got != http.StatusOK {
		t.Fatalf("answered %d", got)
	}
	for c, host := range map[*caller]string{stays: "stays.example:", goes: "goes.example:"} {
		if got := c.ask(t, http.MethodConnect, host+port); got != http.StatusOK {
			t.Fatalf("answered %d", got)
		}
	}
	if status, _ := r.ready(t); status != http.StatusOK {
		t.Fatalf("not ready: %d", status)
	}

	stop()
	<-log.begun
	if status, text := r.ready(t); status != http.StatusServiceUnavailable || !strings.Contains(text, "draining") {
		t.Errorf("while load balancers notice: ready %d %q", status, text)
	}
	for host, want := range map[string]int{"a.example:" + port: http.StatusOK, "denied.test:80": http.StatusForbidden} {
		c := r.call(t)
		if got, last := c.get(t, host); got != want || !last {
			t.Errorf("while load balancers notice: answered %d, the last: %v; want %d", got, last, want)
		}
		_ = c.Close()
	}
	if rest, err := io.ReadAll(resting.reader); len(rest) > 0 || err != nil {
		t.Errorf("a connection at rest got %q, %v", rest, err)
	}
	_ = resting.Close()
	silent := r.call(t)
	opened := r.call(t) // when this call is answered, the previous connection was accepted as well
	if got := opened.ask(t, http.MethodConnect, "opened.example:"+port); got != http.StatusOK || opened.echo() != nil {
		t.Errorf("while load balancers notice: answered %d", got)
	}
	_ = opened.Close()
	proceed()

	awaitClosed(t, r.Listening()[0].Addr)
	if got, last := silent.get(t, "a.example:"+port); got != http.StatusServiceUnavailable || !last {
		t.Errorf("while tunnels finish: answered %d, the last: %v", got, last)
	}
	_ = silent.Close()
	if status, _ := r.ready(t); status != http.StatusServiceUnavailable {
		t.Errorf("while tunnels finish: ready %d", status)
	}
	if err := stays.echo(); err != nil {
		t.Errorf("while tunnels finish: %v", err)
	}
	r.policies.Put(allowing("two", to("stays.example")))
	if rest, err := io.ReadAll(goes.reader); len(rest) > 0 {
		t.Errorf("a tunnel that is forbidden by now got %q, %v", rest, err)
	}
	_ = goes.Close()
	if err := stays.echo(); err != nil {
		t.Errorf("a tunnel that is still allowed: %v", err)
	}
	select {
	case <-served:
		t.Error("Serve has returned before the last tunnel has ended")
	default:
	}
	_ = stays.Close()
	<-served
	for _, l := range r.Listening() {
		if isServed(l.Addr.Network(), l.Addr.String()) {
			t.Errorf("listener %s is open", l.Name)
		}
	}
	if n := r.Registry().Len(); n != 0 {
		t.Errorf("%d are in the registry", n)
	}
	ends := map[string]tunnel.Reason{}
	for _, rec := range r.rest(t) {
		if rec.Event == audit.EventTunnelClose && rec.Protocol == audit.ProtocolConnect {
			ends[rec.Dest.Host.String()] = rec.CloseReason
		}
	}
	delete(ends, "opened.example")
	if len(ends) != 2 || ends["stays.example"] != tunnel.Client || ends["goes.example"] != tunnel.Revoked {
		t.Errorf("ends %v", ends)
	}
}

// TestTunnelsEndAfterTheDrainTimeout checks that tunnels which are left after the drain
// timeout are closed, and that their records say so.
func TestTunnelsEndAfterTheDrainTimeout(t *testing.T) {
	port := newOrigin(t)
	r := newRig(t, allowing("one", to("a.example")), nil)
	stop, served := r.serve(t)
	r.next(t, audit.EventPolicyReload)
	c := r.call(t)
	if got := c.ask(t, http.MethodConnect, "a.example:"+port); got != http.StatusOK {
		t.Fatalf("answered %d", got)
	}
	r.next(t, audit.EventDecision)
	stop()
	<-served
	if rest, err := io.ReadAll(c.reader); len(rest) > 0 {
		t.Errorf("the tunnel got %q, %v", rest, err)
	}
	if got := r.next(t, audit.EventTunnelClose); got.CloseReason != tunnel.Drain || got.Reason != allowlist.NoReason {
		t.Errorf("record %+v", got)
	}
}

// TestIdleConnectionDoesNotDelayTheShutdown checks that an idle connection does not
// delay the end of the gateway.
func TestIdleConnectionDoesNotDelayTheShutdown(t *testing.T) {
	r := newRig(t, allowing("one", to("a.example")), func(c *Config) { c.DrainTimeout = time.Hour })
	stop, served := r.serve(t)
	c := r.call(t)
	if got := c.ask(t, http.MethodGet, "b.example:80"); got != http.StatusForbidden {
		t.Fatalf("answered %d", got)
	}
	stop()
	select {
	case <-served:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
}

// TestDialAtTheDrainTimeoutIsAnswered checks that a request which is being dialled when
// the drain timeout ends gets a 503 as the last answer of its connection, and a record.
func TestDialAtTheDrainTimeoutIsAnswered(t *testing.T) {
	const requests = 20
	dialling := make(chan struct{}, requests)
	r := newRig(t, allowing("one", to("*.example")), func(c *Config) {
		c.Resolver.Resolve = func(ctx context.Context, _ *allowlist.Decision) ([]allowlist.Resolved, error) {
			dialling <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	stop, served := r.serve(t)
	r.next(t, audit.EventPolicyReload)
	callers := make([]*caller, requests)
	for i := range callers {
		callers[i] = r.call(t)
		method := http.MethodConnect
		target := "a.example:443"
		if i%2 == 0 {
			method, target = http.MethodGet, "http://a.example/"
		}
		if _, err := io.WriteString(callers[i], method+" "+target+" HTTP/1.1\r\nHost: a.example\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-dialling
	}
	stop()
	for i, c := range callers {
		resp, err := http.ReadResponse(c.reader, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_ = c.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || !resp.Close || !strings.Contains(resp.Header.Get("Proxy-Status"), "reason=draining") {
			t.Errorf("request %d: %s %v", i, resp.Status, resp.Header)
		}
	}
	<-served
	answered := 0
	for _, rec := range r.rest(t) {
		if rec.Event == audit.EventDecision && rec.Reason == allowlist.Draining && rec.Status == http.StatusServiceUnavailable {
			answered++
		}
	}
	if answered != requests {
		t.Errorf("%d records of an answer, want %d", answered, requests)
	}
}

// TestUnreadAnswerDelaysTheShutdownByABoundedTime checks that a client which does not
// read its last answer delays the end of the gateway no longer than LastAnswers.
func TestUnreadAnswerDelaysTheShutdownByABoundedTime(t *testing.T) {
	r := newRig(t, allowing("one", to("a.example")), nil)
	stop, served := r.serve(t)
	c := r.call(t)
	if _, err := io.WriteString(c, "GET http://b.example/ HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r.next(t, audit.EventPolicyReload)
	r.next(t, audit.EventDecision)
	begin := time.Now() // the connection lingers after its answer, because the client does not close
	stop()
	<-served
	if took := time.Since(begin); took > LastAnswers+patience/2 {
		t.Errorf("it ended after %s", took)
	}
}
