package main

import (
	"context"

	"github.com/exeat-dev/exeat/e2e/bench/report"
)

// bulk measures what the bytes in a tunnel cost.
func (b *bench) bulk(ctx context.Context) error {
	bar := report.Bar{Ratio: 1}
	err := b.paired(ctx, report.Row{Figure: "down an mTLS tunnel", Unit: "s/GB", Bar: bar}, func(ctx context.Context, p *peer) (float64, error) {
		return b.perGigabyte(ctx, p, func(ctx context.Context) error {
			return p.client(b.callers[0]).Down(ctx, p.source, b.bytes)
		})
	})
	if err != nil {
		return err
	}
	return b.paired(ctx, report.Row{Figure: "up an mTLS tunnel", Unit: "s/GB", Bar: bar}, func(ctx context.Context, p *peer) (float64, error) {
		return b.perGigabyte(ctx, p, func(ctx context.Context) error {
			return p.client(b.callers[0]).Up(ctx, p.sink, b.bytes)
		})
	})
}

func (b *bench) perGigabyte(ctx context.Context, p *peer, transfer func(context.Context) error) (float64, error) {
	took, err := p.cpu(ctx, func(ctx context.Context) error {
		defer p.spans.tunnels(1)
		return transfer(ctx)
	})
	return took.Seconds() / (float64(b.bytes) / 1e9), err
}
