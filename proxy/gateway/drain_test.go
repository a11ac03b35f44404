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

// pausing is a log that stops whoever says that the gateway drains, until the test
// lets it go on.
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

// ready asks the admin listener whether the gateway is ready.
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

// awaitClosed waits until nobody accepts at an address any more.
func awaitClosed(t *testing.T, at net.Addr) {
	t.Helper()
	for end := time.Now().Add(patience); isServed(at.Network(), at.String()); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s accepts connections still", at)
		}
	}
}

// TestTheOrderOfTheEnd: the gateway goes on when it is told to end, and says so to
// probes; then it answers 503, then it stops accepting, and tunnels may finish. What
// comes into force until then is obeyed.
func TestTheOrderOfTheEnd(t *testing.T) {
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
	if got := r.call(t).ask(t, http.MethodGet, "a.example:"+port); got != http.StatusOK {
		t.Errorf("while load balancers notice: answered %d", got)
	}
	proceed()

	awaitClosed(t, r.Listening()[0].Addr)
	if got := resting.ask(t, http.MethodGet, "a.example:"+port); got != http.StatusServiceUnavailable {
		t.Errorf("while tunnels finish: answered %d", got)
	}
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
	if len(ends) != 2 || ends["stays.example"] != tunnel.Client || ends["goes.example"] != tunnel.Revoked {
		t.Errorf("ends %v", ends)
	}
}

// TestWhatIsLeftIsCut once tunnels have had their time, and its record says so.
func TestWhatIsLeftIsCut(t *testing.T) {
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

// TestARestingConnectionDoesNotKeepTheGateway: it has asked for nothing.
func TestARestingConnectionDoesNotKeepTheGateway(t *testing.T) {
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
