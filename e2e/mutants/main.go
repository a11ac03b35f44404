// Command mutants proves that the tests find faults. It plants faults in copies of
// the tree, one at a time in each copy. Each is a change of a few words at a place where
// an error would let a caller bypass the proxy. The tests of that place must fail.
// With -fuzz the faults are such that no seed shows them, and a fuzz target must find
// each within a minute.
//
// A fault that no longer applies, because the code has changed, or that does not compile
// is an error, like one that survives. A faulty gateway may connect to anything, so
// the command needs a network namespace with nothing but loopback in it; see the
// Makefile.
//
// Exit codes: 0 all faults were found; 1 one was not; 2 wrong use, or the run could
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

// run runs the program, and returns its exit code.
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

// parallel is how many faults are tried at the same time, each in its own copy of the
// tree. Many tests that find a fault wait for their patience first, and another fault is
// built meanwhile. A fuzz target runs alone.
const parallel = 3

// found is the result for a fault.
type found struct {
	fault fault
	by    string // the test that failed; "" if none did
	err   error  // why the fault could not be planted
	took  time.Duration
}

// hunt plants the faults, and prints which test found each. It returns how many faults no
// test found.
func hunt(ctx context.Context, faults []fault, stdout io.Writer) (survived int, err error) {
	if err := alone(); err != nil {
		return 0, err
	}
	if len(faults) == 0 {
		return 0, errors.New("no fault has this text in its name")
	}
	trees := make([]tree, parallel)
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
			continue // until all that run have ended
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

// tryAll tries faults in several trees at the same time. The channel is closed when all
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

// alone returns an error if an interface other than loopback is up, so that no packet can
// leave.
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
