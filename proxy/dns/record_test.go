package dns

import (
	"context"
	"sync"
	"testing"

	mdns "github.com/miekg/dns"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestRecordedCacheHitAllocatesItsIDOnly allows 1 allocation, the text of the id. The sink
// blocks and its queue is full, so that every record can be reused.
func TestRecordedCacheHitAllocatesItsIDOnly(t *testing.T) {
	s := newServer(t, nil)
	s.cfg.SpanEvery = 1 << 40
	stuck := make(dead)
	s.cfg.Recorder = must(audit.New(t.Context(), audit.Config{
		Sinks: []audit.SinkConfig{{Name: "all", Sink: stuck}}, Queue: 1, Tracer: noop.NewTracerProvider().Tracer(""),
	}))
	defer func() { _ = s.cfg.Recorder.Close(context.Background()) }()
	defer close(stuck)
	caller := sidecar()
	msg := packetOf("allowed.example", mdns.TypeA, true)
	var lookups sync.WaitGroup
	hit := func() {
		s.handle(t.Context(), &lookups, s.getExchange(transport{wire: wireUDP}, discard{}, &caller), msg)
	}
	hit()                                                            // the first one has a span
	if n := testing.AllocsPerRun(200, hit); n != 1 && !raceEnabled { // the race detector drops pooled records
		t.Errorf("%v allocations", n)
	}
	if got := s.cfg.Recorder.Stats().Made; got != 202 {
		t.Errorf("%d of 202 were made", got)
	}
}

// dead is a sink that blocks until it is closed.
type dead chan struct{}

func (d dead) Write(context.Context, []*audit.Record) error {
	<-d
	return nil
}
