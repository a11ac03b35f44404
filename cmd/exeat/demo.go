package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/process"
	"github.com/exeat-dev/exeat/cmd/exeat/stage"
	"github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/proxy/gateway"
)

// demoFlags holds the flags of demo.
type demoFlags struct {
	check            bool
	policy           string
	listen, originAt string
}

func newDemo() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try the gateway, with everything that it needs in one process",
		Long: `Start a temporary SPIFFE authority with a Workload API, a gateway with an mTLS
listener for HTTP/1.1 and HTTP/2 and one for DNS over TLS, a policy with two
identities, and a local TLS origin, all in one process, and print commands to try.
All files are in one temporary directory. Ctrl-C ends the demo and removes it.

With --check the demo runs the commands itself, over real sockets, and prints for
each whether its result is the expected one. Exit codes: 0 all are, 1 one is not.`,
		Example: "  exeat demo\n  exeat demo --check\n  exeat demo --origin 127.0.0.1:9443 --policy my-policy.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ignoreBrokenPipes()
			return f.run(cmd.Context(), bestEffort{cmd.OutOrStdout()}, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVar(&f.check, "check", false, "run the commands, print each with its outcome, and end")
	cmd.Flags().StringVar(&f.policy, "policy", "", "use the policy in this `file` instead of the demo's own")
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:0", "`address` of the gateway; port 0 means a free port")
	cmd.Flags().StringVar(&f.originAt, "origin", "127.0.0.1:0", "`address` of the origin; port 0 means a free port")
	return cmd
}

// The names that the demo uses.
const (
	demoDomain   = "demo.example"
	demoBuilder  = "spiffe://demo.example/ns/ci/sa/builder"
	demoReporter = "spiffe://demo.example/ns/ops/sa/reporter"
	demoHello    = "hello.demo.example"
	demoSecret   = "secret.demo.example"
)

// maxSocketPath is the longest path of a unix socket on macOS; Linux allows three bytes
// more.
const maxSocketPath = 104

// demo is a running demo.
type demo struct {
	dir     string
	policy  string // path of the policy file
	gateway *process.Process
	origin  *stage.Origin
	api     *stage.WorkloadAPI
	addr    netip.AddrPort // address of the gateway
	dot     netip.AddrPort // address of the gateway's DNS over TLS
}

func (f *demoFlags) run(ctx context.Context, stdout, stderr io.Writer) error {
	for _, flag := range [][2]string{{"--listen", f.listen}, {"--origin", f.originAt}} {
		if _, err := netip.ParseAddrPort(flag[1]); err != nil {
			return fmt.Errorf("%s %s: write an IP address and a port, such as 127.0.0.1:8443", flag[0], flag[1])
		}
	}
	d, err := f.start(ctx, stderr)
	switch {
	case err != nil && ctx.Err() != nil && !f.check: // told to stop during the start
		return nil
	case err != nil:
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { d.gateway.Serve(ctx, nil) })
	good := true
	if f.check {
		good, err = d.check(ctx, stdout)
	} else {
		err = d.explain(stdout)
		if err == nil {
			<-ctx.Done()
		}
	}
	stop()
	serving.Wait()
	d.remove()
	if err == nil && !good {
		return errAnswerNo
	}
	return err
}

// start creates the demo. After an error nothing of it is left.
func (f *demoFlags) start(ctx context.Context, stderr io.Writer) (*demo, error) {
	dir, err := os.MkdirTemp("", "exeat-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{dir: dir}
	if len(d.path("agent.sock")) > maxSocketPath {
		d.remove()
		return nil, fmt.Errorf("the temporary directory %s is too long a path for a unix socket: set TMPDIR=/tmp", dir)
	}
	if err := d.build(ctx, f, stderr); err != nil {
		d.remove()
		return nil, err
	}
	return d, nil
}

func (d *demo) build(ctx context.Context, f *demoFlags, stderr io.Writer) error {
	a, err := d.mint()
	if err != nil {
		return err
	}
	d.origin, err = stage.StartOrigin(ctx, a, f.originAt, demoHello, demoSecret)
	if err != nil {
		return err
	}
	d.api, err = stage.StartWorkloadAPI(ctx, a, d.path("agent.sock"), authority.Options{
		ID: spiffeid.RequireFromPath(a.TrustDomain(), "/gateway"), DNS: []string{"localhost", "127.0.0.1"},
	})
	if err != nil {
		return err
	}
	d.policy = f.policy
	if d.policy == "" {
		d.policy = d.path("policy.yaml")
		if err := os.WriteFile(d.policy, []byte(demoPolicy(d.origin.Addr)), 0o600); err != nil {
			return err
		}
	}
	cfg := d.config(f.listen)
	log := newLog(stderr, slog.LevelWarn)
	setDefaultLog(log)
	d.gateway, err = process.Open(ctx, cfg, process.Options{Version: version(), Stdout: io.Discard, Getenv: os.Getenv, Log: log})
	if err != nil {
		return err
	}
	listening := d.gateway.Listening()
	if d.addr, err = netip.ParseAddrPort(listening[0].Addr.String()); err != nil {
		return err
	}
	d.dot, err = netip.ParseAddrPort(listening[1].Addr.String())
	return err
}

func (d *demo) config(address string) config.Config {
	cfg := config.Defaults()
	cfg.WorkloadAPI = "unix://" + d.path("agent.sock")
	cfg.Policy = []string{d.policy}
	cfg.Records = []config.RecordSink{{Name: "demo", File: d.path("records.jsonl")}}
	cfg.Listeners = []config.Listener{
		{Listener: gateway.Listener{Name: "demo", Address: address}},
		{Listener: gateway.Listener{Name: "dot", Address: "127.0.0.1:0", Protocol: gateway.DoT}},
	}
	cfg.Gateway.DrainDelay, cfg.Gateway.DrainTimeout = 0, 0
	cfg.Resolver.Hosts = map[allowlist.Host][]netip.Addr{}
	for _, name := range []string{demoHello, demoSecret} {
		host, err := allowlist.ParseHost(name)
		if err != nil {
			panic(err) // the text is a constant of this file
		}
		cfg.Resolver.Hosts[host] = []netip.Addr{d.origin.Addr.Addr()}
	}
	return cfg
}

// mint creates the authority and one directory for each identity.
func (d *demo) mint() (*authority.Authority, error) {
	td, err := spiffeid.TrustDomainFromString(demoDomain)
	if err != nil {
		return nil, err
	}
	a, err := authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		return nil, err
	}
	for dir, o := range map[string]authority.Options{
		"builder":  {ID: spiffeid.RequireFromString(demoBuilder)},
		"reporter": {ID: spiffeid.RequireFromString(demoReporter)},
	} {
		o.Lifetime = authority.DefaultCALifetime / 2
		svid, err := a.Mint(o)
		if err != nil {
			return nil, err
		}
		if err := svid.WriteDir(d.path(dir), a.Bundle()); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// remove ends and deletes what start created. The gateway must have ended before.
func (d *demo) remove() {
	if d.api != nil {
		d.api.Stop()
	}
	if d.origin != nil {
		d.origin.Stop()
	}
	_ = os.RemoveAll(d.dir)
}

// demoPolicy returns the policy of the demo. The origin is on this host, which only a
// rule with the address itself can allow.
func demoPolicy(origin netip.AddrPort) string {
	return fmt.Sprintf(`version: 1
identities:
  - id: %[1]s
    owner: team-ci
    allow:
      - host: %[3]s
        ports: [%[4]d]
        addresses: ["%[5]s"]
  - id: %[2]s
    owner: team-ops
    allow:
      - host: "*.demo.example"
        ports: [%[4]d]
        addresses: ["%[5]s"]
`, demoBuilder, demoReporter, demoHello, origin.Port(), netip.PrefixFrom(origin.Addr(), origin.Addr().BitLen()))
}
