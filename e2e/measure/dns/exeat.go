package dns

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/exeat-dev/exeat/e2e/site"
)

// evidence is what exeat writes about allowed queries.
type evidence struct {
	name    string
	only    string // records.sinks[].only in the configuration
	every   int    // one query in so many has a span
	records bool   // says that each query has a record
	spans   bool   // says that each query has a span
}

// The kinds of evidence that are measured. One span in a million queries counts as none.
func counters() evidence { return evidence{name: "counters", only: "denials", every: 1_000_000} }

func recorded() evidence {
	return evidence{name: "records", only: "all", every: 1_000_000, records: true}
}

func traced() evidence {
	return evidence{name: "spans", only: "all", every: 1, records: true, spans: true}
}

// startExeat starts the gateway, with a rule for each name.
func (w *world) startExeat(ctx context.Context, e evidence) (*peer, error) {
	policy := "version: 1\nidentities:\n  - id: spiffe://bench.example/caller\n    accept: [x509-svid, source-map]\n    allow:\n" +
		eachName("      - {host: %s}\n")
	if err := w.Write("policy.yaml", policy); err != nil {
		return nil, err
	}
	file := w.Path(e.name + ".jsonl")
	config := fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: policy.yaml
listeners:
  - {name: plain, address: "127.0.0.1:0", protocol: dns, identity: source-map, sources: {127.0.0.1/32: spiffe://bench.example/caller}}
  - {name: dot, address: "127.0.0.1:0", protocol: dot}
resolver: {servers: [{udp: "%s"}]}
records:
  sinks:
    - {name: file, file: %s, only: %s}
dns: {queries_per_second: 100000000, span_every: %d}
timeouts: {drain_delay: 0s, drain_timeout: 0s}
`, w.upstream.Address, file, e.only, e.every)
	if err := w.Write(e.name+".yaml", config); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, w.Exeat, "serve", "--config", w.Path(e.name+".yaml"))
	cmd.Env = []string{
		"OTEL_TRACES_EXPORTER=otlp",
		"OTEL_METRICS_EXPORTER=none", // the collector accepts spans only; metrics are counted all the same
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + w.collector.URL,
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		"OTEL_BSP_SCHEDULE_DELAY=500",     // short, because every measurement waits for its spans
		"OTEL_BSP_MAX_QUEUE_SIZE=1000000", // no span of a measurement is dropped
	}
	child, err := w.pinned(cmd, site.Ready{Announces: 2})
	if err != nil {
		return nil, err
	}
	p := &peer{name: "exeat", process: child, udp: child.Addresses[0], dot: child.Addresses[1]}
	if e.records {
		p.records = &counter{
			what:  "records",
			reset: func() error { return os.Truncate(file, 0) }, // exeat appends to the file
			read:  func(context.Context) (int64, error) { return linesOf(file) },
		}
	}
	if e.spans {
		p.spans = &counter{what: "spans", read: w.collector.Count}
	}
	return p, nil
}
