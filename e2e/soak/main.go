// Command soak has callers of the real exeat hold ten thousand handshakes that
// they do not end, and as many idle tunnels as one identity may have, and looks
// at its memory. It loads exeat with good and hostile traffic at once, as much
// as the machine takes. After each of these it looks whether anything stays
// behind: goroutines, descriptors and heap must return to what they were. Then
// it measures what an identity that asks now and then notices of another one
// that floods the gateway.
//
// Exit codes: 0 nothing stayed behind and the figures are within five times
// their bars, 1 not so, 2 wrong use, or the run could not be finished.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitExceeds = 1
	exitUsage   = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

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

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "soak:", err)
		return exitUsage
	}
	w, err := newWorld(ctx, o.exeat)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "soak:", err)
		return exitUsage
	}
	defer w.Close()
	var faults []string
	for _, part := range []func(context.Context, *world, options, io.Writer) ([]string, error){held, mixed, isolated} {
		found, err := part(ctx, w, o, stdout)
		if err != nil {
			_, _ = fmt.Fprintln(stderr, "soak:", err)
			return exitUsage
		}
		faults = append(faults, found...)
	}
	for _, fault := range faults {
		_, _ = fmt.Fprintln(stderr, "soak:", fault)
	}
	if len(faults) > 0 {
		return exitExceeds
	}
	return 0
}
