// Package tunnels measures exeat with all its evidence against a bare relay in Go: the
// processor time for each tunnel and each gigabyte, the memory of idle tunnels, and
// latency.
//
// It builds both, starts them with an origin and a collector of spans as
// children on loopback, and makes the load itself. Every figure is measured in
// pairs, first the relay and then exeat, and compared within the pair. One row
// has exeat without evidence in the relay's place. With -peers, HAProxy and
// Squid are measured within each pair, too.
package tunnels

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// options are the values of the flags.
type options struct {
	pairs   int
	tunnels int   // new tunnels in each measurement
	bytes   int64 // in each measurement and direction
	trips   int   // round trips in each measurement
	idle    int
	still   time.Duration // time in which memory must not change
	peers   bool          // measure HAProxy and Squid, too
	only    string        // the part to measure; "" means all
	exeat   string        // path of a binary; "" means to build one
	output  string        // path of a file for the table; "" means none
}

// Defaults of the amounts of a run.
func fullRun() options {
	return options{pairs: 7, tunnels: 1000, bytes: 1e9, trips: 20_000, idle: 1000, still: 2 * time.Second}
}

func quickRun() options {
	return options{pairs: 3, tunnels: 150, bytes: 1e8, trips: 3000, idle: 200, still: 500 * time.Millisecond}
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var quick bool
	flags := flag.NewFlagSet("tunnels", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.pairs, "pairs", 0, "how many `pairs` are measured for each figure (default 7, quick 3, with -peers 2)")
	flags.IntVar(&o.tunnels, "tunnels", 0, "new `tunnels` in each measurement (default 1000, quick 150)")
	flags.Int64Var(&o.bytes, "bytes", 0, "`bytes` through a tunnel in each measurement (default 1e9, quick 1e8)")
	flags.IntVar(&o.trips, "trips", 0, "round `trips` through a tunnel in each measurement (default 20000, quick 3000)")
	flags.IntVar(&o.idle, "idle", 0, "`tunnels` that are idle at the same time (default 1000, quick 200)")
	flags.BoolVar(&quick, "quick", false, "measure less of everything, in one to two minutes")
	flags.BoolVar(&o.peers, "peers", false, "put HAProxy and Squid, which must be installed, beside the two")
	flags.StringVar(&o.only, "only", "", "measure this `part` only: "+strings.Join(partNames(o), ", "))
	flags.StringVar(&o.exeat, "exeat", "", "measure this `binary` instead of building one")
	flags.StringVar(&o.output, "o", "", "write the table to this `file` too")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	defaults := fullRun()
	if quick {
		defaults = quickRun()
		if o.peers {
			defaults.pairs = 2 // each pair has four programs
		}
	}
	o.pairs = cmp.Or(o.pairs, defaults.pairs)
	o.tunnels = cmp.Or(o.tunnels, defaults.tunnels)
	o.bytes = cmp.Or(o.bytes, defaults.bytes)
	o.trips = cmp.Or(o.trips, defaults.trips)
	o.idle = cmp.Or(o.idle, defaults.idle)
	o.still = defaults.still
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case min(o.pairs, o.tunnels, o.trips, o.idle) < 1 || o.bytes < 1:
		return options{}, errors.New("every amount must be above zero")
	case o.only != "" && !slices.Contains(partNames(o), o.only):
		return options{}, fmt.Errorf("no part %q; there are %s", o.only, strings.Join(partNames(o), ", "))
	case o.idle > identities:
		return options{}, fmt.Errorf("at most %d tunnels can be idle: each has an identity of its own", identities)
	}
	return o, nil
}

func partNames(o options) []string {
	var names []string
	for _, p := range (&bench{options: o}).parts() {
		names = append(names, p.name)
	}
	return names
}

// Run measures as the flags say, and writes the table to stdout. It returns a
// [*report.Error] if a figure is more than five times beyond its bar.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	table, err := measure(ctx, o, stderr)
	if err != nil {
		return err
	}
	if err := report.Write(table, stdout, o.output); err != nil {
		return err
	}
	return table.Check()
}
