package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/e2e/bench/process"
	"github.com/exeat-dev/exeat/identity/authority"
)

// The cores: what is measured has the first one for itself, as far as the
// machine lets it.
const (
	serverCore = "0"
	clientCore = "1"
)

// The names that are asked for, each of which has a rule.
const names = 1000

func nameOf(i int) string { return fmt.Sprintf("host-%04d.bench.example", i) }

// The names of the benchmark's world.
const (
	trustDomain = "bench.example"
	serverName  = "localhost"
	namesFile   = "names.txt"
)

// world is everything that runs: one directory, the children, and the server
// that all of them ask for what they do not know yet.
type world struct {
	dir       string
	exeatPath string
	upstream  net.PacketConn
	collector string // its URL
	children  []*process.Process
}

// newWorld builds the programs and starts what all peers need. After an error
// nothing of it is left.
func newWorld(ctx context.Context, exeat string) (*world, error) {
	dir, err := os.MkdirTemp("", "exeat-bench-dns-")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, exeatPath: exeat}
	if err := w.build(ctx); err != nil {
		w.end()
		return nil, err
	}
	return w, nil
}

func (w *world) build(ctx context.Context) error {
	const module = "github.com/exeat-dev/exeat"
	packages := []string{module + "/e2e/bench/dns/dot", module + "/e2e/bench/collector"}
	if w.exeatPath == "" {
		packages = append(packages, module+"/cmd/exeat")
		w.exeatPath = w.path("exeat")
	}
	out, err := exec.CommandContext(ctx, "go", append([]string{"build", "-o", w.dir + "/"}, packages...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("building: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if err := w.mint(); err != nil {
		return err
	}
	if err := os.WriteFile(w.path(namesFile), []byte(eachName("%s A\n")), 0o600); err != nil {
		return err
	}
	if w.upstream, err = new(net.ListenConfig).ListenPacket(ctx, "udp", "127.0.0.1:0"); err != nil {
		return err
	}
	go answer(w.upstream)
	collector, err := w.start(ctx, process.Command{Path: w.path("collector"), Addresses: 1})
	if err != nil {
		return err
	}
	w.collector = "http://" + collector.Addresses[0]
	return nil
}

// mint makes the certificates of the gateway and of its caller.
func (w *world) mint() error {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return err
	}
	ca, err := authority.New(authority.Config{TrustDomain: td})
	if err != nil {
		return err
	}
	for _, who := range []string{"gateway", "caller"} {
		svid, err := ca.Mint(authority.Options{
			ID: spiffeid.RequireFromPath(td, "/"+who), DNS: []string{serverName}, Lifetime: authority.DefaultCALifetime / 2,
		})
		if err != nil {
			return err
		}
		if err := svid.WriteDir(w.path(who), ca.Bundle()); err != nil {
			return err
		}
	}
	return nil
}

// eachName returns a text for each name, one after the other.
func eachName(format string) string {
	var b strings.Builder
	for i := range names {
		fmt.Fprintf(&b, format, nameOf(i))
	}
	return b.String()
}

// pinned starts a server on its core.
func (w *world) pinned(ctx context.Context, c process.Command) (*process.Process, error) {
	taskset, err := exec.LookPath("taskset")
	if err != nil {
		return nil, err
	}
	c.Path, c.Args = taskset, append([]string{"-c", serverCore, c.Path}, c.Args...)
	return w.start(ctx, c)
}

func (w *world) start(ctx context.Context, c process.Command) (*process.Process, error) {
	child, err := process.Start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	w.children = append(w.children, child)
	return child, nil
}

// end ends every child, the last one first, and removes the directory.
func (w *world) end() {
	for len(w.children) > 0 {
		last := len(w.children) - 1
		w.children[last].Stop()
		w.children = w.children[:last]
	}
	if w.upstream != nil {
		_ = w.upstream.Close()
	}
	_ = os.RemoveAll(w.dir)
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// freePort returns a port on loopback on which nobody listened a moment ago.
func freePort(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return "", fmt.Errorf("%s has no port", l.Addr())
	}
	return strconv.Itoa(addr.Port), nil
}
