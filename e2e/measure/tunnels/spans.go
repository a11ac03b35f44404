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

// spanCount compares the spans that exeat must make with those that arrived.
// A nil one, for a peer that makes none, counts nothing.
type spanCount struct {
	collector *spans.Collector
	expected  atomic.Int64
	requests  atomic.Int64 // decisions that must have been recorded
}

// tunnels notes n tunnels that began and ended.
func (s *spanCount) tunnels(n int) {
	s.decided(n)
	s.closed(n)
}

// decided notes n requests that were allowed or denied: one span each.
func (s *spanCount) decided(n int) {
	if s != nil {
		s.expected.Add(int64(n))
		s.requests.Add(int64(n))
	}
}

// closed notes that n tunnels ended: one span each.
func (s *spanCount) closed(n int) {
	if s != nil {
		s.expected.Add(int64(n))
	}
}

// settle waits until every span has arrived, so that the processor time of
// exporting them counts for the work that made them. A few more than expected
// are those of look-ups and dials that were slow on a busy machine; many more
// are an error.
func (s *spanCount) settle(ctx context.Context) error {
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
