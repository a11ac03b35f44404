package dns

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/site"
)

// peer is one of the servers that are compared.
type peer struct {
	name    string
	process *site.Process
	udp     string // address for UDP
	dot     string // address for DoT; "" if it is not measured

	records, spans *counter // nil for a peer that writes none
}

// bench is a run.
type bench struct {
	options
	world    *world
	dnsdist  *peer
	others   []*peer // unbound and CoreDNS
	progress io.Writer
	rows     []report.Row
}

// measure does a whole run.
func measure(ctx context.Context, o options, progress io.Writer) (report.Table, error) {
	b := &bench{options: o, progress: progress}
	b.say("building and starting")
	var err error
	if b.world, err = newWorld(ctx, o.exeat); err != nil {
		return report.Table{}, err
	}
	defer b.world.Close()
	if err := b.startOthers(ctx); err != nil {
		return report.Table{}, err
	}
	for _, row := range b.figures() {
		if !strings.Contains(row.Figure, b.only) {
			continue
		}
		if err := b.figure(ctx, row); err != nil {
			return report.Table{}, fmt.Errorf("%s: %w", row.Figure, err)
		}
	}
	t := report.Table{Head: b.head(), Floor: b.dnsdist.name, Rows: b.rows}
	for _, other := range b.others {
		t.Others = append(t.Others, other.name)
	}
	return t, nil
}

// figure is a row, and how it is measured.
type figure struct {
	report.Row

	evidence evidence
	dot      bool // measure over DoT, and only exeat
	all      bool // measure unbound and CoreDNS, too
}

func (b *bench) figures() []figure {
	row := func(name string, bar report.Bar) report.Row {
		return report.Row{Figure: name, Unit: "q/s", More: true, Bar: bar}
	}
	return []figure{
		{Row: row("UDP, counters and records of denials", report.Bar{Ratio: 1}), evidence: counters(), all: true},
		{Row: row("UDP, a record in a file for every query", report.Bar{Ratio: 0.8}), evidence: recorded()},
		{Row: row("UDP, a record and a span for every query", report.Bar{Value: 45_000}), evidence: traced()},
		{Row: row("DoT with client certificates, counters and records of denials", report.Bar{Value: 60_000}), evidence: counters(), dot: true},
	}
}

// startOthers starts dnsdist, unbound and, if its binary is given, CoreDNS.
func (b *bench) startOthers(ctx context.Context) error {
	for _, o := range []struct {
		name, path, version string
		start               func(context.Context) (*peer, error)
	}{
		{"dnsdist", dnsdistPath, "--version", b.world.startDNSDist},
		{"unbound", unboundPath, "-V", b.world.startUnbound},
		{"CoreDNS", b.coredns, "-version", func(ctx context.Context) (*peer, error) { return b.world.startCoreDNS(ctx, b.coredns) }},
	} {
		if o.path == "" {
			continue
		}
		version, err := versionOf(ctx, o.path, o.name, o.version)
		if err != nil {
			return err
		}
		p, err := o.start(ctx)
		if err != nil {
			return err
		}
		if err := b.world.warm(ctx, p.udp); err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
		p.name = version
		if b.dnsdist == nil {
			b.dnsdist = p
		} else {
			b.others = append(b.others, p)
		}
	}
	return nil
}

// figure measures dnsdist, exeat and the others in turn, and adds a row.
func (b *bench) figure(ctx context.Context, f figure) error {
	b.say(f.Figure)
	exeat, err := b.world.startExeat(ctx, f.evidence)
	if err != nil {
		return err
	}
	defer exeat.process.Stop()
	if err := b.world.warm(ctx, exeat.udp); err != nil {
		return err
	}
	f.Others = make([][]float64, len(b.others))
	for range b.pairs {
		if !f.dot {
			theirs, err := b.perSecond(ctx, b.dnsdist, f)
			if err != nil {
				return err
			}
			f.Floor = append(f.Floor, theirs)
		}
		ours, err := b.perSecond(ctx, exeat, f)
		if err != nil {
			return err
		}
		f.Ours = append(f.Ours, ours)
		if !f.all {
			continue
		}
		for i, other := range b.others {
			theirs, err := b.perSecond(ctx, other, f)
			if err != nil {
				return err
			}
			f.Others[i] = append(f.Others[i], theirs)
		}
	}
	b.rows = append(b.rows, f.Row)
	if f.all && b.coredns != "" {
		b.besideCoreDNS(f.Row)
	}
	return nil
}

// besideCoreDNS adds a row that compares exeat with the last of the others, CoreDNS.
func (b *bench) besideCoreDNS(of report.Row) {
	of.Figure, of.Floor, of.Others = "the same (left: CoreDNS)", of.Others[len(of.Others)-1], nil
	of.Bar = report.Bar{Ratio: 1.9}
	b.rows = append(b.rows, of)
}

// perSecond returns the number of queries that a server answers in a second of its
// processor time, which includes the time for records and spans.
func (b *bench) perSecond(ctx context.Context, p *peer, f figure) (float64, error) {
	for _, c := range []*counter{p.records, p.spans} {
		if err := c.begin(ctx); err != nil {
			return 0, err
		}
	}
	before, err := p.process.CPU()
	if err != nil {
		return 0, err
	}
	n, err := b.load(ctx, p, f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.name, err)
	}
	for _, c := range []*counter{p.records, p.spans} {
		if err := c.wait(ctx, n); err != nil {
			return 0, err
		}
	}
	after, err := p.process.CPU()
	return float64(n) / (after - before).Seconds(), err
}

func (b *bench) load(ctx context.Context, p *peer, f figure) (int64, error) {
	if f.dot {
		return b.world.overTLS(ctx, p.dot, b.length)
	}
	return b.world.dnsperf(ctx, p.udp, b.length)
}

func (b *bench) head() []string {
	return []string{
		fmt.Sprintf("%s, %d cores, %s.", time.Now().UTC().Format("2006-01-02 15:04 MST"), runtime.NumCPU(), runtime.Version()),
		fmt.Sprintf("Queries in a second of the server's processor time, medians of %d pairs of %s; the server on one core, the client on another.", b.pairs, b.length),
		fmt.Sprintf("%d names from the caches, dnsperf with %d clients and %d queries outstanding; exeat, dnsdist and unbound have a rule for each name and refuse all others.", names, clients, outstanding),
	}
}

func (b *bench) say(what string) { _, _ = fmt.Fprintln(b.progress, "dns:", what) }
