// Package enforce measures how fast a new state ends the tunnels that it forbids, and
// checks that it ends no others. It opens thousands of mTLS tunnels through the real
// exeat from another process; then a destination leaves the policy, an authority leaves
// the bundle, a date passes, or the alias of a destination is denied.
//
// It starts exeat, an origin, a holder of tunnels and a prober of survivors as children
// on loopback. The last three run the same program as their parent (see [Role]). The
// holder reports which tunnels ended and when; that set must be the expected one, and so
// must the set of the records. The prober sends a byte every few milliseconds through
// tunnels that must survive.
package enforce

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"syscall"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// exeat has two descriptors for each tunnel. It keeps some for itself, and as many as a
// third of the tunnels may be used by callers that have not shown an identity, and for
// queries to name servers: in all, descriptorsForTwo for two tunnels, and descriptorsOwn.
const (
	descriptorsForTwo = 5
	descriptorsOwn    = 600
)

// options are the values of the flags.
type options struct {
	tunnels int
	rounds  int    // number of rounds of each scenario
	exeat   string // path of a binary; "" means to build one
	output  string // path of a file for the table; "" means none
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var quick bool
	flags := flag.NewFlagSet("enforce", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.tunnels, "tunnels", 0, "how many `tunnels` are held (default 9000, quick 1500)")
	flags.IntVar(&o.rounds, "rounds", 0, "how many `rounds` each scenario has (default 5, quick 2)")
	flags.BoolVar(&quick, "quick", false, "measure less, in less than 40 seconds")
	flags.StringVar(&o.exeat, "exeat", "", "measure this `binary` instead of building one")
	flags.StringVar(&o.output, "o", "", "write the table to this `file` too")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	defaults := options{tunnels: 9000, rounds: 5}
	if quick {
		defaults = options{tunnels: 1500, rounds: 2}
	}
	o.tunnels = cmp.Or(o.tunnels, defaults.tunnels)
	o.rounds = cmp.Or(o.rounds, defaults.rounds)
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.tunnels < identities*destinations || o.rounds < 1:
		return options{}, fmt.Errorf("at least %d tunnels, one of every identity to every destination, and one round", identities*destinations)
	}
	return o, nil
}

// Run measures as the flags say, and writes the table to stdout. It returns a
// [*report.Error] if a set of tunnels is wrong, or a figure is more than five times above
// its bar.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	t, err := measureWithin(ctx, o, stderr)
	if err != nil {
		return err
	}
	if err := report.Write(t, stdout, o.output); err != nil {
		return err
	}
	return report.Check(t.faults())
}

// measureWithin measures with at most as many tunnels as the descriptor limit allows.
func measureWithin(ctx context.Context, o options, stderr io.Writer) (*table, error) {
	limit, err := raiseLimit()
	if err != nil {
		return nil, err
	}
	most := (limit - descriptorsOwn) * 2 / descriptorsForTwo
	switch {
	case most < identities*destinations:
		return nil, fmt.Errorf("the descriptor limit is %d, too low for %d tunnels", limit, identities*destinations)
	case most < o.tunnels:
		_, _ = fmt.Fprintf(stderr, "%d tunnels instead of %d: the descriptor limit is %d\n", most, o.tunnels, limit)
		o.tunnels = most
	}
	t, err := measure(ctx, o, stderr)
	if err != nil {
		return nil, err
	}
	t.limit = limit
	return t, nil
}

// raiseLimit raises the soft limit of descriptors to the hard limit, for this process and
// its children, and returns it.
func raiseLimit() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("descriptor limit: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raising the descriptor limit to %d: %w", limit.Max, err)
	}
	return int(min(limit.Cur, 1<<20)), nil
}
