package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// checkGateway reads what a start reads and opens nothing, so it may run beside
// the gateway that serves. It prints what would come into force.
func checkGateway(ctx context.Context, cfg config.Config, path string, w io.Writer, log *slog.Logger) error {
	g := &gateway{cfg: cfg, log: log}
	defer func() {
		if g.identity != nil {
			g.identity.close()
		}
	}()
	if err := g.read(ctx, os.Getenv); err != nil {
		return err
	}
	for _, lc := range cfg.Listeners {
		if err := g.identify(&listen.Config{}, lc); err != nil {
			return fmt.Errorf("listener %s: %w", lc.Name, err)
		}
	}
	resolver, err := resolve.New(cfg.Resolver)
	if err != nil {
		return err
	}
	resolver.Close()
	policy := "no policy yet"
	if g.policy.policy != nil {
		policy = "policy " + g.policy.policy.Version()
	}
	_, err = fmt.Fprintf(w, "%s: no errors, %s\n", path, policy)
	return err
}
