// Package process makes a configuration a running gateway: it opens the files, the
// Workload API, the sinks of records and the exporters that the configuration
// names, gives them to package gateway, and follows them.
package process

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// flushTimeout bounds how long the end of the process waits for records to be
// written, and then for spans and metrics.
const flushTimeout = 5 * time.Second

// Options are what a process has besides its configuration. Stdout, Getenv and Log
// are required.
type Options struct {
	Version string
	// Stdout takes the records of a sink that has no file.
	Stdout io.Writer
	Getenv func(string) string
	Log    *slog.Logger
	// LogFailing returns why lines of the log are lost and since when, nil if they
	// are not; nil means that nobody knows.
	LogFailing func() (since time.Time, err error)
}

// Process is a gateway with everything that it reads from and writes to. Nothing
// is served yet.
type Process struct {
	cfg       config.Config
	opts      Options
	sources   sources
	telemetry *telemetry.Telemetry
	sinks     sinks
	resolver  *resolve.Resolver
	gateway   *gateway.Gateway

	files       files
	fitted      fitted              // what files made of the bounds on connections; told once everything is open
	descriptors gateway.Descriptors // both are nil if the limit of the process is not known
	bounds      gateway.Config      // what gateway.New was given: its bounds on connections, as they were fitted
}

// Open reads what the configuration names and opens the listeners. After an error
// nothing is left open.
func Open(ctx context.Context, cfg config.Config, opts Options) (*Process, error) {
	p := &Process{cfg: cfg, opts: opts}
	if err := p.open(ctx); err != nil {
		if p.gateway != nil {
			p.gateway.Close()
		}
		p.close(ctx)
		return nil, err
	}
	return p, nil
}

func (p *Process) open(ctx context.Context) error {
	cfg, err := p.read(ctx)
	if err != nil {
		return err
	}
	if err := p.openEvidence(ctx); err != nil {
		return err
	}
	if err := p.fitFiles(&cfg); err != nil {
		return err
	}
	p.cfg.Resolver.Log = p.opts.Log
	if p.resolver, err = resolve.New(p.cfg.Resolver); err != nil {
		return err
	}
	cfg.Recorder, cfg.Resolver = p.sinks.recorder, resolverOf(p.resolver)
	cfg.Admin.Notes, cfg.Admin.Metrics = p.notes, p.telemetry.Handler()
	cfg.Metrics = metricsOf(p.telemetry.Instruments())
	if p.gateway, err = gateway.New(ctx, cfg); err != nil {
		return err
	}
	if err := p.sources.watch(); err != nil {
		return err
	}
	p.bounds = cfg
	p.filesOpened(ctx, &p.bounds)
	return p.observe()
}

// read reads the environment, identity, policy and certificates.
func (p *Process) read(ctx context.Context) (gateway.Config, error) {
	cfg := p.cfg.Gateway
	cfg.Log, cfg.HostAddresses, cfg.Inspect = p.opts.Log, config.HostAddresses, p.cfg.Resolver.Inspect
	err := checkExports(ctx, &p.cfg, p.opts.Getenv, http.ProxyFromEnvironment)
	if err != nil {
		return cfg, err
	}
	return cfg, p.sources.open(ctx, &p.cfg, &cfg)
}

// openEvidence sets up traces, metrics and records.
func (p *Process) openEvidence(ctx context.Context) error {
	var err error
	p.telemetry, err = telemetry.New(ctx, telemetry.Config{
		Version: p.opts.Version, Getenv: p.opts.Getenv, IdentityCap: p.cfg.MetricIdentities, Failing: p.exportError, Warned: exportWarning(p.opts.Log),
	})
	if err != nil {
		return err
	}
	return p.sinks.open(ctx, &p.cfg, p.opts, p.telemetry)
}

func (p *Process) exportError(signal string, err error) {
	if err != nil {
		p.opts.Log.Warn("telemetry cannot be exported; what is lost is counted", slog.String("signal", signal), slog.Any("error", err))
		return
	}
	p.opts.Log.Info("telemetry can be exported again", slog.String("signal", signal))
}

func resolverOf(r *resolve.Resolver) gateway.Resolver {
	out := gateway.Resolver{Resolve: r.Resolve, Bound: r.Bound}
	out.DNS.Cached, out.DNS.Lookup, out.DNS.Bind = r.Cached, r.Lookup, r.Bind
	return out
}

// Listening returns every address that is listened on.
func (p *Process) Listening() []gateway.Listening { return p.gateway.Listening() }

// HandleErrors is for what the SDK of OpenTelemetry has to say.
func (p *Process) HandleErrors(err error) { p.telemetry.HandleErrors(err) }

// Serve serves until ctx is done, drains, and then flushes records and spans; see
// gateway.Gateway. A signal on hangup, which may be nil, reads everything again.
// The process cannot be used any more afterwards.
func (p *Process) Serve(ctx context.Context, hangup <-chan os.Signal) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup
	following.Go(func() { giveBack(background, debug.FreeOSMemory) })
	following.Go(func() { p.sources.followWebs(background) })
	following.Go(func() { p.reloadOn(background, hangup) })
	following.Go(func() { p.followFiles(background, &p.bounds, fileLimit) })
	p.gateway.Serve(ctx)
	stop()
	following.Wait()
	p.close(context.WithoutCancel(ctx))
	stats := p.sinks.recorder.Stats()
	p.opts.Log.InfoContext(ctx, "stopped", slog.Uint64("records", stats.Made),
		slog.Uint64("records_lost", stats.Lost()), slog.Uint64("panics", p.gateway.Stats().Panics))
}

// reloadOn reads everything again after each signal.
func (p *Process) reloadOn(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			p.gateway.Reload()
			p.sources.readWebsAgain()
			p.sinks.reopen()
		}
	}
}

// close ends what open began, but for the gateway. Records and telemetry end last:
// each has its time, so that a sink that is dead takes nothing from the spans.
func (p *Process) close(ctx context.Context) {
	if p.resolver != nil {
		p.resolver.Close()
	}
	p.sources.close()
	p.sinks.close(ctx, p.opts.Log)
	if p.telemetry == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := p.telemetry.Shutdown(ctx); err != nil {
		p.opts.Log.ErrorContext(ctx, "telemetry was still waiting to be exported", slog.Any("error", err))
	}
}

// Check reads what Open reads and opens nothing, so it may run beside the process
// that serves.
func Check(ctx context.Context, cfg config.Config, opts Options) (gateway.Checked, error) {
	p := &Process{cfg: cfg, opts: opts}
	defer p.sources.close()
	read, err := p.read(ctx)
	if err != nil {
		return gateway.Checked{}, err
	}
	resolver, err := resolve.New(cfg.Resolver)
	if err != nil {
		return gateway.Checked{}, err
	}
	resolver.Close()
	fits, err := readFiles(&read, len(p.sources.files)+len(cfg.Records)).fit(&cfg, &read)
	if err != nil {
		return gateway.Checked{}, err
	}
	checked, err := gateway.Check(read)
	checked.Warnings = append(fits.tooMuch, checked.Warnings...)
	return checked, err
}

// exportWarning logs what a collector has to say that has taken everything.
func exportWarning(log *slog.Logger) func(signal string, err error) {
	return func(signal string, err error) {
		log.Warn("the collector has taken everything, and warns", slog.String("signal", signal), slog.Any("warning", err))
	}
}
