package process

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/cmd/exeat/telemetry"
)

// lookupTimeout bounds the look-up of the name that an exporter connects to.
const lookupTimeout = 2 * time.Second

// checkExports refuses an exporter that would connect to one of the gateway's own
// listeners, as its collector or as the proxy on the way: each export would be a
// decision, and thus cause another export.
func checkExports(ctx context.Context, cfg *config.Config, getenv func(string) string, proxy func(*http.Request) (*url.URL, error)) error {
	logs := false
	for _, sink := range cfg.Records {
		logs = logs || sink.OTLP
	}
	for _, e := range telemetry.Exports(getenv, logs, proxy) {
		through := e.Proxy
		if through == "" {
			through = e.Endpoint
		}
		own := ownListener(ctx, cfg, through)
		switch {
		case own == "":
		case e.Proxy != "":
			host, _, _ := net.SplitHostPort(e.Endpoint)
			return fmt.Errorf("%s: the proxy %s is this gateway's own listener %s, and %s would go through it to %s: each export would make another one; write NO_PROXY=%s, or another proxy",
				e.ProxyVariable, e.Proxy, own, e.Signal, e.Endpoint, host)
		case e.Variable == "":
			return fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT is not set, and %s would go to %s, which is this gateway's own listener %s: name the collector", e.Signal, e.Endpoint, own)
		default:
			return fmt.Errorf("%s: %s is this gateway's own listener %s: name the collector that takes %s", e.Variable, e.Endpoint, own, e.Signal)
		}
	}
	return nil
}

// tryExporters sets up the exporters as a start does, and ends them before they have
// anything to send. A start with the same OTEL_* variables fails with the same error.
func tryExporters(ctx context.Context, sinks []config.RecordSink, opts Options) error {
	tel, err := telemetry.New(ctx, telemetry.Config{Version: opts.Version, Getenv: opts.Getenv, Misread: logMisread(opts.Log)})
	if err != nil {
		return err
	}
	defer func() {
		ended, end := context.WithCancel(ctx)
		end()
		_ = tel.Shutdown(ended)
	}()
	for _, rs := range sinks {
		if !rs.OTLP {
			continue
		}
		if _, err := openLogs(ctx, sinks, rs, opts, tel); err != nil {
			return err
		}
	}
	return nil
}

// ownListener returns the name of the listener at an address, which is a host and a
// port or unix: with a path; "" if there is none. It looks a name up as the exporter
// will, but only if a listener has the port.
func ownListener(ctx context.Context, cfg *config.Config, address string) string {
	if path, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
		return cfg.ListenerOnSocket(path)
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	number, err := strconv.ParseUint(text, 10, 16)
	port := uint16(number)
	if err != nil || !cfg.HasListenerPort(port) {
		return ""
	}
	for _, addr := range hostAddresses(ctx, host) {
		if own := cfg.ListenerAt(netip.AddrPortFrom(addr, port)); own != "" {
			return own
		}
	}
	return ""
}

// hostAddresses returns the addresses of a host, or none if they are unknown.
func hostAddresses(ctx context.Context, host string) []netip.Addr {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}
	}
	if name, err := allowlist.ParseHost(host); host == "" || err == nil && name.IsLocalhost() {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil // the exporter will report it
	}
	return addrs
}
