package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/cmd/exeat/process"
	"github.com/exeat-dev/exeat/proxy/agent"
)

// agentFlags holds the flags of agent.
type agentFlags struct {
	gateways, http, socks5, dns []string
	gatewayID, anyIn            string
	workloadAPI, identityDir    string
	users                       []uint
	expose                      bool
	drainTimeout                time.Duration
}

func newAgent() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Give local clients the identity of this workload",
		Long: `Listen for clients that have no certificate of their own, and pass what they ask
to a gateway over HTTP/2 with mutual TLS and the X.509-SVID of this workload. The
gateway decides and records; its refusals come out word for word. There is no way
past it: if no gateway can be reached, clients get a 502 that says why.

Whoever reaches a door at an IP address has the identity of this workload. A unix
socket is for the user of the agent and for those of --allow-uid. An address that
is not loopback needs --expose.

The identity comes from the Workload API (--workload-api, or the variable
SPIFFE_ENDPOINT_SOCKET) or from files (--identity-dir: svid.pem, svid_key.pem,
bundle.pem). The agent follows changes of both; SIGHUP makes it read files at once.
SIGINT or SIGTERM ends it: open tunnels go on for --drain-timeout.

Exit codes: 0 good, 2 wrong use.`,
		Example: `  exeat agent --gateway egress.internal:8443 --gateway-id spiffe://prod.example/egress
  exeat agent --gateway 10.0.0.7:8443 --gateway 10.0.0.8:8443 --gateway-id spiffe://prod.example/egress \
    --identity-dir /run/svid --http unix:/run/exeat/agent.sock --socks5 127.0.0.1:1080 --dns 127.0.0.1:53`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.gateways, "gateway", nil, "`HOST:PORT` of a gateway; write it again for another one")
	flags.StringVar(&f.gatewayID, "gateway-id", "", "SPIFFE `ID` that every gateway must have")
	flags.StringVar(&f.anyIn, "any-in-trust-domain", "", "accept any workload of this trust `domain` as a gateway, also one that was taken over")
	flags.StringVar(&f.workloadAPI, "workload-api", "", "`address` of the Workload API, such as unix:///run/spire/agent.sock")
	flags.StringVar(&f.identityDir, "identity-dir", "", "`directory` with the SVID, its key and the bundle")
	flags.StringArrayVar(&f.http, "http", nil, "`address` for HTTP: IP:PORT or unix:/path (default 127.0.0.1:3128, unless there is --socks5 or --dns)")
	flags.StringArrayVar(&f.socks5, "socks5", nil, "`address` for SOCKS5: IP:PORT or unix:/path")
	flags.StringArrayVar(&f.dns, "dns", nil, "`address` for DNS over UDP and TCP: IP:PORT")
	flags.UintSliceVar(&f.users, "allow-uid", nil, "`users` that may use the unix sockets, besides the agent's own; others must also be able to open them")
	flags.BoolVar(&f.expose, "expose", false, "allow addresses that are not loopback, where other machines and containers get the identity of this workload")
	flags.DurationVar(&f.drainTimeout, "drain-timeout", 15*time.Second, "how long open tunnels go on after the end")
	require(cmd, "gateway")
	return cmd
}

// run runs the agent until the command's context is done.
func (f *agentFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	ignoreBrokenPipes()
	lines := process.NewLogWriter(cmd.ErrOrStderr())
	defer lines.Close()
	log := newLog(lines, slog.LevelInfo)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	setDefaultLog(log)
	process.LimitMemory(ctx, log)
	cfg, err := f.config(os.Getenv)
	if err != nil {
		return err
	}
	cfg.Log = log
	a, err := process.OpenAgent(ctx, cfg)
	if err != nil {
		return err
	}
	for _, l := range a.Listening() {
		log.LogAttrs(ctx, slog.LevelInfo, "listening", slog.String("listener", l.Name), slog.String("address", l.Addr.String()))
		if l.Addr.Network() != "unix" {
			log.LogAttrs(ctx, slog.LevelWarn, "every process that reaches this address has the identity of the workload", slog.String("address", l.Addr.String()))
		}
	}
	a.Serve(ctx, hangup)
	return nil
}

// config returns the configuration that the flags describe.
func (f *agentFlags) config(getenv func(string) string) (cfg process.AgentConfig, err error) {
	cfg.WorkloadAPI, cfg.IdentityDir = f.workloadAPI, f.identityDir
	if cfg.WorkloadAPI == "" && cfg.IdentityDir == "" {
		cfg.WorkloadAPI = getenv("SPIFFE_ENDPOINT_SOCKET")
	}
	switch {
	case cfg.WorkloadAPI != "" && cfg.IdentityDir != "":
		return cfg, errors.New("write --workload-api or --identity-dir, not both")
	case cfg.WorkloadAPI == "" && cfg.IdentityDir == "":
		return cfg, errors.New("the agent has no identity: write --workload-api or --identity-dir, or set SPIFFE_ENDPOINT_SOCKET")
	case (f.gatewayID == "") == (f.anyIn == ""):
		return cfg, errors.New("write --gateway-id with the SPIFFE ID of the gateway, or --any-in-trust-domain: the agent must know whom it trusts")
	case f.gatewayID != "":
		cfg.GatewayID, err = spiffeid.FromString(f.gatewayID)
		if err == nil && cfg.GatewayID.Path() == "" {
			err = errors.New("it names a trust domain, not a workload in it")
		}
		if err != nil {
			return cfg, fmt.Errorf("--gateway-id %s: %w", f.gatewayID, err)
		}
	default:
		if cfg.AnyIn, err = spiffeid.TrustDomainFromString(f.anyIn); err != nil {
			return cfg, fmt.Errorf("--any-in-trust-domain %s: %w", f.anyIn, err)
		}
	}
	for _, g := range f.gateways {
		if err := agent.CheckGateway(g); err != nil {
			return cfg, fmt.Errorf("--gateway %s: %w", g, err)
		}
	}
	cfg.Uplink.Gateways, cfg.DrainTimeout = f.gateways, f.drainTimeout
	cfg.Users = []uint32{uint32(os.Getuid())} //nolint:gosec // G115: a user id has 32 bits
	for _, uid := range f.users {
		cfg.Users = append(cfg.Users, uint32(uid)) //nolint:gosec // G115: as above
	}
	return cfg, f.addDoors(&cfg)
}

// addDoors adds the doors to a configuration.
func (f *agentFlags) addDoors(cfg *process.AgentConfig) error {
	if f.http == nil && f.socks5 == nil && f.dns == nil {
		f.http = []string{"127.0.0.1:3128"}
	}
	for _, kind := range []struct {
		flag      string
		protocol  agent.Protocol
		addresses []string
	}{{"--http", agent.HTTP, f.http}, {"--socks5", agent.SOCKS5, f.socks5}, {"--dns", agent.DNS, f.dns}} {
		for _, address := range kind.addresses {
			at, err := netip.ParseAddrPort(address)
			switch path, unix := strings.CutPrefix(address, "unix:"); {
			case unix && path != "" && kind.protocol != agent.DNS:
			case err != nil:
				return fmt.Errorf("%s %s: write an IP address and a port, such as 127.0.0.1:3128, or unix:/path for HTTP and SOCKS5", kind.flag, address)
			case !at.Addr().Unmap().IsLoopback() && !f.expose:
				return fmt.Errorf("%s %s: whoever reaches this address would have the identity of this workload: use 127.0.0.1, [::1] or a unix socket, or add --expose", kind.flag, address)
			}
			door := agent.Door{Protocol: kind.protocol, Address: address}
			if len(f.users) > 0 {
				door.SocketMode = 0o666 // the user at the other end is checked
			}
			cfg.Doors = append(cfg.Doors, door)
		}
	}
	return nil
}
