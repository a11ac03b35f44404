package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/process"
)

func newServe() *cobra.Command {
	var (
		path  string
		check bool
	)
	cmd := &cobra.Command{
		Use: "serve", SuggestFor: []string{"run", "start"},
		Short: "Run the gateway",
		Long: `Run the gateway until SIGINT or SIGTERM. After the signal the gateway serves
for drain_delay as before, and its answers close their connections. Then it
answers new requests with 503 draining, and lets tunnels finish for
drain_timeout. Last it writes the remaining records and spans, for at most 5 s.
A second signal ends the process at once.

The gateway answers probes from the beginning, also while its start waits for an
identity of the Workload API. SIGINT or SIGTERM ends that wait with exit code 0.

The gateway follows changes of policy, identity and web certificates. SIGHUP makes
it read them at once. A file with an error changes nothing; the error is logged.

Records of decisions go to standard output unless the configuration names a
file. The gateway's own log goes to standard error. The gateway serves on if
nobody reads its output: it counts the lost records, and /readyz reports the loss.

With --check the command reads configuration, identity, certificates and policy
as a start does, and prints their errors. It is an error if the Workload API gives
no identity within 3 s. The command opens no listener and no record file, so that
it may run beside the gateway that serves. It prints a warning, with exit code 0,
for each of these:
  - an identity of a listener that the policy refuses whatever it asks for;
  - more connections than there are file descriptors for;
  - a limit that a smaller limit makes unreachable, or a max_revoke of 100%;
  - a record file that cannot be opened, or OTEL_* variables that cannot be used:
    a start would fail.

Exit codes: 0 good, 2 a broken configuration.`,
		Example: "  exeat serve --config /etc/exeat/exeat.yaml\n  exeat serve --config /etc/exeat/exeat.yaml --check",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return checkServe(cmd, path)
			}
			return serve(cmd, path)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "read all files, print their errors and warnings, and end")
	cmd.Flags().StringVarP(&path, "config", "c", "exeat.yaml", "the configuration `file`")
	return cmd
}

// serve runs the gateway of a configuration file until the command's context is done.
func serve(cmd *cobra.Command, path string) error {
	ctx := cmd.Context()
	ignoreBrokenPipes()
	lines := process.NewLogWriter(cmd.ErrOrStderr())
	defer lines.Close()
	log := newLog(lines, slog.LevelInfo)
	// From here on, because the default action of SIGHUP would end the process during
	// the start.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	setDefaultLog(log)
	process.LimitMemory(ctx, log)
	p, err := openProcess(cmd, path, process.Options{
		Version: version(), Stdout: cmd.OutOrStdout(), Getenv: os.Getenv, Log: log, LogFailing: lines.Failing,
	})
	switch {
	case err != nil && ctx.Err() != nil: // whatever failed is not needed any more
		log.LogAttrs(ctx, slog.LevelInfo, "stopped before anything was served", slog.Any("cause", err))
		return nil
	case err != nil:
		return err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(p.HandleErrors))
	for _, l := range p.Listening() {
		log.LogAttrs(ctx, slog.LevelInfo, "listening", slog.String("listener", l.Name), slog.String("address", l.Address()))
	}
	p.Serve(ctx, hangup)
	return nil
}

// openProcess reads a configuration file, logs its warnings and opens the process.
func openProcess(cmd *cobra.Command, path string, opts process.Options) (*process.Process, error) {
	cfg, err := loadConfig(cmd.Context(), path)
	if err != nil {
		return nil, err
	}
	for _, warning := range cfg.Warnings {
		opts.Log.LogAttrs(cmd.Context(), slog.LevelWarn, "the configuration has a value without effect",
			slog.String("at", warning.String()), slog.String("cause", warning.Msg))
	}
	return process.Open(cmd.Context(), cfg, opts)
}

// loadConfig reads a configuration file. It gives up when the context is done.
func loadConfig(ctx context.Context, path string) (config.Config, error) {
	return process.Until(ctx, func() (config.Config, error) { return config.Load(path) })
}

// checkServe reads everything that a start reads and prints what would come into force.
func checkServe(cmd *cobra.Command, path string) error {
	ctx, w := cmd.Context(), visible{cmd.OutOrStdout()}
	cfg, err := loadConfig(ctx, path)
	if err != nil {
		return err
	}
	checked, err := process.Until(ctx, func() (process.Checked, error) {
		return process.Check(ctx, cfg, process.Options{Getenv: os.Getenv, Log: newLog(cmd.ErrOrStderr(), slog.LevelInfo)})
	})
	if err != nil {
		return err
	}
	for _, warning := range checked.Lines(path) {
		if _, err := fmt.Fprintln(w, warning); err != nil {
			return err
		}
	}
	policy := "no policy yet"
	if checked.Version != "" {
		policy = versions(checked.Version, checked.Quarantine)
	}
	_, err = fmt.Fprintf(w, "%s: no errors, %s\n", path, policy)
	return err
}
