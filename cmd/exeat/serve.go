package main

import (
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
)

func newServe() *cobra.Command {
	var (
		path  string
		check bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Run the gateway until it is told to stop (SIGINT or SIGTERM). It then answers
new requests with 503 draining, lets tunnels finish for a while, and ends. A
second signal ends it at once.

Policy, identity and web certificates are followed as they change; SIGHUP reads
them again at once. What is wrong changes nothing and is logged.

Records of decisions go to standard output unless the configuration names a
file; the gateway's own log goes to standard error. It serves on when nobody
reads them any more: what is lost is counted, and said by /readyz.

With --check nothing is opened: configuration, identity, certificates and policy
are read as at a start, and what is wrong with them is said. It may run beside
the gateway that serves. An identity that a listener gives its callers, and that
the policy refuses whatever they ask for, is a warning: the exit code stays 0.

Exit codes: 0 good, 2 a broken configuration.`,
		Example: "  exeat serve --config /etc/exeat/exeat.yaml\n  exeat serve --config /etc/exeat/exeat.yaml --check",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			if check {
				log := newLog(cmd.ErrOrStderr(), slog.LevelInfo)
				return checkGateway(cmd.Context(), cfg, path, visible{cmd.OutOrStdout()}, log)
			}
			outliveReaders()
			lines := newLogWriter(cmd.ErrOrStderr())
			defer lines.close()
			log := newLog(lines, slog.LevelInfo)
			// From here on: its default would end the process while it starts.
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			setDefaultLog(log)
			limitMemory(cmd.Context(), log)
			g, err := newGateway(cmd.Context(), cfg, cmd.OutOrStdout(), os.Getenv, log)
			if err != nil {
				return err
			}
			g.logFailing = lines.failing
			otel.SetErrorHandler(otel.ErrorHandlerFunc(g.telemetry.HandleErrors))
			for _, l := range g.listeners {
				log.LogAttrs(cmd.Context(), slog.LevelInfo, "listening",
					slog.String("listener", l.Name()), slog.String("address", addressText(l.Addr())))
			}
			if g.admin != nil {
				log.LogAttrs(cmd.Context(), slog.LevelInfo, "listening",
					slog.String("listener", "admin"), slog.String("address", g.admin.Addr().String()))
			}
			return g.serve(cmd.Context(), hangup)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "only read everything and say what is wrong")
	cmd.Flags().StringVarP(&path, "config", "c", "exeat.yaml", "the configuration `file`")
	return cmd
}

// addressText is an address as the configuration writes it.
func addressText(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "unix:" + addr.String()
	}
	return addr.String()
}
