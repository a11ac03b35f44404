package dns

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/exeat-dev/exeat/e2e/measure/spans"
	"github.com/exeat-dev/exeat/e2e/site"
)

// The cores: the measured server has the first one for itself, unless other programs of
// the machine run there.
const (
	serverCore = "0"
	clientCore = "1"
)

// names is the number of names that are queried. Each has a rule.
const names = 1000

func nameOf(i int) string { return fmt.Sprintf("host-%04d.bench.example", i) }

// Names of the site.
const (
	trustDomain = "bench.example"
	namesFile   = "names.txt"
)

// world is everything that runs, and the name server that all servers forward to.
type world struct {
	*site.Site

	upstream  *site.Names
	collector *spans.Collector
}

// newWorld builds the programs, and starts what all peers need. If it returns an error,
// everything is ended.
func newWorld(ctx context.Context, exeat string) (*world, error) {
	s, err := site.New(trustDomain)
	if err != nil {
		return nil, err
	}
	s.Exeat = exeat
	w := &world{Site: s}
	if err := w.build(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *world) build(ctx context.Context) error {
	if err := w.Build(ctx, "e2e/measure/dns/dot", spans.Program); err != nil {
		return err
	}
	if err := w.MintDir("caller"); err != nil {
		return err
	}
	if err := w.Write(namesFile, eachName("%s A\n")); err != nil {
		return err
	}
	var err error
	if w.upstream, err = w.Names(anywhere); err != nil {
		return err
	}
	w.collector, err = spans.Start(ctx, w.Site)
	return err
}

// anywhere resolves every name to one address. A cache needs each name only once.
func anywhere(name dnsmessage.Name) []dnsmessage.Resource {
	return []dnsmessage.Resource{site.IPv4(name, [4]byte{93, 184, 216, 34})}
}

// eachName returns a text with format for each name, one after the other.
func eachName(format string) string {
	var b strings.Builder
	for i := range names {
		fmt.Fprintf(&b, format, nameOf(i))
	}
	return b.String()
}

// pinned starts a server on the server's core.
func (w *world) pinned(cmd *exec.Cmd, ready site.Ready) (*site.Process, error) {
	taskset, err := exec.LookPath("taskset")
	if err != nil {
		return nil, err
	}
	cmd.Args = append([]string{taskset, "-c", serverCore, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = taskset
	p, err := w.Start(cmd, ready)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return p, nil
}
