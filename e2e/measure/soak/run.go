// Package soak loads the real exeat with hostile callers, and checks that others are
// served and that memory is bounded. Callers keep open ten thousand handshakes that they
// do not finish, and as many idle tunnels as one identity may have. Others connect to
// listeners of each kind and send nothing, or show certificates that are expensive to
// keep or to verify, and datagrams come from an address that stands for an identity, as
// if they were forged. Then good and hostile traffic come at once, as much as the machine
// can carry. After each of these, goroutines, descriptors and heap must return to what
// they were. Finally it measures how much a flood of one identity slows down another one,
// which makes a request now and then.
package soak

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// options are the values of the flags.
type options struct {
	load  time.Duration // length of the mixed load
	alone time.Duration // how long the quiet identity is measured in all rounds, and the flood of datagrams lasts
	exeat string        // path of a binary; "" means to build one
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.SetOutput(stderr)
	total := flags.Duration("for", 3*time.Minute, "how long all of it takes, at least 30s")
	flags.StringVar(&o.exeat, "exeat", "", "load this `binary` instead of building one")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 || *total < 30*time.Second {
		return options{}, fmt.Errorf("unexpected arguments, or less than 30s: %v %s", flags.Args(), *total)
	}
	const share = 10 // a half for the mixed load, a tenth for each of the others; the rest is for starts and waits
	o.load, o.alone = *total*5/share, *total/share
	return o, nil
}

// Run loads exeat as the flags say, and writes the results to stdout. It returns a
// [*report.Error] if something is left, or a figure is more than five times above its
// bar.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	w, err := newWorld(ctx, o.exeat)
	if err != nil {
		return err
	}
	defer w.Close()
	var faults []string
	for _, part := range []func(context.Context, *world, options, io.Writer) ([]string, error){held, silent, forged, strangers, mixed, isolated} {
		found, err := part(ctx, w, o, stdout)
		if err != nil {
			return err
		}
		faults = append(faults, found...)
	}
	return report.Check(faults)
}
