// Command stubs looks up names with the resolvers of glibc, musl and Go. They query
// exeat through a resolv.conf with search suffixes and a second name server. The command
// runs in its own namespaces for network and mounts:
//
//	unshare --map-root-user --mount --net stubs -exeat exeat -musl lookup -go golookup
//
// It prints a table. It fails if an allowed name is not found, a denied one is found, a
// lookup takes too long, or a packet comes to the second server without need: musl
// queries all servers at the same time, the others query the second one only after a
// failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// The bar for the time of a denied name, and how many times the bar fails the run,
// because the machine may be busy.
const (
	bar   = 100 * time.Millisecond
	grace = 5
	tries = 5
)

const (
	allowed = "allowed.example"
	denied  = "denied.example"
	address = "93.184.216.34"
)

// files returns the files that the stubs and exeat read.
func files() map[string]string {
	return map[string]string{
		"resolv.conf":   "nameserver 127.0.0.1\nnameserver 127.0.0.2\nsearch team.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
		"nsswitch.conf": "hosts: dns\n",
		"exeat.yaml": `version: 1
policy: policy.yaml
listeners: [{name: stubs, address: "127.0.0.1:53", protocol: dns, identity: fixed, id: spiffe://prod.example/stub}]
resolver: {servers: 127.0.0.53}
records: {file: records.jsonl}
timeouts: {drain_delay: 0s}
`,
		"policy.yaml": "version: 1\nidentities: [{id: spiffe://prod.example/stub, allow: [{host: allowed.example}]}]\n",
	}
}

// stub is a resolver, and the command that runs it.
type stub struct {
	name    string
	command []string
	atOnce  bool // says that it queries all name servers at the same time
}

func main() {
	exeat := flag.String("exeat", "", "the program under test")
	musl := flag.String("musl", "", "musl/lookup.c, built")
	golookup := flag.String("go", "", "the program golookup")
	flag.Parse()
	stubs := []stub{
		{name: "glibc", command: []string{"getent", "ahosts"}},
		{name: "musl", command: []string{*musl}, atOnce: true},
		{name: "go", command: []string{*golookup}},
	}
	if err := run(context.Background(), *exeat, stubs, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "stubs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, exeat string, stubs []stub, out io.Writer) error {
	dir, err := os.MkdirTemp("", "stubs-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := prepare(ctx, dir); err != nil {
		return err
	}
	second, err := listen(ctx, "127.0.0.2:53", false)
	if err != nil {
		return err
	}
	upstream, err := listen(ctx, "127.0.0.53:53", true)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, exeat, "serve", "--config", "exeat.yaml")
	cmd.Dir = dir
	gateway, err := site.Start(cmd, site.Ready{Announces: 1})
	if err != nil {
		return err
	}
	defer gateway.Stop()
	var broken []error
	_, _ = fmt.Fprintf(out, "%-6s %-16s %-8s %8s %8s  %s\n", "stub", "name", "found", "fastest", "slowest", "packets to the second server")
	for _, s := range stubs {
		for _, name := range []string{allowed, denied} {
			broken = append(broken, s.try(ctx, name, second, out))
		}
	}
	if asked := upstream.asked(); len(asked) != 1 || !asked[allowed] {
		broken = append(broken, fmt.Errorf("the upstream server was asked for %v, want %s only", asked, allowed))
	}
	return errors.Join(broken...)
}

// prepare sets up the namespaces for the stubs.
func prepare(ctx context.Context, dir string) error {
	for name, text := range files() {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, command := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"mount", "--bind", filepath.Join(dir, "resolv.conf"), "/etc/resolv.conf"},
		{"mount", "--bind", filepath.Join(dir, "nsswitch.conf"), "/etc/nsswitch.conf"},
	} {
		if said, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, said)
		}
	}
	return nil
}

// try looks up a name a few times.
func (s stub) try(ctx context.Context, name string, second *server, out io.Writer) error {
	before, err := second.count(ctx)
	if err != nil {
		return err
	}
	var fastest, slowest time.Duration
	found := false
	for i := range tries {
		within, cancel := context.WithTimeout(ctx, 20*time.Second)
		begin := time.Now()
		said, _ := exec.CommandContext(within, s.command[0], append(s.command[1:], name)...).Output() // a name that is not found is an error
		took := time.Since(begin)
		cancel()
		found = strings.Contains(string(said), address)
		if i == 0 || took < fastest {
			fastest = took
		}
		slowest = max(slowest, took)
	}
	after, err := second.count(ctx)
	if err != nil {
		return err
	}
	packets := after - before
	_, _ = fmt.Fprintf(out, "%-6s %-16s %-8t %8s %8s  %d\n", s.name, name, found,
		fastest.Round(time.Millisecond/10), slowest.Round(time.Millisecond/10), packets)
	switch {
	case found != (name == allowed):
		return fmt.Errorf("%s finds %s: %t", s.name, name, found)
	case name == denied && fastest > grace*bar:
		return fmt.Errorf("%s takes %s for a denied name, the bar is %s", s.name, fastest, bar)
	case packets > 0 && !s.atOnce:
		return fmt.Errorf("%s asks the second server for %s", s.name, name)
	}
	return nil
}
