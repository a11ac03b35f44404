package soak

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

// flood is the rate of the flood as a share of saturation. worse is the bar: how many
// times longer the requests of a quiet identity may take beside the flood. The run fails
// only at tolerant times the bar, in the best of the rounds: if the machine was busy for
// a moment, one round is bad; if exeat has a fault, all are.
const (
	flood    = 0.6
	worse    = 2
	tolerant = 5
	pause    = 20 * time.Millisecond // between two requests of the quiet identity
	rounds   = 6
)

// isolated measures requests of a quiet identity alone, and while another identity floods
// a gateway with the default limits.
func isolated(ctx context.Context, w *world, o options, out io.Writer) (faults []string, err error) {
	most, err := saturation(ctx, w, o.alone/3)
	if err != nil {
		return nil, err
	}
	g, err := w.serve(ctx, hasty)
	if err != nil {
		return nil, err
	}
	defer g.Stop()
	// The two take turns, so that other work of the machine is in both.
	quiet, hostile := w.caller(g, "quiet", "127.0.0.1"), w.caller(g, "hostile", "127.0.0.3")
	var alone, among []time.Duration
	var ratios []float64 // one for each round
	var answers flooded
	for range rounds {
		before, err := quiet.measure(ctx, o.alone/rounds)
		if err != nil {
			return nil, err
		}
		flooding, stop := context.WithCancel(ctx)
		var flooder sync.WaitGroup
		flooder.Go(func() { answers.run(flooding, hostile, flood*most) })
		beside, err := quiet.measure(ctx, o.alone/rounds)
		stop()
		flooder.Wait()
		if err != nil {
			return nil, err
		}
		ratios = append(ratios, p99(beside).Seconds()/p99(before).Seconds())
		alone, among = append(alone, before...), append(among, beside...)
	}
	least := slices.Min(ratios)
	_, _ = fmt.Fprintf(out, `isolation: saturated at %.0f denials a second, each with its handshake; flood of %.0f %% of that
  the flood was refused %d times by policy, %d times by a limit, and turned away %d times
  a quiet identity's new tunnel: alone p50 %s p99 %s, beside the flood p50 %s p99 %s, %.1f times (bar %d; of the rounds %.1f to %.1f)
`, most, 100*flood, answers.policy.Load(), answers.limit.Load(), answers.away.Load(),
		rounded(p50(alone)), rounded(p99(alone)), rounded(p50(among)), rounded(p99(among)),
		p99(among).Seconds()/p99(alone).Seconds(), worse, least, slices.Max(ratios))
	if least > worse*tolerant {
		faults = append(faults, fmt.Sprintf("p99 of a quiet identity is at least %.1f times its p99 alone", least))
	}
	return faults, nil
}

func rounded(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// saturation returns how many denied requests a gateway without limits answers in a
// second, to callers that send them as fast as they can.
func saturation(ctx context.Context, w *world, lasts time.Duration) (float64, error) {
	g, err := w.serve(ctx, generous+hasty)
	if err != nil {
		return 0, err
	}
	defer g.Stop()
	c := w.caller(g, "hostile", "127.0.0.3")
	asking, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	var n atomic.Int64
	var workers sync.WaitGroup
	start := time.Now()
	for range 4 * cores {
		workers.Go(func() {
			for asking.Err() == nil {
				if c.refused(context.WithoutCancel(ctx), load.Connect("evil.test:443"), "403") == nil {
					n.Add(1)
				}
			}
		})
	}
	workers.Wait()
	return float64(n.Load()) / time.Since(start).Seconds(), ctx.Err()
}

// flooded counts the answers to a flood: refused by policy, refused by a limit, or none.
type flooded struct{ policy, limit, away atomic.Int64 }

// run sends denied requests at a rate, whatever the answers are.
func (f *flooded) run(ctx context.Context, c *caller, perSecond float64) {
	const most = 256 // most requests at the same time; beyond it the flood waits
	var asking sync.WaitGroup
	defer asking.Wait()
	places := make(chan struct{}, most)
	tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		places <- struct{}{}
		asking.Go(func() {
			defer func() { <-places }()
			f.ask(context.WithoutCancel(ctx), c)
		})
	}
}

func (f *flooded) ask(ctx context.Context, c *caller) {
	answer, conn, err := c.Ask(ctx, load.Connect("evil.test:443"))
	if conn != nil {
		_ = conn.Close()
	}
	switch {
	case err != nil:
		f.away.Add(1)
	case strings.HasPrefix(answer, "HTTP/1.1 429 "):
		f.limit.Add(1)
	default:
		f.policy.Add(1)
	}
}

// measure makes a request at every pause, and returns how long each took.
func (c *caller) measure(ctx context.Context, lasts time.Duration) (took []time.Duration, err error) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for end := time.Now().Add(lasts); time.Now().Before(end); <-tick.C {
		start := time.Now()
		if err := c.roundTrip(ctx, 1<<10); err != nil {
			return nil, fmt.Errorf("a quiet identity: %w", err)
		}
		took = append(took, time.Since(start))
	}
	return took, ctx.Err()
}

func p50(all []time.Duration) time.Duration { return slices.Sorted(slices.Values(all))[len(all)/2] }

func p99(all []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(all))[len(all)*99/100]
}
