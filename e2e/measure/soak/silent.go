package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

// Sizes of silent: a gateway with few slots, which waits long for silent callers.
const (
	silentCallers = 5_000 // for each listener
	silentSlots   = 2048
	perSilent     = 32 << 10 // most memory of a silent connection; a quarter of the slots at most stay open
)

// silent lets callers connect to listeners of each kind and send nothing. Their memory is
// bounded by the slots that they may have, and another caller's open tunnel goes on, as
// do new ones.
func silent(ctx context.Context, w *world, _ options, out io.Writer) (faults []string, err error) {
	for _, s := range []silence{
		{"on a unix socket", func(g *gateway, _ int) (string, string, string) { return "unix", g.Addresses[2], "" }},
		{"on loopback", func(g *gateway, i int) (string, string, string) { return "tcp", g.Addresses[1], address(i) }},
		{"over TLS from one address", func(g *gateway, _ int) (string, string, string) { return "tcp", g.Addresses[0], "127.0.0.9" }},
		{"over TLS from many addresses", func(g *gateway, i int) (string, string, string) { return "tcp", g.Addresses[0], address(i) }},
	} {
		found, err := s.try(ctx, w, out)
		if err != nil {
			return nil, fmt.Errorf("silent callers %s: %w", s.what, err)
		}
		for _, f := range found {
			faults = append(faults, "silent callers "+s.what+": "+f)
		}
	}
	return faults, nil
}

// address returns one of many addresses of loopback.
func address(i int) string { return fmt.Sprintf("127.1.%d.%d", i/250%250, 1+i%250) }

// silence is a kind of silent callers.
type silence struct {
	what string
	// to returns the network and the address to connect to, and the local address; ""
	// means any.
	to func(g *gateway, i int) (network, address, from string)
}

// crowd starts a gateway with a listener of each kind.
func (w *world) crowd(ctx context.Context) (*gateway, error) {
	child, err := w.Serve(ctx, "crowd.yaml", fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: soak, address: "127.0.0.1:0", identity: mtls}
  - {name: loopback, address: "127.0.0.1:0", identity: fixed, id: "spiffe://%s/good"}
  - {name: unix, address: "unix:%s", identity: fixed, id: "spiffe://%[1]s/good"}
admin: {address: "127.0.0.1:0"}
resolver:
  hosts:
    %[3]s: 127.0.0.1
records: {file: records.jsonl}
limits:
  connections: %[4]d
  connections_per_source: 100000
  handshakes_per_source: 100000
timeouts: {handshake: 10m, head: 10m, drain_delay: 0s, drain_timeout: 0s}
`, trustDomain, w.Path("crowd.sock"), goodHost, silentSlots), 4, "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
	if err != nil {
		return nil, err
	}
	child.Addresses[2] = strings.TrimPrefix(child.Addresses[2], "unix:")
	return &gateway{Process: child, address: child.Addresses[0], metrics: "http://" + child.Addresses[3] + "/metrics"}, nil
}

func (s *silence) try(ctx context.Context, w *world, out io.Writer) (faults []string, err error) {
	g, err := w.crowd(ctx)
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
	open, err := quiet.tunnel(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = open.Close() }()
	all, err := hold(ctx, silentCallers, func(ctx context.Context, i int) (net.Conn, error) {
		var d net.Dialer
		network, to, from := s.to(g, i)
		if from != "" {
			d.LocalAddr, d.Control = &net.TCPAddr{IP: net.ParseIP(from)}, latePort
		}
		return dial(ctx, &d, network, to)
	})
	defer func() {
		for _, conn := range all {
			_ = conn.Close()
		}
	}()
	if err == nil {
		err = g.displaces(ctx, silentCallers-silentSlots/4)
	}
	if err == nil { // the tunnel that was open, and a new one
		err = errors.Join(open.SetDeadline(time.Now().Add(patience)), load.Echo(open, make([]byte, 1<<10)), quiet.light(ctx))
	}
	if err != nil {
		return nil, err
	}
	during, err := g.usage(ctx)
	if err != nil {
		return nil, err
	}
	most, err := g.Resident()
	if err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(out, "%d silent callers %s: %d closed for others, %d descriptors, %.1f MiB resident more; a tunnel stays and others are served\n",
		silentCallers, s.what, during.displaced, during.descriptors, float64(most-resident)/(1<<20))
	if stay := during.descriptors - before.descriptors; stay > silentSlots/4+50 {
		faults = append(faults, fmt.Sprintf("%d descriptors more than before, for %d slots", stay, silentSlots/4))
	}
	if bound := int64(silentSlots / 4 * perSilent); most > resident+bound+moreHeap {
		faults = append(faults, fmt.Sprintf("%d MiB resident more, at most %d are fine", (most-resident)>>20, (bound+moreHeap)>>20))
	}
	_ = open.Close()
	for _, conn := range all {
		_ = conn.Close()
	}
	after, err := g.returns(ctx, before, quiet)
	return append(faults, stays(before, after)...), err
}

// dial connects, and waits while the listener's queue is full. For TCP, connect waits.
// For a nonblocking unix socket it returns EAGAIN (connect(2)), and the runtime does not
// wait for room in the queue.
func dial(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error) {
	for end := time.Now().Add(patience); ; {
		conn, err := d.DialContext(ctx, network, address)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return conn, err
		}
		time.Sleep(time.Millisecond)
	}
}

// displaces waits until the gateway has closed n connections for others.
func (g *gateway) displaces(ctx context.Context, n int) error {
	for end := time.Now().Add(patience); ; {
		now, err := g.usage(ctx)
		switch {
		case err != nil:
			return err
		case now.displaced >= n:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%d connections were closed for others, want %d", now.displaced, n)
		}
	}
}
