package tunnels

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"

	"github.com/exeat-dev/exeat/e2e/measure/spans"
	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// world is everything that runs.
type world struct {
	*site.Site

	spans   *spanCount
	targets []string // addresses of echo, source and sink, HOST:PORT
	configs int      // number of configuration files written by startOther
}

// newWorld builds the programs, and starts what both peers need. If it returns an error,
// everything is ended.
func newWorld(ctx context.Context, exeat string) (*world, error) {
	s, err := site.New(trustDomain)
	if err != nil {
		return nil, err
	}
	s.Exeat = exeat
	w := &world{Site: s}
	if err := w.build(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// build builds the programs that are measured and those that measure, and starts the
// origin and the collector.
func (w *world) build(ctx context.Context) error {
	if err := w.Build(ctx, "e2e/measure/tunnels/relay", "e2e/measure/tunnels/origin", spans.Program); err != nil {
		return err
	}
	origin, err := w.Start(exec.CommandContext(ctx, w.Path("origin")), site.Ready{Announces: 3})
	if err != nil {
		return err
	}
	w.targets = origin.Addresses
	collector, err := spans.Start(ctx, w.Site)
	if err != nil {
		return err
	}
	w.spans = &spanCount{collector: collector}
	return w.Write("policy.yaml", policy(w.Authority.TrustDomain(), w.targets))
}

// peer is one of the programs that are compared.
type peer struct {
	name    string
	process *site.Process
	spans   *spanCount // nil for a peer that exports none

	secure, clear door
	x25519        bool // says that X25519 is its only key exchange
}

// door is a listener of a peer.
type door struct {
	proxy string // address of the proxy; "" if each target is an address of the peer
	targets
}

// targets are the services of the origin, as clients of the peer name them.
type targets struct{ echo, source, sink string }

func newTargets(three []string) targets { return targets{three[0], three[1], three[2]} }

// startRelay starts the bare relay. Its clients name addresses, so that it looks up no
// names.
func (w *world) startRelay(ctx context.Context) (*peer, error) {
	child, err := w.Start(exec.CommandContext(ctx, w.Path("relay"), "-identity", w.Path("gateway")), site.Ready{Announces: 2})
	if err != nil {
		return nil, err
	}
	return proxyPeer(peer{name: "relay"}, child, w.targets), nil
}

// startExeat starts the gateway with all its evidence: records to a file, and spans to
// the collector. Its policy has 10,000 rules.
func (w *world) startExeat(ctx context.Context) (*peer, error) {
	return w.serve(ctx, exeatConfig, recordFile, peer{name: "exeat", spans: w.spans},
		"OTEL_TRACES_EXPORTER=otlp",
		"OTEL_METRICS_EXPORTER=none", // the collector accepts spans only
		"OTEL_EXPORTER_OTLP_ENDPOINT="+w.spans.collector.URL,
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		// Every measurement waits for its spans. With the SDK's 5 s it would wait long,
		// while a larger batch is no more expensive.
		"OTEL_BSP_SCHEDULE_DELAY=500",
	)
}

// startQuiet starts the same gateway with as little evidence as possible. It still
// renders records, which go to /dev/null, and counts its metrics.
func (w *world) startQuiet(ctx context.Context) (*peer, error) {
	return w.serve(ctx, quietConfig, os.DevNull, peer{name: "exeat without evidence"}, "OTEL_SDK_DISABLED=true")
}

// serve starts the gateway, and returns p with its addresses and process.
func (w *world) serve(ctx context.Context, name, records string, p peer, env ...string) (*peer, error) {
	caller := callerID(w.Authority.TrustDomain(), 0) // the identity of callers of the listener clear
	child, err := w.Serve(ctx, name, config(caller, records), 2, env...)
	if err != nil {
		return nil, err
	}
	named := make([]string, len(w.targets))
	for i, target := range w.targets {
		named[i] = originName + target[strings.LastIndexByte(target, ':'):]
	}
	return proxyPeer(p, child, named), nil
}

// proxyPeer returns p as a proxy with a secure listener and a clear one.
func proxyPeer(p peer, child *site.Process, asked []string) *peer {
	p.process = child
	p.secure = door{child.Addresses[0], newTargets(asked)}
	p.clear = door{child.Addresses[1], newTargets(asked)}
	return &p
}

// client returns a client that opens tunnels through the peer, over TLS.
func (p *peer) client(c *caller) *load.Client {
	return &load.Client{Proxy: p.secure.proxy, TLS: c.config}
}

// clearClient returns a client that opens tunnels through the peer, without TLS.
func (p *peer) clearClient() *load.Client { return &load.Client{Proxy: p.clear.proxy} }

// decisions returns the number of decisions in exeat's records.
func (w *world) decisions() (int64, error) {
	data, err := os.ReadFile(w.Path(recordFile))
	if err != nil {
		return 0, err
	}
	n := int64(strings.Count(string(data), `"event":"decision"`))
	if n == 0 {
		return 0, errors.New("no decision has been recorded")
	}
	return n, nil
}
