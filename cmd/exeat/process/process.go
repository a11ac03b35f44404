// Package process runs a configuration as a gateway: it opens the files, the Workload
// API, the sinks of records and the exporters that the configuration names, passes them
// to package gateway, and follows changes.
package process

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// Options are settings of a process that are not in its configuration. Stdout, Getenv
// and Log are required.
type Options struct {
	Version string
	// Stdout receives the records of a sink that has no file.
	Stdout io.Writer
	Getenv func(string) string
	Log    *slog.Logger
	// LogFailing returns why lines of the log are lost and since when, or a nil error
	// if none are. It may be nil.
	LogFailing func() (since time.Time, err error)
}

// Process is a gateway with its inputs, its sinks and its telemetry. It serves
// nothing until Serve is called.
type Process struct {
	cfg       config.Config
	opts      Options
	starting  starting
	inputs    inputs
	telemetry *telemetry.Telemetry
	sinks     sinks
	resolver  *resolve.Resolver
	gateway   *gateway.Gateway

	files       files
	fitted      fitted              // result of files.fit, which is logged once everything is open
	descriptors gateway.Descriptors // both fields are nil if the limit of the process is unknown
	bounds      gateway.Config      // the configuration that gateway.New got, with the bounds on connections as fitted
}

// Open reads what the configuration names and opens the listeners, first the one for
// probes, which answers from then on. It waits for an identity of the Workload API as
// long as ctx lasts, and for nothing longer. After an error nothing stays open. The
// error begins with the place at which the configuration names the file in question.
func Open(ctx context.Context, cfg config.Config, opts Options) (*Process, error) {
	p := &Process{cfg: cfg, opts: opts}
	opened, err := Until(ctx, func() (*Process, error) {
		err := p.open(ctx)
		if err == nil {
			err = context.Cause(ctx) // the result may not be needed any more
		}
		if err == nil {
			return p, nil
		}
		if p.gateway != nil {
			p.gateway.Close()
		}
		closeInputs(p)
		flush(context.WithoutCancel(ctx), p, time.Now().Add(flushTimeout))
		return nil, err
	})
	if err != nil {
		p.starting.close()
	}
	return opened, err
}

// open is Open without the cleanup after an error. An error about the environment has
// no place in the configuration, even if it names a listener.
func (p *Process) open(ctx context.Context) error {
	if err := openProbes(ctx, p); err != nil {
		return p.cfg.Places.Explain(err)
	}
	p.starting.waitFor("the exporters are checked")
	if err := checkExports(ctx, &p.cfg, p.opts.Getenv, http.ProxyFromEnvironment); err != nil {
		return err
	}
	return p.cfg.Places.Explain(openParts(ctx, p))
}

// openProbes opens the admin listener, and checks that the other listeners can be opened.
func openProbes(ctx context.Context, p *Process) error {
	p.starting.waitFor("the listeners are tried")
	if err := p.starting.open(ctx, &p.cfg.Gateway.Admin, p.opts.Log); err != nil {
		return err
	}
	return tryListeners(ctx, p.cfg.Listeners)
}

// openParts opens the parts of the gateway, and then the gateway itself.
func openParts(ctx context.Context, p *Process) error {
	cfg := p.config(p.starting.waitFor)
	cfg.Admin.Opened = p.starting.opened()
	if err := p.inputs.openListeners(&p.cfg, &cfg); err != nil {
		return err
	}
	p.starting.waitFor("the sinks of records are opened")
	p.sinks.waitFor = p.starting.waitFor
	if err := p.openEvidence(ctx); err != nil {
		return err
	}
	if p.cfg.WorkloadAPI != "" {
		p.starting.logAddress(ctx, p.opts.Log)
	}
	err := p.inputs.open(ctx, &p.cfg, &cfg)
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
	if err := p.inputs.watch(); err != nil {
		return err
	}
	p.bounds = cfg
	p.filesOpened(ctx, &p.bounds)
	return p.observe()
}

// config returns the configuration of the gateway, without its parts and listeners.
// waitFor is called with what the start waits for.
func (p *Process) config(waitFor func(what string)) gateway.Config {
	p.inputs.log, p.inputs.waitFor = p.opts.Log, waitFor
	cfg := p.cfg.Gateway
	cfg.Log, cfg.HostAddresses, cfg.Inspect = p.opts.Log, config.HostAddresses, p.cfg.Resolver.Inspect
	cfg.Front.Memory = newStreamMemory()
	return cfg
}

// openEvidence sets up traces, metrics and records.
func (p *Process) openEvidence(ctx context.Context) error {
	var err error
	p.telemetry, err = telemetry.New(ctx, telemetry.Config{
		Version: p.opts.Version, Getenv: p.opts.Getenv, IdentityCap: p.cfg.MetricIdentities, Failing: p.exportError, Warned: exportWarning(p.opts.Log),
		Misread: logMisread(p.opts.Log),
	})
	if err != nil {
		return err
	}
	p.starting.setMetrics(p.telemetry.Handler())
	return p.sinks.open(ctx, &p.cfg, p.opts, p.telemetry)
}

// exportError logs that exports of a signal fail, or that they work again if err is nil.
func (p *Process) exportError(signal string, err error) {
	if err != nil {
		p.opts.Log.Warn("telemetry cannot be exported; what is lost is counted", slog.String("signal", signal), slog.Any("error", err))
		return
	}
	p.opts.Log.Info("telemetry can be exported again", slog.String("signal", signal))
}

// resolverOf returns the methods of a resolver that a gateway uses.
func resolverOf(r *resolve.Resolver) gateway.Resolver {
	out := gateway.Resolver{Resolve: r.Resolve, Bound: r.Bound}
	out.DNS.Cached, out.DNS.Lookup, out.DNS.Bind = r.Cached, r.Lookup, r.Bind
	return out
}

// Listening returns every address on which the gateway listens.
func (p *Process) Listening() []gateway.Listening { return p.gateway.Listening() }

// HandleErrors handles errors of the OpenTelemetry SDK.
func (p *Process) HandleErrors(err error) { p.telemetry.HandleErrors(err) }

// reloadOn makes the process read everything again, and reopen its record files, after
// each signal.
func (p *Process) reloadOn(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			p.gateway.Reload()
			p.inputs.rereadWebs()
			p.sinks.reopen()
		}
	}
}

// checkTimeout bounds the time that Check waits for an identity of the Workload API.
const checkTimeout = 3 * time.Second

// Check reads what Open reads and opens nothing, so that it may run beside the process
// that serves. Its errors are those of Open.
func Check(ctx context.Context, cfg config.Config, opts Options) (Checked, error) {
	if err := checkExports(ctx, &cfg, opts.Getenv, http.ProxyFromEnvironment); err != nil {
		return Checked{}, err
	}
	checked, err := check(ctx, cfg, opts)
	if err != nil {
		return Checked{}, cfg.Places.Explain(err)
	}
	return Checked{checked, append(slices.Clone(cfg.Warnings), checkRecordFiles(&cfg)...)}, nil
}

// Checked describes what a start would bring into force.
type Checked struct {
	gateway.Checked

	// Placed holds warnings that have a place in the configuration.
	Placed strictyaml.Errors
}

// Lines returns the warnings as lines of text. A warning without a place in the
// configuration begins with path, the path of the configuration.
func (c Checked) Lines(path string) []string {
	lines := make([]string, 0, len(c.Placed)+len(c.Warnings))
	for _, warning := range c.Placed {
		lines = append(lines, fmt.Sprintf("%s: warning: %s", warning.Pos, warning.Msg))
	}
	for _, warning := range c.Warnings {
		lines = append(lines, fmt.Sprintf("%s: warning: %s", path, warning))
	}
	return lines
}

func check(ctx context.Context, cfg config.Config, opts Options) (gateway.Checked, error) {
	p := &Process{cfg: cfg, opts: opts}
	defer p.inputs.close()
	read := p.config(func(string) {})
	p.inputs.identityTimeout = checkTimeout
	if err := p.inputs.openListeners(&cfg, &read); err != nil {
		return gateway.Checked{}, err
	}
	if err := p.inputs.open(ctx, &cfg, &read); err != nil {
		return gateway.Checked{}, err
	}
	resolver, err := resolve.New(cfg.Resolver)
	if err != nil {
		return gateway.Checked{}, err
	}
	resolver.Close()
	fits, err := readFiles(&read, len(p.inputs.files)+len(cfg.Records)).fit(&cfg, &read)
	if err != nil {
		return gateway.Checked{}, err
	}
	checked, err := gateway.Check(read)
	checked.Warnings = append(fits.tooMuch, checked.Warnings...)
	if err := tryExporters(ctx, cfg.Records, opts); err != nil {
		checked.Warnings = append(checked.Warnings, err.Error())
	}
	return checked, err
}

// logMisread returns a function that logs that the SDK could not read a variable.
func logMisread(log *slog.Logger) func(what string) {
	return func(what string) {
		log.Error("one of the OTEL_* variables cannot be read, and does not count", slog.String("doing", what))
	}
}

// exportWarning returns a function that logs the warning of a collector that has
// accepted everything.
func exportWarning(log *slog.Logger) func(signal string, err error) {
	return func(signal string, err error) {
		log.Warn("the collector has taken everything, and warns", slog.String("signal", signal), slog.Any("warning", err))
	}
}
