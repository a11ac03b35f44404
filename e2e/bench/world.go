package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/e2e/bench/load"
	"github.com/exeat-dev/exeat/e2e/bench/process"
	"github.com/exeat-dev/exeat/identity/authority"
)

// world is everything that runs: one directory and the children.
type world struct {
	dir       string
	exeatPath string // the binary
	authority *authority.Authority
	spans     *spanCount
	children  []*process.Process
	targets   []string // echo, source and sink: HOST:PORT as the system knows them
}

// newWorld builds the programs and starts what both peers need. After an error
// nothing of it is left.
func newWorld(ctx context.Context, exeat string) (*world, error) {
	dir, err := os.MkdirTemp("", "exeat-bench-")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, exeatPath: exeat}
	if err := w.build(ctx); err != nil {
		w.end()
		return nil, err
	}
	return w, nil
}

func (w *world) build(ctx context.Context) error {
	if err := w.compile(ctx); err != nil {
		return err
	}
	if err := w.mintServer(); err != nil {
		return err
	}
	origin, err := w.start(ctx, process.Command{Path: w.path("origin"), Addresses: 3})
	if err != nil {
		return err
	}
	w.targets = origin.Addresses
	collector, err := w.start(ctx, process.Command{Path: w.path("collector"), Addresses: 1})
	if err != nil {
		return err
	}
	w.spans = &spanCount{url: "http://" + collector.Addresses[0]}
	return w.writeConfig()
}

// compile builds what is measured and what it is measured with.
func (w *world) compile(ctx context.Context) error {
	const module = "github.com/exeat-dev/exeat"
	packages := []string{module + "/e2e/bench/relay", module + "/e2e/bench/origin", module + "/e2e/bench/collector"}
	if w.exeatPath == "" {
		packages = append(packages, module+"/cmd/exeat")
		w.exeatPath = w.path("exeat")
	}
	out, err := exec.CommandContext(ctx, "go", append([]string{"build", "-o", w.dir + "/"}, packages...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("building: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mintServer makes the authority, and the certificate that both peers present.
func (w *world) mintServer() error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return err
	}
	w.authority, err = authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		return err
	}
	svid, err := w.authority.Mint(authority.Options{
		ID: spiffeid.RequireFromPath(td, "/gateway"), DNS: []string{serverName}, Lifetime: authority.DefaultCALifetime / 2,
	})
	if err != nil {
		return err
	}
	return svid.WriteDir(w.path("gateway"), w.authority.Bundle())
}

// peer is one of the programs that are compared.
type peer struct {
	name    string
	process *process.Process
	spans   *spanCount // nil for one that exports none

	secure, clear door
	x25519        bool // the only key exchange that it knows
}

// door is a listener of a peer.
type door struct {
	proxy string // its address; "" if the targets are addresses of its own
	targets
}

// targets are the services of the origin, as a peer is asked for them.
type targets struct{ echo, source, sink string }

func newTargets(three []string) targets { return targets{three[0], three[1], three[2]} }

// startRelay starts the bare relay. It is asked for addresses and not for
// names: the floor looks nothing up.
func (w *world) startRelay(ctx context.Context) (*peer, error) {
	child, err := w.start(ctx, process.Command{
		Path: w.path("relay"), Args: []string{"-identity", w.path("gateway")}, Addresses: 2,
	})
	if err != nil {
		return nil, err
	}
	return proxyPeer(peer{name: "relay"}, child, w.targets), nil
}

// startExeat starts the gateway with everything on: a policy of 10,000 rules,
// records to a file and spans to the collector.
func (w *world) startExeat(ctx context.Context) (*peer, error) {
	return w.serve(ctx, exeatConfig, peer{name: "exeat", spans: w.spans},
		"OTEL_TRACES_EXPORTER=otlp",
		"OTEL_METRICS_EXPORTER=none", // the collector takes spans alone
		"OTEL_EXPORTER_OTLP_ENDPOINT="+w.spans.url,
		"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
		// Every measurement waits for its spans. The SDK's 5 s would make
		// for long waits, and for batches that are no dearer.
		"OTEL_BSP_SCHEDULE_DELAY=500",
	)
}

// startQuiet starts the same gateway with its evidence off, as far as that can
// be: it still renders records, which go nowhere, and counts its metrics.
func (w *world) startQuiet(ctx context.Context) (*peer, error) {
	return w.serve(ctx, quietConfig, peer{name: "exeat without evidence"}, "OTEL_SDK_DISABLED=true")
}

// serve starts the gateway and returns p with what is then known of it.
func (w *world) serve(ctx context.Context, config string, p peer, env ...string) (*peer, error) {
	child, err := w.start(ctx, process.Command{
		Path: w.exeatPath, Args: []string{"serve", "--config", w.path(config)}, Addresses: 2, Env: env,
	})
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
func proxyPeer(p peer, child *process.Process, asked []string) *peer {
	p.process = child
	p.secure = door{child.Addresses[0], newTargets(asked)}
	p.clear = door{child.Addresses[1], newTargets(asked)}
	return &p
}

// client is one that opens tunnels through the peer.
func (p *peer) client(c *caller) *load.Client {
	return &load.Client{Proxy: p.secure.proxy, TLS: c.config}
}

// clearClient is one that does so without TLS.
func (p *peer) clearClient() *load.Client { return &load.Client{Proxy: p.clear.proxy} }

func (w *world) start(ctx context.Context, c process.Command) (*process.Process, error) {
	child, err := process.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	w.children = append(w.children, child)
	return child, nil
}

// end ends every child, the last one first, and removes the directory.
func (w *world) end() {
	for len(w.children) > 0 {
		last := len(w.children) - 1
		w.children[last].Stop()
		w.children = w.children[:last]
	}
	_ = os.RemoveAll(w.dir)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// decisions counts the records of decisions that exeat has written.
func (w *world) decisions() (int64, error) {
	data, err := os.ReadFile(w.path(recordFile))
	if err != nil {
		return 0, err
	}
	n := int64(strings.Count(string(data), `"event":"decision"`))
	if n == 0 {
		return 0, errors.New("no decision has been recorded")
	}
	return n, nil
}
