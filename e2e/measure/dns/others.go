package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"

	"github.com/exeat-dev/exeat/e2e/site"
)

// Paths in Debian's packages.
const (
	dnsdistPath = "/usr/bin/dnsdist"
	unboundPath = "/usr/sbin/unbound"
)

// versionOf returns the name of a program and the version that it prints.
func versionOf(ctx context.Context, path, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, path, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s must be installed: %w", name, err)
	}
	version := regexp.MustCompile(`[0-9]+(\.[0-9]+)+`).Find(out)
	if version == nil {
		return "", fmt.Errorf("%s prints no version: %q", name, out)
	}
	return name + " " + string(version), nil
}

// startOther starts a server that listens on the address, with a configuration file.
func (w *world) startOther(ctx context.Context, name, path string, address netip.AddrPort, config string, args ...string) (*peer, error) {
	file := name + ".conf"
	if err := w.Write(file, config); err != nil {
		return nil, err
	}
	child, err := w.pinned(exec.CommandContext(ctx, path, append(args, w.Path(file))...), site.Ready{Accepts: []string{address.String()}})
	if err != nil {
		return nil, err
	}
	return &peer{name: name, process: child, udp: address.String()}, nil
}

// startDNSDist starts dnsdist with a packet cache. It refuses other names.
func (w *world) startDNSDist(ctx context.Context) (*peer, error) {
	free, err := site.FreeAddresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	return w.startOther(ctx, "dnsdist", dnsdistPath, free[0], fmt.Sprintf(`setLocal("%s")
setSecurityPollSuffix("")
newServer({address="%s"})
getPool(""):setCache(newPacketCache(10000, {maxTTL=86400}))
names = newDNSNameSet()
`, free[0], w.upstream.Address)+eachName("names:add(newDNSName(\"%s\"))\n")+
		"addAction(NotRule(QNameSetRule(names)), RCodeAction(DNSRCode.REFUSED))\n",
		"--supervised", "--disable-syslog", "-C")
}

// startUnbound starts unbound as a forwarder. It refuses other names.
func (w *world) startUnbound(ctx context.Context) (*peer, error) {
	free, err := site.FreeAddresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	return w.startOther(ctx, "unbound", unboundPath, free[0], fmt.Sprintf(`server:
  directory: "%s"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  interface: 127.0.0.1@%d
  module-config: "iterator"
  do-not-query-localhost: no
  access-control: 127.0.0.0/8 allow
  local-zone: "." refuse
`, w.Path(""), free[0].Port())+eachName("  local-zone: \"%s.\" always_transparent\n")+
		fmt.Sprintf("remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: %s@%d\n", w.upstream.Address.Addr(), w.upstream.Address.Port()), "-d", "-c")
}

// startCoreDNS starts CoreDNS with a cache. It has no rules for names.
func (w *world) startCoreDNS(ctx context.Context, path string) (*peer, error) {
	free, err := site.FreeAddresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	return w.startOther(ctx, "CoreDNS", path, free[0], fmt.Sprintf(`.:%d {
  bind 127.0.0.1
  cache 86400
  forward . %s
}
`, free[0].Port(), w.upstream.Address), "-conf")
}
