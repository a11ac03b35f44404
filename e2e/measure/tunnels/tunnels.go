package tunnels

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// exchangeSize is how many bytes a short tunnel carries each way.
const exchangeSize = 64

// newTunnels measures the cost of a short tunnel: handshake, CONNECT, one exchange,
// close.
func (b *bench) newTunnels(ctx context.Context) error {
	hybrid, err := b.world.mint(1, tls.X25519MLKEM768)
	if err != nil {
		return err
	}
	// newcomers returns callers whose certificates no peer has seen.
	newcomers := func() ([]*caller, error) { return b.world.mint(b.tunnels, tls.X25519) }
	for _, row := range []struct {
		figure  string
		callers func() ([]*caller, error)
		hybrid  bool
		bar     report.Bar
	}{
		{"new mTLS tunnel, one certificate", func() ([]*caller, error) { return b.callers[:1], nil }, false, report.Bar{Ratio: 1.1}},
		{"new mTLS tunnel, 1,000 certificates", func() ([]*caller, error) { return b.callers, nil }, false, report.Bar{Ratio: 1.3}},
		{"new mTLS tunnel, every certificate new", newcomers, false, report.Bar{Ratio: 1.3}},
		{"new mTLS tunnel, one certificate, X25519MLKEM768", func() ([]*caller, error) { return hybrid, nil }, true, report.Bar{}},
	} {
		err := b.paired(ctx, report.Row{Figure: row.figure, Unit: "ms", Bar: row.bar}, func(ctx context.Context, p *peer) (float64, error) {
			if row.hybrid && p.x25519 {
				return 0, errors.ErrUnsupported
			}
			callers, err := row.callers()
			if err != nil {
				return 0, err
			}
			return exchanges(ctx, p, callers, b.tunnels)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// quietTunnels measures the cost of evidence: exeat without it, and with all of it. Both
// processes are new, because a process that has seen many certificates has more memory
// and collects garbage less often.
func (b *bench) quietTunnels(ctx context.Context) error {
	quiet, err := b.world.startQuiet(ctx)
	if err != nil {
		return err
	}
	defer quiet.process.Stop()
	exeat, err := b.world.startExeat(ctx)
	if err != nil {
		return err
	}
	defer exeat.process.Stop()
	if err := warm(ctx, b.callers, quiet, exeat); err != nil {
		return err
	}
	row := report.Row{Figure: "new mTLS tunnel (left: exeat without spans, records to /dev/null)", Unit: "ms"}
	return b.compared(ctx, row, quiet, exeat, nil, func(ctx context.Context, p *peer) (float64, error) {
		return exchanges(ctx, p, b.callers[:1], b.tunnels)
	})
}

// exchanges opens n short tunnels for the callers in turn, and returns the processor time
// for one in milliseconds.
func exchanges(ctx context.Context, p *peer, callers []*caller, n int) (float64, error) {
	return perUnit(ctx, p, n, func(ctx context.Context, i int) error {
		return load.Exchange(ctx, p.client(callers[i%len(callers)]), p.secure.echo, exchangeSize)
	}, p.spans.tunnels)
}

// denials measures the cost of an answer 403, compared with the handshake of its
// connection.
func (b *bench) denials(ctx context.Context) error {
	err := b.paired(ctx, report.Row{Figure: "mTLS handshake alone", Unit: "ms"}, func(ctx context.Context, p *peer) (float64, error) {
		return perUnit(ctx, p, b.tunnels, func(ctx context.Context, _ int) error {
			return p.client(b.callers[0]).Greet(ctx)
		}, func(int) {})
	})
	if err != nil {
		return err
	}
	return b.denied(ctx)
}

// denied pairs a handshake alone with a handshake that a denial follows, both of exeat.
func (b *bench) denied(ctx context.Context) error {
	whole := report.Row{Figure: "mTLS handshake and 403", Unit: "ms"}
	extra := report.Row{Figure: "a denial itself (left: the handshake it came on)", Unit: "ms", Bar: report.Bar{Ratio: 1}}
	b.say(whole.Figure)
	client := b.exeat.client(b.callers[0])
	for range b.pairs {
		handshake, err := perUnit(ctx, b.exeat, b.tunnels, func(ctx context.Context, _ int) error { return client.Greet(ctx) }, func(int) {})
		if err != nil {
			return err
		}
		both, err := perUnit(ctx, b.exeat, b.tunnels, func(ctx context.Context, _ int) error {
			return client.Denied(ctx, deniedName)
		}, b.exeat.spans.decided)
		if err != nil {
			return err
		}
		whole.Ours = append(whole.Ours, both)
		extra.Floor, extra.Ours = append(extra.Floor, handshake), append(extra.Ours, both-handshake)
	}
	b.rows = append(b.rows, whole, extra)
	return nil
}

// perUnit calls do n times, then calls note with n, and returns the processor time of the
// peer for one call in milliseconds.
func perUnit(ctx context.Context, p *peer, n int, do func(ctx context.Context, i int) error, note func(n int)) (float64, error) {
	took, err := p.cpu(ctx, func(ctx context.Context) error {
		if err := load.Each(ctx, n, workers, do); err != nil {
			return err
		}
		note(n)
		return nil
	})
	return float64(took) / float64(time.Millisecond) / float64(n), err
}
