package enforce

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// tooMuch is how many times its bar a figure may be, in the best of its rounds, before
// the run fails. If the machine was busy for a moment, one round is bad; if exeat has a
// fault, all are.
const tooMuch = 5

// Bars for the 99th percentile.
const (
	barSwap   = 50 * time.Millisecond
	barRename = 250 * time.Millisecond
	barGap    = 5 * time.Millisecond
)

// result is the result of a round.
type result struct {
	due  time.Time // time of the rename, or the date
	swap time.Time // when the state came into force, or the date
	last time.Time // the last end that a caller noticed
	took time.Duration
	// Times from swap to the ends, sorted: as callers noticed them, and as records have
	// them.
	seen, recorded []time.Duration
	quiet, busy    []time.Duration // times of echoes before and while tunnels ended
	victims        int
	faults         []string
}

// sortEchoes divides the echoes of the round by the time at which they were due.
func (r *result) sortEchoes(echoes []echo) {
	for _, e := range echoes {
		switch {
		case e.Due.Add(e.Took).Before(r.due):
			r.quiet = append(r.quiet, e.Took)
		case e.Due.Before(r.last.Add(after)):
			r.busy = append(r.busy, e.Took)
		}
	}
}

func (r result) String() string {
	return fmt.Sprintf("%d of %d ended; swap %s after the rename or date, judged and told in %s; last record %s, last seen %s after the swap; echo %s before, %s during",
		len(r.seen), r.victims, round(r.swap.Sub(r.due)), round(r.took), round(quantile(r.recorded, 1)), round(quantile(r.seen, 1)),
		round(quantile(r.quiet, 0.99)), round(quantile(r.busy, 0.99)))
}

// figures are the results of all rounds of a scenario.
type figures struct {
	scenario scenario
	rounds   []result
}

// row is a line of the table.
type row struct {
	scenario, figure string
	values           []time.Duration
	bar              time.Duration // for the 99th percentile; zero means none
	// floor is the 99th percentile of the machine at rest. On a busy machine it may be
	// above the bar before any tunnel ends.
	floor time.Duration
}

func (f figures) rows() []row {
	var recorded, seen, lastRecord, lastSeen, whole, quiet, busy []time.Duration
	for _, r := range f.rounds {
		recorded, seen = append(recorded, r.recorded...), append(seen, r.seen...)
		lastRecord = append(lastRecord, quantile(r.recorded, 1))
		lastSeen = append(lastSeen, quantile(r.seen, 1))
		whole = append(whole, r.last.Sub(r.due))
		quiet, busy = append(quiet, r.quiet...), append(busy, r.busy...)
	}
	name, from := f.scenario.name, "swap"
	if f.scenario.dated {
		from = "date"
	}
	rows := []row{
		{scenario: name, figure: from + " to each close, by its record", values: recorded},
		{scenario: name, figure: from + " to each close, seen by its caller", values: seen},
		{scenario: name, figure: from + " to last close, by its record", values: lastRecord, bar: barSwap},
		{scenario: name, figure: from + " to last close, seen by its caller", values: lastSeen, bar: barSwap},
	}
	if !f.scenario.dated {
		rows = append(rows, row{scenario: name, figure: "rename to last close, seen by its caller", values: whole, bar: barRename})
	}
	return append(rows,
		row{scenario: name, figure: "echo through a survivor, before", values: quiet},
		row{
			scenario: name, figure: "echo through a survivor, while tunnels close", values: busy,
			bar: barGap, floor: quantile(quiet, 0.99),
		})
}

// table is the result of a run.
type table struct {
	tunnels, rounds int
	limit           int // descriptor limit
	figures         []figures
}

// faults returns the reasons for which the run fails, if any.
func (t *table) faults() []string {
	const most = 10 // for each round, since there may be thousands of the same kind
	var faults []string
	for _, f := range t.figures {
		for n, r := range f.rounds {
			for i, fault := range r.faults[:min(most, len(r.faults))] {
				faults = append(faults, fmt.Sprintf("%s, round %d, fault %d of %d: %s", f.scenario.name, n+1, i+1, len(r.faults), fault))
			}
		}
		for i, r := range f.rows() {
			if best := f.best(i); r.bar > 0 && best > tooMuch*max(r.bar, r.floor) {
				faults = append(faults, fmt.Sprintf("%s: %s: %s, more than %d times %s", r.scenario, r.figure, round(best), tooMuch, max(r.bar, r.floor)))
			}
		}
	}
	return faults
}

// best returns the least 99th percentile of a row in any round.
func (f figures) best(row int) time.Duration {
	var p99 []time.Duration
	for _, r := range f.rounds {
		one := figures{scenario: f.scenario, rounds: []result{r}}
		p99 = append(p99, quantile(one.rows()[row].values, 0.99))
	}
	return slices.Min(p99)
}

// String returns the table in Markdown.
func (t *table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %d cores, %s; %d mTLS tunnels of %d identities to %d destinations, descriptor limit %d, %d rounds of each scenario.\n\n",
		time.Now().UTC().Format(time.DateOnly), report.Processor(), runtime.NumCPU(), runtime.Version(), t.tunnels, identities, destinations, t.limit, t.rounds)
	b.WriteString("| scenario | figure | p50 | p99 | max | bar (p99) | verdict |\n|---|---|---|---|---|---|---|\n")
	for _, f := range t.figures {
		fmt.Fprintf(&b, "| %s | tunnels that ended: %s | | | | exactly the set | %s |\n", f.scenario.name, f.counts(), f.verdict())
		for _, r := range f.rows() {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.scenario, r.figure,
				round(quantile(r.values, 0.5)), round(quantile(r.values, 0.99)), round(quantile(r.values, 1)), r.verdict())
		}
	}
	return b.String()
}

// counts returns the numbers of tunnels that ended in each round.
func (f figures) counts() string {
	var texts []string
	for _, r := range f.rounds {
		texts = append(texts, fmt.Sprint(len(r.seen)))
	}
	return strings.Join(texts, ", ")
}

func (f figures) verdict() string {
	for _, r := range f.rounds {
		if len(r.faults) > 0 {
			return "does not hold"
		}
	}
	return "holds"
}

func (r row) verdict() string {
	switch {
	case r.bar == 0:
		return " | "
	case quantile(r.values, 0.99) <= r.bar:
		return fmt.Sprintf("≤ %s | holds", r.bar)
	}
	return fmt.Sprintf("≤ %s | does not hold", r.bar)
}

// quantile returns the smallest value that a share of all values do not exceed, or zero
// if there are none.
func quantile(values []time.Duration, share float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := int(share*float64(len(sorted)) + 0.999999)
	return sorted[min(max(n, 1), len(sorted))-1]
}

// round rounds a duration for the table.
func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
