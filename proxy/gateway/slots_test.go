package gateway

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/gateway/gatewaytest"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// crowded is a served gateway with 64 slots, with a listener of each kind. Its timeouts
// for callers are too long to matter.
type crowded struct {
	*rig
	ca     *authority.Authority
	port   string // port of the origin
	shares limit.Shares

	mu  sync.Mutex
	cut map[string]int // number of closed connections, by listener and cause
}

func newCrowded(t *testing.T) *crowded {
	t.Helper()
	const slots = 64
	c := &crowded{ca: newAuthority(t), port: newOrigin(t), shares: limit.SharesOf(slots), cut: map[string]int{}}
	c.rig = newRig(t, allowing("one", to("*.example")), func(cfg *Config) {
		cfg.Identity = gatewaytest.NewIdentity(snapshot(t, 1, c.ca))
		cfg.Listeners = append(cfg.Listeners,
			Listener{Name: "loopback", Address: "127.0.0.1:0", Identity: Fixed, ID: id("looped")},
			Listener{Name: "secure", Address: "127.0.0.1:0"})
		cfg.MaxConnections = slots
		cfg.HandshakeTimeout, cfg.Front.HeadTimeout, cfg.Front.KeepAlive = time.Hour, time.Hour, time.Hour
		cfg.Metrics.Shed = func(listener string, why limit.Cause, n int) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.cut[listener+" "+why.String()] += n
		}
	})
	c.serve(t)
	c.next(t, audit.EventPolicyReload)
	return c
}

// cuts returns how many connections were closed for a cause.
func (c *crowded) cuts(listener string, why limit.Cause) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[listener+" "+why.String()]
}

// dial connects to a listener from an address; "" means any address.
func (c *crowded) dial(t *testing.T, listener, from string) net.Conn {
	t.Helper()
	var at net.Addr
	for _, l := range c.Listening() {
		if l.Name == listener {
			at = l.Addr
		}
	}
	var d net.Dialer
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := d.DialContext(t.Context(), at.Network(), at.String())
	for end := time.Now().Add(patience); errors.Is(err, syscall.EAGAIN) && time.Now().Before(end); runtime.Gosched() {
		conn, err = d.DialContext(t.Context(), at.Network(), at.String()) // the queue of the unix socket was full
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// config returns a TLS configuration with the certificate of an identity; "" means
// none.
func (c *crowded) config(t *testing.T, name string) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ca.Bundle())
	config := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, RootCAs: roots}
	if name != "" {
		svid, err := c.ca.Mint(authority.Options{ID: id(name)})
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{svid.TLS()}
	}
	return config
}

// secure returns a caller over TLS.
func (c *crowded) secure(t *testing.T, config *tls.Config) *caller {
	t.Helper()
	conn := tls.Client(c.dial(t, "secure", ""), config)
	return &caller{conn, bufio.NewReader(conn)}
}

// clear returns a caller without TLS.
func (c *crowded) clear(t *testing.T, listener string) *caller {
	t.Helper()
	conn := c.dial(t, listener, "")
	return &caller{conn, bufio.NewReader(conn)}
}

// tunnel opens a tunnel and sends something through it.
func (c *crowded) tunnel(t *testing.T, from *caller) {
	t.Helper()
	if status := from.ask(t, http.MethodConnect, "open.example:"+c.port); status != http.StatusOK {
		t.Fatalf("a CONNECT is answered %d", status)
	}
	if err := from.echo(); err != nil {
		t.Fatal(err)
	}
}

// TestSilentCallers checks that 200 silent callers, on any listener and from any
// address, end no tunnel, and that the next caller with an identity is answered. The
// silent callers are counted, and a summary reports them.
func TestSilentCallers(t *testing.T) {
	const silent = 200
	s := limit.SharesOf(64)
	for _, row := range []struct {
		name     string
		listener string
		from     func(i int) string
		open     string // listener whose callers have a tunnel in the same share; "" if none
		cause    limit.Cause
		most     int // largest number of silent callers that may stay
	}{
		{"on a unix socket", "own", func(int) string { return "" }, "own", limit.CauseCaller, s.PerLocal - 1},
		{"on loopback", "loopback", func(int) string { return "" }, "loopback", limit.CauseCaller, s.PerLocal - 1},
		{"from many addresses on loopback", "loopback", func(i int) string { return fmt.Sprintf("127.0.1.%d", 1+i) }, "loopback", limit.CauseCaller, s.PerLocal - 1},
		{"over TLS from one address", "secure", func(int) string { return "127.0.0.2" }, "", limit.CauseSource, s.PerSource},
		{"over TLS from many addresses", "secure", func(i int) string { return fmt.Sprintf("127.0.1.%d", 1+i) }, "", limit.CauseUnidentified, s.Unidentified},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCrowded(t)
			open := []*caller{c.secure(t, c.config(t, "victim"))}
			if row.open != "" {
				open = append(open, c.clear(t, row.open))
			}
			for _, o := range open {
				c.tunnel(t, o)
			}
			for i := range silent {
				c.dial(t, row.listener, row.from(i))
			}
			for end := time.Now().Add(patience); c.cuts(row.listener, row.cause) < silent-row.most; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("%d are closed, want %d", c.cuts(row.listener, row.cause), silent-row.most)
				}
			}
			open = append(open, c.secure(t, c.config(t, "other")), c.clear(t, "own"), c.clear(t, "loopback"))
			for _, o := range open[len(open)-3:] {
				c.tunnel(t, o)
			}
			for i, o := range open {
				if err := o.echo(); err != nil {
					t.Errorf("tunnel %d: %v", i, err)
				}
			}
			var summed, told uint64
			for _, o := range open { // sent now, so that the end need not wait for them
				_ = o.Close()
			}
			for _, rec := range c.rest(t) {
				switch rec.Event { //nolint:exhaustive // the other events are about the tunnels
				case audit.EventSummary:
					summed += rec.Merged.Count
					counts := rec.Merged.Counts
					if rec.Listener == "" || !strings.Contains(rec.Detail, "closed for want of room: ") || len(counts) != 1 ||
						counts[0] != (audit.Count{Verdict: allowlist.Fail, Reason: allowlist.Busy, Count: rec.Merged.Count}) {
						t.Errorf("summary %+v %+v", rec, rec.Merged)
					}
				case audit.EventDecision:
					told++
				}
			}
			all := 0
			for _, n := range c.cut {
				all += n
			}
			if summed != uint64(all) || told != uint64(len(open)) || all > silent-row.most+3 {
				t.Errorf("%d closed in summaries, %d counted, want about %d; %d decisions of %d", summed, all, silent-row.most, told, len(open))
			}
		})
	}
}

// TestAnIdentityThatHasItsShare checks that an identity which has its share of slots
// gets an answer, keeps its connections, and costs no other identity anything. Silent
// connections to a listener do not count against connections with requests.
func TestAnIdentityThatHasItsShare(t *testing.T) {
	c := newCrowded(t)
	s := c.shares
	for _, row := range []struct {
		name  string
		call  func() *caller
		share int
	}{
		{"an identity", func() func() *caller {
			config := c.config(t, "hog")
			return func() *caller { return c.secure(t, config) }
		}(), s.PerIdentity},
		{"a user of a unix socket", func() *caller { return c.clear(t, "own") }, s.PerLocal},
	} {
		t.Run(row.name, func(t *testing.T) {
			for range 3 * row.share { // silent connections, which are closed soon if they are in the way of others
				if row.share == s.PerLocal {
					row.call()
				}
			}
			var open []*caller
			for range row.share {
				one := row.call()
				c.tunnel(t, one)
				open = append(open, one)
				c.decision(t, allowlist.Allow, allowlist.NoReason)
			}
			if status := row.call().ask(t, http.MethodConnect, "open.example:"+c.port); status != http.StatusServiceUnavailable {
				t.Errorf("one more is answered %d", status)
			}
			if rec := c.decision(t, allowlist.Fail, allowlist.Busy); rec.Status != 503 || !strings.Contains(rec.Detail, "as many connections open as it may") {
				t.Errorf("record %+v", rec)
			}
			// A caller that sends nothing and leaves has one record as well.
			gone := row.call()
			if secure, ok := gone.Conn.(*tls.Conn); ok {
				if err := secure.HandshakeContext(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			_ = gone.Close()
			if rec := c.decision(t, allowlist.Fail, allowlist.Busy); rec.Status != 0 || rec.Method != "" || rec.Identity.IsZero() {
				t.Errorf("record %+v", rec)
			}
			c.tunnel(t, c.secure(t, c.config(t, "bystander")))
			c.decision(t, allowlist.Allow, allowlist.NoReason)
			for _, o := range open {
				if err := o.echo(); err != nil {
					t.Error(err)
				}
				_ = o.Close()
			}
		})
	}
}

// TestRefusedCallerIsNotReportedAgain checks that callers which were refused, and keep
// their connections open after the answer, have one record each. They are counted
// nowhere else when these connections are closed to make room.
func TestRefusedCallerIsNotReportedAgain(t *testing.T) {
	c := newCrowded(t)
	for range c.shares.PerLocal {
		c.tunnel(t, c.clear(t, "own"))
		c.decision(t, allowlist.Allow, allowlist.NoReason)
	}
	for range 4 * c.shares.PerSource {
		one := c.clear(t, "own")
		if status := one.ask(t, http.MethodConnect, "open.example:"+c.port); status != http.StatusServiceUnavailable {
			t.Errorf("one more is answered %d", status)
		}
		if _, err := io.Copy(io.Discard, one.reader); err != nil { // until the gateway closes its side
			t.Error(err)
		}
		c.decision(t, allowlist.Fail, allowlist.Busy)
	}
	if n := c.cuts("own", limit.CauseSource); n != 0 {
		t.Errorf("%d are counted as closed", n)
	}
}

// decision waits for the next record of a decision.
func (c *crowded) decision(t *testing.T, verdict allowlist.Verdict, reason allowlist.Reason) audit.Record {
	t.Helper()
	for {
		select {
		case rec := <-c.sink.records:
			if rec.Event != audit.EventDecision {
				continue
			}
			if rec.Verdict != verdict || rec.Reason != reason {
				t.Fatalf("record %+v, want %s %s", rec, verdict, reason)
			}
			return rec
		case <-time.After(patience):
			t.Fatal("no record of a decision")
		}
	}
}

// TestCallersWithoutAnIdentity checks that callers without an identity keep to their
// share even after they were answered, and that another connection from the same address
// replaces an idle one.
func TestCallersWithoutAnIdentity(t *testing.T) {
	c := newCrowded(t)
	config := c.config(t, "")
	most := 4 * c.shares.PerSource
	for answered, end := 0, time.Now().Add(patience); answered < most; {
		if time.Now().After(end) {
			t.Fatalf("%d of %d are answered", answered, most)
		}
		one := c.secure(t, config)
		_, err := io.WriteString(one, "GET http://open.example/ HTTP/1.1\r\nHost: open.example\r\n\r\n")
		if err != nil {
			continue // all connections before this one are still being answered
		}
		resp, err := http.ReadResponse(one.reader, nil)
		if err != nil {
			continue
		}
		if answered++; resp.StatusCode != http.StatusProxyAuthRequired || resp.Close {
			t.Fatalf("answered %s, closing %v", resp.Status, resp.Close)
		}
	}
	if n := c.cuts("secure", limit.CauseSource); n < most-c.shares.PerSource {
		t.Errorf("%d are closed for %d that rest, of which one address may have %d", n, most, c.shares.PerSource)
	}
}

// TestHalfAHeadOnAConnectionThatMakesRoom checks that the record of an incomplete
// request says that its connection was closed to make room, and not that the caller
// left.
func TestHalfAHeadOnAConnectionThatMakesRoom(t *testing.T) {
	c := newCrowded(t)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		half := c.dial(t, "own", "")
		if _, err := io.WriteString(half, "CONNECT open.example:443 HTTP/1.1\r\nHost: "); err != nil {
			t.Fatal(err)
		}
		for range c.shares.PerLocal {
			c.dial(t, "own", "")
		}
		_, _ = io.Copy(io.Discard, half) // until it is closed
		select {
		case rec := <-c.sink.records:
			if rec.Event == audit.EventSummary {
				continue
			}
			if rec.Event != audit.EventDecision || rec.Verdict != allowlist.Fail || rec.Reason != allowlist.Busy || rec.Status != 0 {
				t.Errorf("record %+v", rec)
			}
			return
		default: // it was closed before the half was read, or the record is on its way
		}
	}
	t.Error("an incomplete request is never recorded")
}

// TestClosedConnectionsAreReportedOnceASecond checks that each listener has one record a
// second of connections that were closed to make room, whatever their number, and a last
// record at the end.
func TestClosedConnectionsAreReportedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{policies: gatewaytest.NewPolicy(nil)}
		cfg := r.config(t)
		if err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		c := newShedReporter(&cfg)
		one, other := c.counter("one"), c.counter("other")
		for range 500 {
			one(limit.CauseSource)
			time.Sleep(time.Millisecond)
		}
		one(limit.CauseAll)
		other(limit.CauseCaller)
		time.Sleep(2 * shedReportEvery)
		one(limit.CauseUnidentified)
		c.close()
		c.close() // nothing is reported twice
		time.Sleep(2 * shedReportEvery)
		var got []string
		for _, rec := range r.rest(t) {
			got = append(got, fmt.Sprint(rec.Listener, " ", rec.Merged.Count, " in ", rec.Merged.Last.Sub(rec.Merged.First), ": ", rec.Detail))
		}
		want := []string{
			"one 501 in 500ms: connections closed for want of room: source 500, all 1",
			"other 1 in 0s: connections closed for want of room: caller 1",
			"one 1 in 0s: connections closed for want of room: unidentified 1",
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("told\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}
