package tunnels

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// workers is how many clients open tunnels at the same time.
const workers = 4

// bench is a run.
type bench struct {
	options
	world        *world
	relay, exeat *peer
	others       []*other
	callers      []*caller // one for each identity, with X25519
	progress     io.Writer
	rows         []report.Row
}

// measure does a whole run.
func measure(ctx context.Context, o options, progress io.Writer) (report.Table, error) {
	b := &bench{options: o, progress: progress}
	if err := b.begin(ctx); err != nil {
		return report.Table{}, err
	}
	defer b.world.Close()
	for _, part := range b.parts() {
		if b.only != "" && b.only != part.name {
			continue
		}
		if err := part.measure(ctx); err != nil {
			return report.Table{}, err
		}
	}
	evidence, err := b.world.evidence(ctx, b.exeat)
	if err != nil {
		return report.Table{}, err
	}
	return report.Table{Head: append(b.head(), evidence), Others: names(b.others), Rows: b.rows}, nil
}

// part is a part of the figures, and its name for the flag -only.
type part struct {
	name    string
	measure func(context.Context) error
}

func (b *bench) parts() []part {
	parts := []part{{"tunnels", b.newTunnels}}
	if !b.peers { // these compare exeat with itself
		parts = append(parts, part{"evidence", b.quietTunnels}, part{"denials", b.denials}, part{"h2", b.h2})
	}
	return append(parts, part{"bulk", b.bulk}, part{"trips", b.roundTrips}, part{"latency", b.latency}, part{"idle", b.idleTunnels})
}

// begin starts the world and the peers, and warms them up.
func (b *bench) begin(ctx context.Context) (err error) {
	b.say("building and starting")
	if b.world, err = newWorld(ctx, b.options.exeat); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.world.Close()
		}
	}()
	if b.callers, err = b.world.mint(identities, tls.X25519); err != nil {
		return err
	}
	if b.relay, err = b.world.startRelay(ctx); err != nil {
		return err
	}
	if b.exeat, err = b.world.startExeat(ctx); err != nil {
		return err
	}
	if b.peers {
		if b.others, err = b.world.startOthers(ctx, b.callers); err != nil {
			return err
		}
	}
	return warm(ctx, b.callers, b.relay, b.exeat)
}

// warm opens a hundred tunnels through peers, so that they set up what every process sets
// up once.
func warm(ctx context.Context, callers []*caller, peers ...*peer) error {
	for _, p := range peers {
		if _, err := exchanges(ctx, p, callers[:100], 100); err != nil {
			return err
		}
	}
	return nil
}

// measurement measures a peer once, in the unit of a row. For one of the others it may
// return errors.ErrUnsupported.
type measurement func(ctx context.Context, p *peer) (float64, error)

// paired measures the relay, exeat and the others in turn, and adds a row.
func (b *bench) paired(ctx context.Context, row report.Row, one measurement) error {
	return b.compared(ctx, row, b.relay, b.exeat, b.others, one)
}

// compared measures peers in turn, and adds a row with left in the place of the relay.
func (b *bench) compared(ctx context.Context, row report.Row, left, right *peer, others []*other, one measurement) error {
	b.say(row.Figure)
	row.Others = make([][]float64, len(others))
	for range b.pairs {
		floor, err := one(ctx, left)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", row.Figure, left.name, err)
		}
		ours, err := one(ctx, right)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", row.Figure, right.name, err)
		}
		row.Floor, row.Ours = append(row.Floor, floor), append(row.Ours, ours)
		for i, o := range others {
			theirs, err := one(ctx, o.peer)
			switch {
			case errors.Is(err, errors.ErrUnsupported):
			case err != nil:
				return fmt.Errorf("%s: %s: %w", row.Figure, o.name, err)
			default:
				row.Others[i] = append(row.Others[i], theirs)
			}
		}
	}
	b.rows = append(b.rows, row)
	return nil
}

// cpu returns the processor time that the peer uses for a load, its spans included.
func (p *peer) cpu(ctx context.Context, load func(ctx context.Context) error) (time.Duration, error) {
	before, err := p.process.CPU()
	if err != nil {
		return 0, err
	}
	if err := load(ctx); err != nil {
		return 0, err
	}
	if err := p.spans.wait(ctx); err != nil {
		return 0, err
	}
	after, err := p.process.CPU()
	return after - before, err
}

// evidence checks that exeat has written every record and exported every span.
func (w *world) evidence(ctx context.Context, exeat *peer) (string, error) {
	exeat.process.Stop() // the process writes its last records
	if err := w.spans.wait(ctx); err != nil {
		return "", err
	}
	got, err := w.decisions()
	if err != nil {
		return "", err
	}
	if want := w.spans.requests.Load(); got != want {
		return "", fmt.Errorf("%d decisions were recorded, %d were made", got, want)
	}
	return fmt.Sprintf("exeat recorded all %d decisions and exported all %d spans.", got, w.spans.expected.Load()), nil
}

func (b *bench) head() []string {
	binary := "exeat"
	if b.options.exeat != "" {
		binary = "exeat (" + b.options.exeat + ")"
	}
	head := []string{
		fmt.Sprintf("%s, %s, %d cores, %s.", time.Now().UTC().Format("2006-01-02 15:04 MST"), report.Processor(), runtime.NumCPU(), runtime.Version()),
		fmt.Sprintf("Medians of %d pairs; per pair %d new tunnels, %d MB each way, %d idle tunnels.", b.pairs, b.tunnels, b.bytes/1e6, b.idle),
		fmt.Sprintf("%s with a policy of %d rules, records to a file, spans over OTLP/HTTP.", binary, identities*rulesEach),
	}
	if b.peers {
		return append(head, othersHead(b.others))
	}
	return append(head,
		"Where they are off, left, no span is made and records go to "+os.DevNull+"; they are rendered, and metrics counted, on both sides.")
}

func (b *bench) say(what string) { _, _ = fmt.Fprintln(b.progress, "tunnels:", what) }
