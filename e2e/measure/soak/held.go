package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

// What callers keep open, and how much memory a gateway may use for each, resident: a
// bound that is some times the usual amount.
const (
	halfOpen    = 10_000
	perHalfOpen = 32 << 10
	tunnels     = 4096 // the default of limits.tunnels
	perTunnel   = 96 << 10
)

// patient configures a handshake time that is longer than the callers of held need, the
// default limit of tunnels, and four times as many slots as halfOpen, because callers
// without an identity may have a quarter of them.
const patient = `limits:
  connections: 40960
  connections_per_source: 100000
  handshakes_per_source: 100000
  requests_per_identity: 100000
  connects_per_second: 100000
timeouts: {handshake: 60s, client_hello: 60s, drain_delay: 0s, drain_timeout: 0s}
`

// held lets callers keep open as much as they can: handshakes that they do not finish,
// and tunnels that they do not use.
func held(ctx context.Context, w *world, _ options, out io.Writer) (faults []string, err error) {
	for _, h := range []holding{
		{"half-open handshakes", halfOpen, perHalfOpen, func(ctx context.Context, g *gateway, i int) (net.Conn, error) {
			return w.caller(g, "", fmt.Sprintf("127.0.0.%d", 2+i%10)).beginHello(ctx)
		}, nil},
		{"idle tunnels", tunnels, perTunnel, func(ctx context.Context, g *gateway, _ int) (net.Conn, error) {
			return w.caller(g, "hostile", "127.0.0.2").tunnel(ctx)
		}, func(ctx context.Context, g *gateway) error {
			return w.caller(g, "hostile", "127.0.0.2").refused(ctx, load.Connect(w.target()), "429")
		}},
	} {
		found, err := h.try(ctx, w, out)
		if err != nil {
			return nil, fmt.Errorf("%d %s: %w", h.n, h.what, err)
		}
		faults = append(faults, found...)
	}
	return faults, nil
}

// holding is a kind of connection that callers keep open.
type holding struct {
	what string
	n    int
	most int64 // bytes for each
	open func(ctx context.Context, g *gateway, i int) (net.Conn, error)
	full func(ctx context.Context, g *gateway) error // checks what must be so when all are open; nil checks nothing
}

// try opens the connections, and checks the gateway's memory, that others are served, and
// that nothing is left when the connections have ended.
func (h *holding) try(ctx context.Context, w *world, out io.Writer) (faults []string, err error) {
	g, err := w.serve(ctx, patient)
	if err != nil {
		return nil, err
	}
	defer g.Stop()
	quiet := w.caller(g, "quiet", "127.0.0.1")
	before, err := g.leastUsage(ctx, quiet)
	if err != nil {
		return nil, err
	}
	resident, err := g.Resident()
	if err != nil {
		return nil, err
	}
	all, err := hold(ctx, h.n, func(ctx context.Context, i int) (net.Conn, error) { return h.open(ctx, g, i) })
	if err == nil {
		err = g.holds(ctx, before.descriptors+h.n*99/100) // some of the descriptors of before may be closed by now
	}
	if err == nil {
		err = quiet.light(ctx)
	}
	if err == nil && h.full != nil {
		err = h.full(ctx, g)
	}
	most, residentErr := g.Resident()
	for _, conn := range all {
		_ = conn.Close()
	}
	if err := errors.Join(err, residentErr); err != nil {
		return nil, err
	}
	each := (most - resident) / int64(h.n)
	_, _ = fmt.Fprintf(out, "%d %s: %.1f KiB each, %.0f MiB resident in all; others are served\n",
		h.n, h.what, float64(each)/1024, float64(most)/(1<<20))
	if each > h.most {
		faults = append(faults, fmt.Sprintf("one of %d %s holds %d KiB, at most %d are fine", h.n, h.what, each>>10, h.most>>10))
	}
	after, err := g.returns(ctx, before, quiet)
	return append(faults, stays(before, after)...), err
}

// returns waits until the gateway uses no more than before, for at most 20 s, and returns
// its usage. The slowest attack may take that long.
func (g *gateway) returns(ctx context.Context, before usage, quiet *caller) (usage, error) {
	after, err := g.leastUsage(ctx, quiet)
	for end := time.Now().Add(20 * time.Second); err == nil && len(stays(before, after)) > 0 && time.Now().Before(end); {
		after, err = g.leastUsage(ctx, quiet)
	}
	return after, err
}

// hold opens n connections, and returns those that it could open.
func hold(ctx context.Context, n int, open func(context.Context, int) (net.Conn, error)) (all []net.Conn, err error) {
	var mu sync.Mutex
	err = load.Each(ctx, n, 8, func(ctx context.Context, i int) error {
		conn, err := open(ctx, i)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, conn)
		return nil
	})
	return all, err
}

// holds waits until the gateway has that many descriptors. It accepts connections a
// moment after callers have connected.
func (g *gateway) holds(ctx context.Context, descriptors int) error {
	for end := time.Now().Add(patience); ; {
		now, err := g.usage(ctx)
		switch {
		case err != nil:
			return err
		case now.descriptors >= descriptors:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("the gateway has %d descriptors, want %d", now.descriptors, descriptors)
		}
	}
}

// beginHello begins a handshake.
func (c *caller) beginHello(ctx context.Context) (net.Conn, error) {
	conn, err := c.raw(ctx)
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	return conn, err
}
