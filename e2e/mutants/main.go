// Command mutants shows that the tests would notice. It plants faults in copies of
// the tree, one at a time in each, each of them a few words in a place where a
// proxy is bypassed, and runs the cases that hold the place to its promise:
// they must fail. With -fuzz the faults are such that no seed shows them, and
// it is a fuzz target that must find each within a minute.
//
// A fault that no longer applies, because the code has moved on, or that does
// not compile, is an error like one that survives. A faulty gateway may connect
// to anything, so it is run in a network namespace with nothing in it; see the
// Makefile.
//
// Exit codes: 0 all were found, 1 one was not, 2 wrong use, or the run could
// not be finished.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitSurvived = 1
	exitUsage    = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	flags.SetOutput(stderr)
	fuzz := flags.Bool("fuzz", false, "plant faults that fuzz targets must find")
	only := flags.String("only", "", "plant only the faults with this `text` in their name")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil || flags.NArg() > 0:
		_, _ = fmt.Fprintln(stderr, "mutants: unexpected arguments:", flags.Args())
		return exitUsage
	}
	faults := mutants()
	if *fuzz {
		faults = planted()
	}
	survived, err := hunt(ctx, selected(faults, *only), stdout)
	switch {
	case err != nil:
		_, _ = fmt.Fprintln(stderr, "mutants:", err)
		return exitUsage
	case survived > 0:
		_, _ = fmt.Fprintln(stderr, "mutants:", survived, "were not found")
		return exitSurvived
	}
	return 0
}

func selected(faults []fault, only string) []fault {
	var some []fault
	for _, f := range faults {
		if strings.Contains(f.name, only) {
			some = append(some, f)
		}
	}
	return some
}

// hands is how many faults are tried at once, each in a copy of the tree: a test that
// finds one often waits in vain first, and another is built meanwhile. A fuzz target
// has the machine for itself.
const hands = 3

// found is what became of a fault.
type found struct {
	fault fault
	by    string // the test that failed; "" if none did
	err   error  // why it could not be planted
	took  time.Duration
}

// hunt plants the faults and prints what found each. It returns how many nothing
// has found.
func hunt(ctx context.Context, faults []fault, stdout io.Writer) (survived int, err error) {
	if err := alone(); err != nil {
		return 0, err
	}
	if len(faults) == 0 {
		return 0, errors.New("no fault has this text in its name")
	}
	trees := make([]tree, hands)
	if faults[0].fuzz() {
		trees = trees[:1]
	}
	for i := range trees {
		if trees[i], err = copyTree(ctx); err != nil {
			return 0, err
		}
		defer trees[i].remove()
	}
	if err := trees[0].healthy(ctx, faults); err != nil {
		return 0, err
	}
	for f := range tryAll(ctx, trees, faults) {
		if ctx.Err() != nil {
			continue // until all have ended
		}
		by := f.by
		switch {
		case f.err != nil:
			by = "CANNOT BE PLANTED: " + f.err.Error()
			survived++
		case by == "":
			by = "NOBODY"
			survived++
		}
		_, _ = fmt.Fprintf(stdout, "%-58s %-34s %5.1f s  %s\n", f.fault.name, f.fault.file, f.took.Seconds(), by)
	}
	if ctx.Err() != nil {
		return survived, context.Cause(ctx)
	}
	_, err = fmt.Fprintf(stdout, "%d faults, %d found\n", len(faults), len(faults)-survived)
	return survived, err
}

// tryAll tries faults in several trees at once. The channel is closed when all
// have been tried, or when ctx has ended and nothing runs any more.
func tryAll(ctx context.Context, trees []tree, faults []fault) <-chan found {
	next, all := make(chan fault), make(chan found)
	var running sync.WaitGroup
	for _, t := range trees {
		running.Go(func() {
			for f := range next {
				start := time.Now()
				by, err := t.try(ctx, f)
				all <- found{f, by, err, time.Since(start)}
			}
		})
	}
	go func() {
		defer close(all)
		defer running.Wait()
		defer close(next)
		for _, f := range faults {
			select {
			case next <- f:
			case <-ctx.Done():
				return
			}
		}
	}()
	return all
}

// alone checks that no packet can leave: no interface but loopback is up.
func alone() error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("the interface %s is up, and a faulty gateway may connect to anything: use make mutants", i.Name)
		}
	}
	return nil
}
