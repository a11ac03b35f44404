package tunnels

import (
	"context"
	"fmt"
	"net"

	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// The idle tunnels of a session are streamsFactor times those that are measured on
// connections of their own, and at most maxStreams, which the configuration allows.
const (
	streamsFactor = 2
	maxStreams    = streamsFactor * identities
)

// h2 compares tunnels over HTTP/2, all on one mTLS connection, with those of exeat that
// have a connection each.
func (b *bench) h2(ctx context.Context) error {
	for _, measure := range []func(context.Context) error{b.h2Tunnels, b.h2Bulk, b.h2RoundTrips, b.h2AtRest, b.h2Idle} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// sample measures something once.
type sample func(ctx context.Context) (float64, error)

// beside measures the samples in turn, and adds a row for each but the last one. The last
// sample stands on the right of all rows.
func (b *bench) beside(ctx context.Context, rows []report.Row, samples ...sample) error {
	b.say(rows[0].Figure)
	for range b.pairs {
		values := make([]float64, len(samples))
		for i, one := range samples {
			var err error
			if values[i], err = one(ctx); err != nil {
				return fmt.Errorf("%s: %w", rows[0].Figure, err)
			}
		}
		last := len(values) - 1
		for i := range rows {
			rows[i].Floor, rows[i].Ours = append(rows[i].Floor, values[i]), append(rows[i].Ours, values[last])
		}
	}
	b.rows = append(b.rows, rows...)
	return nil
}

// session begins a session of HTTP/2 with exeat.
func (p *peer) session(ctx context.Context, c *caller) (*load.Session, error) {
	return p.client(c).Session(ctx)
}

// h2Tunnels measures the cost of a short tunnel on a session that is open already.
func (b *bench) h2Tunnels(ctx context.Context) error {
	session, err := b.exeat.session(ctx, b.callers[0])
	if err != nil {
		return err
	}
	defer session.Close()
	short := func(p *peer, o load.Opener, echo string) sample {
		return func(ctx context.Context) (float64, error) {
			return perUnit(ctx, p, b.tunnels, func(ctx context.Context, _ int) error {
				return load.Exchange(ctx, o, echo, exchangeSize)
			}, p.spans.tunnels)
		}
	}
	return b.beside(ctx, []report.Row{
		{Figure: "new tunnel over HTTP/2 (left: clear, over the relay)", Unit: "ms", Bar: report.Bar{Ratio: 1.8}},
		{Figure: "new tunnel over HTTP/2 (left: clear, over exeat)", Unit: "ms", Bar: report.Bar{Ratio: 0.95}},
	},
		short(b.relay, b.relay.clearClient(), b.relay.clear.echo),
		short(b.exeat, b.exeat.clearClient(), b.exeat.clear.echo),
		short(b.exeat, session, b.exeat.secure.echo))
}

// h2Bulk measures the cost of bytes in a tunnel over HTTP/2.
func (b *bench) h2Bulk(ctx context.Context) error {
	p := b.exeat
	session, err := p.session(ctx, b.callers[0])
	if err != nil {
		return err
	}
	defer session.Close()
	for _, way := range []struct {
		name     string
		transfer func(ctx context.Context, o load.Opener) error
	}{
		{"down", func(ctx context.Context, o load.Opener) error { return load.Down(ctx, o, p.secure.source, b.bytes) }},
		{"up", func(ctx context.Context, o load.Opener) error { return load.Up(ctx, o, p.secure.sink, b.bytes) }},
	} {
		for _, client := range []struct {
			frames string
			bar    float64
			opener load.Opener
		}{
			{"frames of 64 KiB", 1.2, session},
			{"frames of 16 KiB", 1.6, &load.Framed{Client: p.client(b.callers[0])}},
		} {
			bytes := func(o load.Opener) sample {
				return func(ctx context.Context) (float64, error) {
					took, err := p.cpu(ctx, func(ctx context.Context) error {
						defer p.spans.tunnels(1)
						return way.transfer(ctx, o)
					})
					return took.Seconds() / (float64(b.bytes) / 1e9), err
				}
			}
			row := report.Row{
				Figure: fmt.Sprintf("%s a tunnel over HTTP/2, %s (left: over HTTP/1.1 and TLS)", way.name, client.frames),
				Unit:   "s/GB", Bar: report.Bar{Ratio: client.bar},
			}
			if err := b.beside(ctx, []report.Row{row}, bytes(p.client(b.callers[0])), bytes(client.opener)); err != nil {
				return err
			}
		}
	}
	return nil
}

// openEach opens n tunnels to the echo, and returns a function that closes them.
func (p *peer) openEach(ctx context.Context, o load.Opener, n int) (conns []net.Conn, done func(), err error) {
	conns = make([]net.Conn, n)
	err = load.Each(ctx, n, workers, func(ctx context.Context, i int) error {
		conn, err := o.Open(ctx, p.secure.echo)
		if err != nil {
			return err
		}
		conns[i] = conn
		return load.Echo(conn, make([]byte, exchangeSize))
	})
	done = func() {
		closeAll(conns)
		p.spans.closed(n)
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	p.spans.decided(n)
	return conns, done, nil
}

// h2Paths opens n tunnels to the echo over HTTP/1.1, and n over HTTP/2 on one session.
func (b *bench) h2Paths(ctx context.Context, n int) (h1, h2 []net.Conn, done func(), err error) {
	h1, closeH1, err := b.exeat.openEach(ctx, b.exeat.client(b.callers[0]), n)
	if err != nil {
		return nil, nil, nil, err
	}
	session, err := b.exeat.session(ctx, b.callers[0])
	if err != nil {
		closeH1()
		return nil, nil, nil, err
	}
	h2, closeH2, err := b.exeat.openEach(ctx, session, n)
	if err != nil {
		session.Close()
		closeH1()
		return nil, nil, nil, err
	}
	return h1, h2, func() {
		closeH1()
		closeH2()
		session.Close()
	}, nil
}

// h2RoundTrips measures the cost of a small message, there and back, while many tunnels
// send one as soon as the last has come back.
func (b *bench) h2RoundTrips(ctx context.Context) error {
	h1, h2, done, err := b.h2Paths(ctx, pingConns)
	if err != nil {
		return err
	}
	defer done()
	trips := func(conns []net.Conn) sample {
		return func(ctx context.Context) (float64, error) {
			message := make([][pingSize]byte, len(conns))
			took, err := b.exeat.cpu(ctx, func(ctx context.Context) error {
				return load.Each(ctx, len(conns), len(conns), func(ctx context.Context, i int) error {
					return load.Each(ctx, b.trips/len(conns), 1, func(context.Context, int) error { return load.Echo(conns[i], message[i][:]) })
				})
			})
			return micros(took) / float64(b.trips/len(conns)*len(conns)), err
		}
	}
	row := report.Row{
		Figure: fmt.Sprintf("%d bytes there and back in each of %d tunnels over HTTP/2 (left: over HTTP/1.1 and TLS)", pingSize, pingConns),
		Unit:   "µs", Bar: report.Bar{Ratio: 1.2},
	}
	return b.beside(ctx, []report.Row{row}, trips(h1), trips(h2))
}

// h2AtRest measures how long a small message takes, there and back, while nothing else is
// sent.
func (b *bench) h2AtRest(ctx context.Context) error {
	h1, h2, done, err := b.h2Paths(ctx, 1)
	if err != nil {
		return err
	}
	defer done()
	median := func(conns []net.Conn) sample {
		return func(ctx context.Context) (float64, error) {
			all, err := load.Ping(ctx, conns, pingSize, 0, pingDuration)
			return micros(load.Quantile(all, 0.5)), err
		}
	}
	row := report.Row{
		Figure: fmt.Sprintf("time of %d bytes there and back over HTTP/2, p50, at rest (left: over HTTP/1.1 and TLS)", pingSize),
		Unit:   "µs", Bar: report.Bar{Ratio: 1.6},
	}
	return b.beside(ctx, []report.Row{row}, median(h1), median(h2))
}

// h2Idle measures the memory of idle tunnels that are all on one session.
func (b *bench) h2Idle(ctx context.Context) error {
	n := streamsFactor * b.idle
	row := report.Row{Figure: fmt.Sprintf("idle tunnel over HTTP/2, resident, %d on one session", n), Unit: "KiB", Bar: report.Bar{Value: 10}}
	b.say(row.Figure)
	for range b.pairs {
		each, err := b.streamMemory(ctx, n)
		if err != nil {
			return err
		}
		row.Ours = append(row.Ours, each)
	}
	b.rows = append(b.rows, row)
	return nil
}

// streamMemory returns the memory of a new process, in KiB, for each of n idle tunnels of
// one session.
func (b *bench) streamMemory(ctx context.Context, n int) (float64, error) {
	p, err := b.world.startExeat(ctx)
	if err != nil {
		return 0, err
	}
	defer p.process.Stop()
	// What every process sets up once is part of base.
	if _, err := exchanges(ctx, p, b.callers, min(100, b.idle)); err != nil {
		return 0, err
	}
	session, err := p.session(ctx, b.callers[0])
	if err != nil {
		return 0, err
	}
	defer session.Close()
	base, err := p.stable(ctx, b.still)
	if err != nil {
		return 0, err
	}
	_, done, err := p.openEach(ctx, session, n)
	if err != nil {
		return 0, err
	}
	defer done()
	idle, err := p.stable(ctx, b.still)
	return float64(idle-base) / 1024 / float64(n), err
}
