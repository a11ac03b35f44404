// Package soak has callers of the real exeat hold ten thousand handshakes that
// they do not end, and as many idle tunnels as one identity may have, and looks
// at its memory. It has callers that say nothing come to listeners of each kind,
// others show certificates that are dear to keep or to verify, and datagrams come
// from an address that stands for an identity, as if it were forged: it looks
// whether anybody else notices. It loads exeat with good and hostile traffic at
// once, as much as the machine takes. After each of these it looks whether
// anything stays behind: goroutines, descriptors and heap must return to what they
// were. Then it measures what an identity that asks now and then notices of
// another one that floods the gateway.
package soak

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// options are the flags.
type options struct {
	load  time.Duration // how long the mixed load lasts
	alone time.Duration // how long the quiet identity is measured, each time
	exeat string        // a binary; "" means one that is built
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
	const share = 10 // half is the mixed load, a tenth each of the measurements; the rest is setting up and settling
	o.load, o.alone = *total*5/share, *total/share
	return o, nil
}

// Run loads as the flags say, and writes what came of it to stdout. Something
// that stayed behind, or a figure that is more than five times above its bar, is
// a [*report.Error].
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
