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

// The times of the end, once the time to drain is over. The whole of it and the
// defaults of drain_delay and drain_timeout are less than the 30 s that Kubernetes
// gives a pod.
const (
	endTimeout   = 5 * time.Second        // all of it
	flushTimeout = 3 * time.Second        // what records, spans, metrics and the log have of it at least
	metricsFlush = 500 * time.Millisecond // what metrics have of that, behind records and spans, which they count
	logReserve   = 500 * time.Millisecond // what the log has of that, last
)

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
	starting  starting
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

// Open reads what the configuration names and opens the listeners: that for probes
// first, which answers from then on. It waits for an identity of the Workload API as
// long as ctx lasts, and for nothing longer. After an error nothing is left open.
func Open(ctx context.Context, cfg config.Config, opts Options) (*Process, error) {
	p := &Process{cfg: cfg, opts: opts}
	opened, err := Until(ctx, func() (*Process, error) {
		err := p.open(ctx)
		if err == nil {
			err = context.Cause(ctx) // perhaps nobody waits for it any more
		}
		if err == nil {
			return p, nil
		}
		if p.gateway != nil {
			p.gateway.Close()
		}
		p.closeSources()
		p.flush(context.WithoutCancel(ctx), time.Now().Add(flushTimeout))
		return nil, err
	})
	if err != nil {
		p.starting.close()
	}
	return opened, err
}

func (p *Process) open(ctx context.Context) error {
	if err := p.starting.open(ctx, &p.cfg.Gateway.Admin, p.opts.Log); err != nil {
		return err
	}
	p.starting.waitFor("the listeners are tried")
	if err := tryListeners(ctx, p.cfg.Listeners); err != nil {
		return err
	}
	p.starting.waitFor("the exporters are looked at")
	if err := checkExports(ctx, &p.cfg, p.opts.Getenv, http.ProxyFromEnvironment); err != nil {
		return err
	}
	p.starting.waitFor("the sinks of records are opened")
	if err := p.openEvidence(ctx); err != nil {
		return err
	}
	cfg := p.config()
	cfg.Admin.Opened = p.starting.opened()
	if p.cfg.WorkloadAPI != "" {
		p.starting.say(ctx, p.opts.Log)
	}
	p.sources.waitFor = p.starting.waitFor
	err := p.sources.open(ctx, &p.cfg, &cfg)
	if err != nil {
		return err
	}
	p.starting.waitFor("the listeners are opened")
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

// config returns what a gateway is told, but for its parts and listeners.
func (p *Process) config() gateway.Config {
	cfg := p.cfg.Gateway
	cfg.Log, cfg.HostAddresses, cfg.Inspect = p.opts.Log, config.HostAddresses, p.cfg.Resolver.Inspect
	return cfg
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
	p.starting.setMetrics(p.telemetry.Handler())
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
// From the end of ctx it takes drain delay, drain timeout and endTimeout at most,
// whatever hangs: what has not ended then is left behind. The process cannot be used
// any more afterwards.
func (p *Process) Serve(ctx context.Context, hangup <-chan os.Signal) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.serve(ctx, hangup)
	}()
	<-ctx.Done()
	end := time.Now().Add(p.cfg.Gateway.DrainDelay + p.cfg.Gateway.DrainTimeout + endTimeout)
	if !isClosedBy(served, end.Add(-flushTimeout)) {
		p.opts.Log.ErrorContext(ctx, "something does not end, such as the reading of a file, and is left behind")
	}
	if latest := time.Now().Add(endTimeout); latest.Before(end) {
		end = latest
	}
	p.flush(context.WithoutCancel(ctx), end)
	stats := p.sinks.recorder.Stats()
	p.opts.Log.InfoContext(ctx, "stopped", slog.Uint64("records", stats.Made),
		slog.Uint64("records_lost", stats.Lost()), slog.Uint64("panics", p.gateway.Stats().Panics))
}

// serve serves the gateway and follows what it reads until ctx is done and it has
// drained.
func (p *Process) serve(ctx context.Context, hangup <-chan os.Signal) {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup
	following.Go(func() { giveBack(background, debug.FreeOSMemory) })
	following.Go(func() { p.sources.followWebs(background) })
	following.Go(func() { p.reloadOn(background, hangup) })
	following.Go(func() { p.followFiles(background, &p.bounds, fileLimit) })
	p.gateway.Serve(ctx)
	stop()
	following.Wait()
	p.starting.close()
	p.closeSources()
}

// isClosedBy reports whether a channel is closed, for which it waits until a time.
func isClosedBy(c <-chan struct{}, end time.Time) bool {
	late := time.NewTimer(time.Until(end))
	defer late.Stop()
	select {
	case <-c:
		return true
	case <-late.C:
		return false
	}
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

// closeSources ends what open began to read.
func (p *Process) closeSources() {
	if p.resolver != nil {
		p.resolver.Close()
	}
	p.sources.close()
}

// flush ends what open began to write, by a time: records and spans together, so
// that a sink that is dead takes nothing from the spans, and metrics behind them,
// which count what became of both. What hangs is left behind.
func (p *Process) flush(ctx context.Context, end time.Time) {
	end = end.Add(-logReserve - leaveBehind)
	var told sync.WaitGroup
	within := func(end time.Time, lost string, flush func(context.Context) error) {
		told.Go(func() {
			ctx, cancel := context.WithDeadline(ctx, end)
			defer cancel()
			if _, err := Until(ctx, func() (struct{}, error) { return struct{}{}, flush(ctx) }); err != nil {
				p.opts.Log.ErrorContext(ctx, lost, slog.Any("error", err))
			}
		})
	}
	before := end.Add(-metricsFlush - leaveBehind)
	within(before, "records were still waiting to be written", p.sinks.close)
	if p.telemetry != nil {
		within(before, "spans were still waiting to be exported", p.telemetry.ShutdownTraces)
		told.Wait()
		within(end, "telemetry was still waiting to be exported", p.telemetry.Shutdown)
	}
	told.Wait()
}

// checkTimeout is how long Check waits for an identity of the Workload API.
const checkTimeout = 3 * time.Second

// Check reads what Open reads and opens nothing, so it may run beside the process
// that serves.
func Check(ctx context.Context, cfg config.Config, opts Options) (gateway.Checked, error) {
	p := &Process{cfg: cfg, opts: opts}
	defer p.sources.close()
	if err := checkExports(ctx, &cfg, opts.Getenv, http.ProxyFromEnvironment); err != nil {
		return gateway.Checked{}, err
	}
	read := p.config()
	p.sources.identityTimeout = checkTimeout
	if err := p.sources.open(ctx, &cfg, &read); err != nil {
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
