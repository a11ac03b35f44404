package tunnels

import (
	"context"
	"fmt"

	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// bulk measures the cost of bytes in a tunnel.
func (b *bench) bulk(ctx context.Context) error {
	secure, spliced := report.Bar{Ratio: 1}, report.Bar{Value: 0.25}
	for _, row := range []struct {
		figure   string
		bar      report.Bar
		transfer func(ctx context.Context, p *peer) error
	}{
		{"down an mTLS tunnel", secure, func(ctx context.Context, p *peer) error {
			return load.Down(ctx, p.client(b.callers[0]), p.secure.source, b.bytes)
		}},
		{"up an mTLS tunnel", secure, func(ctx context.Context, p *peer) error {
			return load.Up(ctx, p.client(b.callers[0]), p.secure.sink, b.bytes)
		}},
		{"down a clear tunnel", spliced, func(ctx context.Context, p *peer) error {
			return load.Down(ctx, p.clearClient(), p.clear.source, b.bytes)
		}},
		{"up a clear tunnel", spliced, func(ctx context.Context, p *peer) error {
			return load.Up(ctx, p.clearClient(), p.clear.sink, b.bytes)
		}},
	} {
		err := b.paired(ctx, report.Row{Figure: row.figure, Unit: "s/GB", Bar: row.bar}, func(ctx context.Context, p *peer) (float64, error) {
			took, err := p.cpu(ctx, func(ctx context.Context) error {
				defer p.spans.tunnels(1)
				return row.transfer(ctx, p)
			})
			return took.Seconds() / (float64(b.bytes) / 1e9), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// roundTrips measures the cost of a small message, there and back, in an open tunnel.
func (b *bench) roundTrips(ctx context.Context) error {
	figure := fmt.Sprintf("%d bytes there and back in an mTLS tunnel", pingSize)
	return b.paired(ctx, report.Row{Figure: figure, Unit: "µs"}, func(ctx context.Context, p *peer) (float64, error) {
		conn, err := p.client(b.callers[0]).Open(ctx, p.secure.echo)
		if err != nil {
			return 0, err
		}
		p.spans.decided(1)
		defer p.spans.closed(1)
		defer func() { _ = conn.Close() }()
		message := make([]byte, pingSize)
		took, err := p.cpu(ctx, func(ctx context.Context) error {
			return load.Each(ctx, b.trips, 1, func(context.Context, int) error { return load.Echo(conn, message) })
		})
		return micros(took) / float64(b.trips), err
	})
}
