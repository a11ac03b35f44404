// Command measure measures the exeat program, real processes on loopback:
//
//	go run ./e2e/measure tunnels   what a tunnel costs, beside a bare relay, HAProxy and Squid
//	go run ./e2e/measure dns       queries per second, beside dnsdist, unbound and CoreDNS
//	go run ./e2e/measure enforce   which tunnels a new state ends, and how fast
//	go run ./e2e/measure soak      what is left after hostile traffic
//
// Each has -h. Some have -quick, which measures less of everything.
//
// Exit codes: 0 measured; 1 a figure is more than five times beyond its bar, or
// something is wrong; 2 wrong use, or the run could not be finished.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/exeat-dev/exeat/e2e/measure/dns"
	"github.com/exeat-dev/exeat/e2e/measure/enforce"
	"github.com/exeat-dev/exeat/e2e/measure/report"
	"github.com/exeat-dev/exeat/e2e/measure/soak"
	"github.com/exeat-dev/exeat/e2e/measure/tunnels"
)

// Exit codes.
const (
	exitFault = 1
	exitUsage = 2
)

// measurement runs one of the measurements.
type measurement func(ctx context.Context, args []string, stdout, stderr io.Writer) error

func measurements() map[string]measurement {
	return map[string]measurement{"tunnels": tunnels.Run, "dns": dns.Run, "enforce": enforce.Run, "soak": soak.Run}
}

func main() {
	if len(os.Args) == 2 {
		if serve := enforce.Role(os.Args[1]); serve != nil { // this process is a child of enforce
			if err := serve(os.Stdin, os.Stdout); err != nil {
				os.Exit(exitUsage)
			}
			return
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, measurements(), os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs the program, and returns its exit code.
func run(ctx context.Context, all map[string]measurement, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || all[args[0]] == nil {
		_, _ = fmt.Fprintf(stderr, "usage: measure %s [flags]\n", strings.Join(slices.Sorted(maps.Keys(all)), "|"))
		return exitUsage
	}
	err := all[args[0]](ctx, args[1:], stdout, stderr)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	for line := range strings.Lines(err.Error()) {
		_, _ = fmt.Fprintf(stderr, "%s: %s\n", args[0], strings.TrimSuffix(line, "\n"))
	}
	if fault := (*report.Error)(nil); errors.As(err, &fault) {
		return exitFault
	}
	return exitUsage
}
