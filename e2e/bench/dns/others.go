package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"

	"github.com/exeat-dev/exeat/e2e/bench/process"
)

// Where Debian installs them.
const (
	dnsdistPath = "/usr/bin/dnsdist"
	unboundPath = "/usr/sbin/unbound"
)

// versionOf returns the name and the version that a program prints.
func versionOf(ctx context.Context, path, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, path, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s must be installed: %w", name, err)
	}
	version := regexp.MustCompile(`[0-9]+(\.[0-9]+)+`).Find(out)
	if version == nil {
		return "", fmt.Errorf("%s does not tell its version: %q", name, out)
	}
	return name + " " + string(version), nil
}

// startOther starts a server that is told where to listen, and its
// configuration.
func (w *world) startOther(ctx context.Context, name, path, port, config string, args ...string) (*peer, error) {
	file := w.path(name + ".conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	address := "127.0.0.1:" + port
	child, err := w.pinned(ctx, process.Command{Path: path, Args: append(args, file), Listens: []string{address}})
	if err != nil {
		return nil, err
	}
	return &peer{name: name, process: child, udp: address}, nil
}

// startDNSDist starts it with a packet cache, and refuses other names.
func (w *world) startDNSDist(ctx context.Context) (*peer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	return w.startOther(ctx, "dnsdist", dnsdistPath, port, fmt.Sprintf(`setLocal("127.0.0.1:%s")
setSecurityPollSuffix("")
newServer({address="%s"})
getPool(""):setCache(newPacketCache(10000, {maxTTL=86400}))
names = newDNSNameSet()
`, port, w.upstream.LocalAddr())+eachName("names:add(newDNSName(\"%s\"))\n")+
		"addAction(NotRule(QNameSetRule(names)), RCodeAction(DNSRCode.REFUSED))\n",
		"--supervised", "--disable-syslog", "-C")
}

// startUnbound starts it as a forwarder, which refuses other names.
func (w *world) startUnbound(ctx context.Context) (*peer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	upstream, err := atPort(w.upstream.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	return w.startOther(ctx, "unbound", unboundPath, port, fmt.Sprintf(`server:
  directory: "%s"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  interface: 127.0.0.1@%s
  module-config: "iterator"
  do-not-query-localhost: no
  access-control: 127.0.0.0/8 allow
  local-zone: "." refuse
`, w.dir, port)+eachName("  local-zone: \"%s.\" always_transparent\n")+
		"remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: "+upstream+"\n", "-d", "-c")
}

// startCoreDNS starts it with a cache. It knows no rule for a name.
func (w *world) startCoreDNS(ctx context.Context, path string) (*peer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	return w.startOther(ctx, "CoreDNS", path, port, fmt.Sprintf(`.:%s {
  bind 127.0.0.1
  cache 86400
  forward . %s
}
`, port, w.upstream.LocalAddr()), "-conf")
}
