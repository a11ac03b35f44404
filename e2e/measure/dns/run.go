// Package dns measures how many queries exeat answers in a second of processor time,
// beside dnsdist, unbound and CoreDNS.
//
// Every server has one core and answers 1,000 names from its cache. dnsperf, or a
// generator of queries over DoT with client certificates, runs on another core. Every
// figure is measured in pairs, first dnsdist and then exeat, and compared within the
// pair. The records and spans that exeat must write are counted: a run in which one is
// missing is an error.
//
// dnsdist, unbound, dnsperf and taskset must be installed. CoreDNS is measured if
// -coredns names its binary.
package dns

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

// options are the values of the flags.
type options struct {
	pairs   int
	length  time.Duration // length of each measurement
	coredns string        // path of the binary; "" means that CoreDNS is not measured
	exeat   string        // path of a binary; "" means to build one
	only    string        // a text that the measured figures have in their name; "" means all
}

// Defaults of the amounts of a run.
func fullRun() options  { return options{pairs: 5, length: 4 * time.Second} }
func quickRun() options { return options{pairs: 2, length: time.Second} }

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	var quick bool
	flags := flag.NewFlagSet("dns", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.pairs, "pairs", 0, "how many `pairs` are measured for each figure (default 5, quick 2)")
	flags.DurationVar(&o.length, "for", 0, "how `long` each measurement takes, in whole seconds (default 4s, quick 1s)")
	flags.BoolVar(&quick, "quick", false, "measure less of everything, in less than a minute")
	flags.StringVar(&o.coredns, "coredns", "", "put CoreDNS, which is this `binary`, beside the others")
	flags.StringVar(&o.exeat, "exeat", "", "measure this `binary` instead of building one")
	flags.StringVar(&o.only, "only", "", "measure only figures that have this `text` in their name")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	defaults := fullRun()
	if quick {
		defaults = quickRun()
	}
	o.pairs, o.length = cmp.Or(o.pairs, defaults.pairs), cmp.Or(o.length, defaults.length)
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.pairs < 1:
		return options{}, errors.New("there must be a pair to measure")
	case o.length < time.Second || o.length%time.Second != 0:
		return options{}, errors.New("a measurement takes whole seconds, at least one")
	}
	return o, nil
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
	if err := report.Write(table, stdout, ""); err != nil {
		return err
	}
	return table.Check()
}
