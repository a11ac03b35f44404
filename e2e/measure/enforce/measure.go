package enforce

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// Times of a round.
const (
	echoEvery = 10 * time.Millisecond
	before    = 500 * time.Millisecond // of echoes for comparison, before tunnels end
	after     = 50 * time.Millisecond  // of echoes after the last tunnel has ended
	patience  = 15 * time.Second       // for the tunnels to end
)

// tunnelOf returns the caller and the destination of the nth tunnel: every identity in
// turn, to every destination in turn.
func tunnelOf(n int) (caller, destination int) { return n % identities, n / identities % destinations }

// campaign is a whole run.
type campaign struct {
	*world
	tunnels int
	clients map[string]int // number of the tunnel by the caller's address in records
}

func measure(ctx context.Context, o options, stderr io.Writer) (*table, error) {
	w, err := newWorld(ctx, o.exeat)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	defer w.warnings(stderr)
	c := &campaign{world: w, tunnels: o.tunnels, clients: map[string]int{}}
	start := time.Now()
	if err := c.openAll(); err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(stderr, "%d tunnels are open after %s\n", o.tunnels, time.Since(start).Round(time.Millisecond))
	t := &table{tunnels: o.tunnels, rounds: o.rounds}
	for _, sc := range w.scenarios() {
		f := figures{scenario: sc}
		for n := range o.rounds {
			r, err := c.round(ctx, sc)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", sc.name, n+1, err)
			}
			f.rounds = append(f.rounds, r)
			_, _ = fmt.Fprintln(stderr, r)
		}
		t.figures = append(t.figures, f)
	}
	return t, nil
}

func (c *campaign) openAll() error {
	all := make([]int, c.tunnels)
	for n := range all {
		all[n] = n
	}
	if err := c.open(all); err != nil {
		return err
	}
	var tasks []task
	for n := range probes { // with identities and destinations whose tunnels no scenario ends
		tasks = append(tasks, task{N: n, Caller: n, Target: c.target(n % aliased)})
	}
	_, err := c.prober.do(command{Open: tasks})
	return err
}

func (c *campaign) target(destination int) string { return host(destination) + ":" + c.port }

// open opens tunnels in the holder, by their numbers.
func (c *campaign) open(numbers []int) error {
	if len(numbers) == 0 {
		return nil
	}
	tasks := make([]task, len(numbers))
	for i, n := range numbers {
		caller, destination := tunnelOf(n)
		tasks[i] = task{N: n, Caller: caller, Target: c.target(destination)}
	}
	r, err := c.holder.do(command{Open: tasks})
	if err != nil {
		return err
	}
	maps.DeleteFunc(c.clients, func(_ string, n int) bool { return slices.Contains(numbers, n) })
	for _, o := range r.Opened {
		c.clients[o.Local] = o.N
	}
	return nil
}

// round forbids the victims' tunnels, notes which tunnels end, and restores them.
func (c *campaign) round(ctx context.Context, sc scenario) (result, error) {
	var victims []int
	for n := range c.tunnels {
		if sc.victim(tunnelOf(n)) {
			victims = append(victims, n)
		}
	}
	if _, err := c.records.read(); err != nil { // reads the records of earlier rounds
		return result{}, err
	}
	if _, err := c.prober.do(command{Probe: echoEvery}); err != nil {
		return result{}, err
	}
	select {
	case <-time.After(before):
	case <-ctx.Done():
		return result{}, context.Cause(ctx)
	}
	due, err := sc.forbid(ctx)
	if err != nil {
		return result{}, err
	}
	seen, err := c.holder.do(command{Await: &await{Count: len(victims), Patience: patience}})
	if err != nil {
		return result{}, err
	}
	probed, err := c.prober.do(command{Stop: true})
	if err != nil {
		return result{}, err
	}
	records, err := c.records.until(ctx, "tunnels that ended", func(all []site.Record) bool {
		_, ok := reloaded(all, due)
		return ok && countCloses(all) >= len(seen.Ended)
	})
	if err != nil {
		return result{}, err
	}
	r := c.evaluate(sc, victims, due, seen.Ended, records)
	r.sortEchoes(probed.Echoes)
	return r, c.restore(ctx, sc, seen.Ended)
}

func countCloses(all []site.Record) (n int) {
	for _, r := range all {
		if r.Event == "tunnel.close" {
			n++
		}
	}
	return n
}

// restore allows everything again, and opens the tunnels that ended.
func (c *campaign) restore(ctx context.Context, sc scenario, gone []ended) error {
	since, err := sc.restore()
	if err != nil {
		return err
	}
	if _, err := c.records.until(ctx, "the state that allows everything", func(all []site.Record) bool {
		_, ok := reloaded(all, since)
		return ok
	}); err != nil {
		return err
	}
	var numbers []int
	for _, e := range gone {
		numbers = append(numbers, e.N)
	}
	return c.open(numbers)
}

// evaluate compares the tunnels that should have ended with those that did.
func (c *campaign) evaluate(sc scenario, victims []int, due time.Time, gone []ended, records []site.Record) result {
	swapped, _ := reloaded(records, due)
	r := result{due: due, swap: began(swapped), took: swapped.Time.Sub(began(swapped)), victims: len(victims), last: due}
	if sc.dated {
		r.swap = due // the state was in force before, so that the date counts
	}
	var bySight, byRecord []int
	for _, e := range gone {
		bySight = append(bySight, e.N)
		r.seen = append(r.seen, e.At.Sub(r.swap))
		if e.At.After(r.last) {
			r.last = e.At
		}
	}
	for _, rec := range records {
		if rec.Event != "tunnel.close" {
			continue
		}
		n, ok := c.clients[rec.Client]
		if !ok {
			r.faults = append(r.faults, "a record of an unknown tunnel: "+rec.Client)
			continue
		}
		byRecord = append(byRecord, n)
		r.recorded = append(r.recorded, rec.Time.Sub(r.swap))
		caller, destination := tunnelOf(n)
		if rec.CloseReason != "revoked" || rec.Reason != sc.reason || rec.Rule == "" || rec.Identity != callerID(caller) || rec.Host != host(destination) {
			r.faults = append(r.faults, fmt.Sprintf("tunnel %d: a record that is wrong: %+v", n, rec))
		}
	}
	r.faults = append(r.faults, differ("ended, as the callers see it", bySight, victims)...)
	r.faults = append(r.faults, differ("ended, as the records say", byRecord, victims)...)
	slices.Sort(r.seen)
	slices.Sort(r.recorded)
	return r
}

// differ describes how two sets differ. It returns nothing if they are equal and got has
// no element twice. want must be sorted.
func differ(what string, got, want []int) []string {
	slices.Sort(got)
	var faults []string
	for i, n := range got {
		if _, ok := slices.BinarySearch(want, n); !ok {
			faults = append(faults, fmt.Sprintf("tunnel %d %s, and should not have", n, what))
		}
		if i > 0 && got[i-1] == n {
			faults = append(faults, fmt.Sprintf("tunnel %d %s, twice", n, what))
		}
	}
	for _, n := range want {
		if _, ok := slices.BinarySearch(got, n); !ok {
			faults = append(faults, fmt.Sprintf("tunnel %d should have %s", n, what))
		}
	}
	return faults
}
