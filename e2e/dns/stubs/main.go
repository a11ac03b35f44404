// Command stubs looks up names with the resolvers of glibc, musl, Go, c-ares (in Node)
// and Java. They query exeat through a resolv.conf with search suffixes and a second
// name server. The command runs in its own namespaces for network and mounts:
//
//	unshare --map-root-user --mount --net stubs -exeat exeat -musl lookup -go golookup -cares lookup.js -java DIR
//
// It prints a table. It fails if an allowed name is not found, a denied one is found, a
// lookup takes too long, or a packet comes to the second server without need: musl
// queries all servers at the same time, the others query the second one only after a
// failure. It looks up names beyond the name budget last, through a resolv.conf that
// names exeat only.
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

// How long a name beyond the name budget may take: musl waits for its whole time after
// a failure, which is five seconds, and nobody waits for ten.
const (
	budgetBar  = time.Second
	budgetWait = 8 * time.Second
)

const (
	allowed = "allowed.example"
	denied  = "denied.example"
	within  = "within.wild.example" // the one name below the wildcard that may be looked up
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
resolver: {servers: 127.0.0.53, names_per_minute: 1}
records: {file: records.jsonl}
timeouts: {drain_delay: 0s}
`,
		"policy.yaml": "version: 1\nidentities: [{id: spiffe://prod.example/stub, allow: [{host: allowed.example}, {host: '*.wild.example'}]}]\n",
	}
}

// stub is a resolver, and the command that runs it.
type stub struct {
	name    string
	command []string
	atOnce  bool // says that it queries all name servers at the same time
	slow    bool // says that its program takes long to start
}

func main() {
	exeat := flag.String("exeat", "", "the program under test")
	musl := flag.String("musl", "", "musl/lookup.c, built")
	golookup := flag.String("go", "", "the program golookup")
	cares := flag.String("cares", "", "cares/lookup.js")
	java := flag.String("java", "", "directory of java/Lookup.java, compiled")
	flag.Parse()
	stubs := []stub{
		{name: "glibc", command: []string{"getent", "ahosts"}},
		{name: "musl", command: []string{*musl}, atOnce: true},
		{name: "go", command: []string{*golookup}},
		{name: "c-ares", command: []string{"node", *cares}, slow: true},
		{name: "java", command: []string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", *java, "Lookup"}, slow: true},
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
	_, _ = fmt.Fprintf(out, "%-6s %-20s %-8s %8s %8s  %s\n", "stub", "name", "found", "fastest", "slowest", "packets to the second server")
	for _, s := range stubs {
		for _, name := range []string{allowed, denied} {
			broken = append(broken, s.try(ctx, name, second, out))
		}
	}
	broken = append(broken, overBudget(ctx, dir, stubs, out))
	if asked := upstream.asked(); len(asked) != 2 || !asked[allowed] || !asked[within] {
		broken = append(broken, fmt.Errorf("the upstream server was asked for %v, want %s and %s only", asked, allowed, within))
	}
	return errors.Join(broken...)
}

// overBudget looks up names that are beyond the name budget.
func overBudget(ctx context.Context, dir string, stubs []stub, out io.Writer) error {
	// The file is written in place, because the file itself is mounted.
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		return err
	}
	if found, _ := stubs[0].lookUp(ctx, within); !found {
		return fmt.Errorf("%s does not find %s", stubs[0].name, within)
	}
	var broken []error
	_, _ = fmt.Fprintf(out, "%-6s %-20s %-8s %8s\n", "stub", "beyond the budget", "found", "took")
	for i, s := range stubs {
		name := fmt.Sprintf("beyond%d.wild.example", i)
		found, took := s.lookUp(ctx, name)
		_, _ = fmt.Fprintf(out, "%-6s %-20s %-8t %8s\n", s.name, name, found, took.Round(time.Millisecond/10))
		most := grace * budgetBar
		if s.atOnce {
			most = budgetWait
		}
		switch {
		case found:
			broken = append(broken, fmt.Errorf("%s finds %s", s.name, name))
		case took > most:
			broken = append(broken, fmt.Errorf("%s takes %s for a name beyond the budget", s.name, took))
		}
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

// lookUp looks up a name once. A program that takes long to start prints itself how long
// the lookup took.
func (s stub) lookUp(ctx context.Context, name string) (found bool, took time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	begin := time.Now()
	said, _ := exec.CommandContext(ctx, s.command[0], append(s.command[1:], name)...).Output() // not found is an error
	took = time.Since(begin)
	if s.slow {
		ms := -1
		if _, err := fmt.Sscanf(string(said), "took %d ms", &ms); err == nil {
			took = time.Duration(ms) * time.Millisecond
		}
	}
	return strings.Contains(string(said), address), took
}

// try looks up a name a few times.
func (s stub) try(ctx context.Context, name string, second *server, out io.Writer) error {
	before, err := second.count(ctx)
	if err != nil {
		return err
	}
	var fastest, slowest time.Duration
	found := false
	times := tries
	if s.slow {
		times = 2
	}
	for i := range times {
		var took time.Duration
		found, took = s.lookUp(ctx, name)
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
	_, _ = fmt.Fprintf(out, "%-6s %-20s %-8t %8s %8s  %d\n", s.name, name, found,
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
