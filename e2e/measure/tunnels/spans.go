package tunnels

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/spans"
)

// spanTime is how long spans may take to arrive at the collector.
const spanTime = 30 * time.Second

// spanCount compares the number of spans that exeat must make with the number that has
// arrived. A nil spanCount, for a peer that makes none, counts nothing.
type spanCount struct {
	collector *spans.Collector
	expected  atomic.Int64
	requests  atomic.Int64 // number of decisions that must be recorded
}

// tunnels notes that n tunnels began and ended.
func (s *spanCount) tunnels(n int) {
	s.decided(n)
	s.closed(n)
}

// decided notes that n requests were allowed or denied, with a span for each.
func (s *spanCount) decided(n int) {
	if s != nil {
		s.expected.Add(int64(n))
		s.requests.Add(int64(n))
	}
}

// closed notes that n tunnels ended, with a span for each.
func (s *spanCount) closed(n int) {
	if s != nil {
		s.expected.Add(int64(n))
	}
}

// wait waits until every span has arrived, so that the processor time of exporting them
// counts for the load. A few more than expected may arrive, for lookups and dials that
// were slow on a busy machine; many more are an error.
func (s *spanCount) wait(ctx context.Context) error {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, spanTime)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		got, err := s.collector.Count(ctx)
		want := s.expected.Load()
		switch {
		case err != nil:
			return fmt.Errorf("waiting for %d spans, %d arrived: %w", want, got, err)
		case got > want+want/10+10:
			return fmt.Errorf("%d spans arrived, %d were expected", got, want)
		case got >= want:
			s.expected.Store(got)
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d spans, %d arrived: %w", want, got, context.Cause(ctx))
		}
	}
}
