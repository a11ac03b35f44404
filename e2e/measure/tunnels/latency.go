package tunnels

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// The load of the latency figures: the number of connections, the size of a message in
// bytes, and the length of a measurement.
const (
	pingConns    = 16
	pingSize     = 512
	pingDuration = time.Second / 2
)

// latency measures round trips over one connection alone, and at half load: half of the
// most that the bare relay carries over the same connections. The added latency of a
// proxy is what a round trip takes longer than over direct connections at the same rate.
func (b *bench) latency(ctx context.Context) error {
	b.say("added latency")
	dials := []func(context.Context) (net.Conn, error){b.world.direct, b.relay.echoing(b.callers[0]), b.exeat.echoing(b.callers[0])}
	for _, o := range b.others {
		dials = append(dials, o.peer.echoing(b.callers[0]))
	}
	paths := make([][]net.Conn, len(dials))
	defer func() {
		for _, conns := range paths {
			closeAll(conns)
		}
		b.exeat.spans.closed(len(paths[2]))
	}()
	for i, dial := range dials {
		for range pingConns {
			conn, err := dial(ctx)
			if err != nil {
				return err
			}
			paths[i] = append(paths[i], conn)
		}
	}
	full, err := load.Ping(ctx, paths[1], pingSize, 0, pingDuration)
	if err != nil {
		return err
	}
	alone := make([][]net.Conn, len(paths))
	for i, conns := range paths {
		alone[i] = conns[:1]
	}
	if err := b.addedLatency(ctx, "one connection", alone, 0, [2]report.Bar{}); err != nil {
		return err
	}
	interval := 2 * pingConns * pingDuration / time.Duration(len(full))
	how := fmt.Sprintf("half load (%d/s)", pingConns*time.Second/interval)
	return b.addedLatency(ctx, how, paths, interval, [2]report.Bar{{Value: 200}, {Value: 1000}})
}

// addedLatency measures the paths in turn: direct, relay, exeat, others. Each connection
// begins a round trip every interval. The bars are for the median and the 99th
// percentile.
func (b *bench) addedLatency(ctx context.Context, how string, paths [][]net.Conn, interval time.Duration, bars [2]report.Bar) error {
	rows := [2]report.Row{
		{Figure: "added latency p50, " + how, Unit: "µs", Bar: bars[0]},
		{Figure: "added latency p99, " + how, Unit: "µs", Bar: bars[1]},
	}
	for i := range rows {
		rows[i].Others = make([][]float64, len(b.others))
	}
	var direct [2][]float64
	for range b.pairs {
		took := make([][2]float64, len(paths))
		for i, conns := range paths {
			all, err := load.Ping(ctx, conns, pingSize, interval, pingDuration)
			if err != nil {
				return err
			}
			took[i] = [2]float64{micros(load.Quantile(all, 0.5)), micros(load.Quantile(all, 0.99))}
		}
		for i := range rows {
			direct[i] = append(direct[i], took[0][i])
			rows[i].Floor = append(rows[i].Floor, took[1][i]-took[0][i])
			rows[i].Ours = append(rows[i].Ours, took[2][i]-took[0][i])
			for n := range b.others {
				rows[i].Others[n] = append(rows[i].Others[n], took[3+n][i]-took[0][i])
			}
		}
	}
	for i, row := range rows {
		row.Figure += fmt.Sprintf("; direct takes %.0f µs", report.Median(direct[i]))
		b.rows = append(b.rows, row)
	}
	return nil
}

// direct connects to the echo without a proxy.
func (w *world) direct(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", w.targets[0])
}

// echoing returns a function that opens a tunnel to the echo through the peer.
func (p *peer) echoing(c *caller) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := p.client(c).Open(ctx, p.secure.echo)
		if err != nil {
			return nil, err
		}
		p.spans.decided(1)
		return conn, nil
	}
}

// closeAll closes the connections that are not nil.
func closeAll(conns []net.Conn) {
	for _, conn := range conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
