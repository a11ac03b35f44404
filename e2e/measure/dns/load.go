package dns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
)

// Options of dnsperf.
const (
	clients     = 20
	outstanding = 200
)

// dnsperf queries a server over UDP for a time, as fast as it answers.
func (w *world) dnsperf(ctx context.Context, server string, length time.Duration) (int64, error) {
	return w.ask(ctx, server, "-l", strconv.Itoa(int(length/time.Second)), "-c", strconv.Itoa(clients), "-q", strconv.Itoa(outstanding))
}

// warm queries each name once.
func (w *world) warm(ctx context.Context, server string) error {
	n, err := w.ask(ctx, server, "-n", "1", "-q", "10")
	if err == nil && n != names {
		err = fmt.Errorf("%d of %d names were answered", n, names)
	}
	return err
}

func (w *world) ask(ctx context.Context, server string, args ...string) (int64, error) {
	host, port, err := net.SplitHostPort(server)
	if err != nil {
		return 0, err
	}
	// At its end dnsperf waits for lost answers for the time of -t.
	return load(ctx, append([]string{"dnsperf", "-s", host, "-p", port, "-t", "1", "-d", w.Path(namesFile)}, args...)...)
}

// overTLS queries a server over DoT for a time, with a client certificate.
func (w *world) overTLS(ctx context.Context, server string, length time.Duration) (int64, error) {
	return load(ctx, w.Path("dot"), "-server", server, "-name", site.ServerName, "-identity", w.Path("caller"),
		"-names", w.Path(namesFile), "-for", length.String())
}

// load runs a client on its core, and returns the number of queries that were answered.
func load(ctx context.Context, args ...string) (int64, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "taskset", append([]string{"-c", clientCore}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return completed(string(out))
}

// completed returns the number of answers in the client's output. It returns an error if
// one of them was not NOERROR.
func completed(output string) (int64, error) {
	number := func(pattern string) (int64, error) {
		m := regexp.MustCompile(pattern).FindStringSubmatch(output)
		if m == nil {
			return 0, fmt.Errorf("no %s in the client's output: %q", pattern, output)
		}
		return strconv.ParseInt(m[1], 10, 64)
	}
	all, err := number(`Queries completed: +([0-9]+)`)
	if err != nil {
		return 0, err
	}
	good, err := number(`NOERROR ([0-9]+)`)
	if err == nil && good != all {
		err = fmt.Errorf("of %d answers only %d were NOERROR", all, good)
	}
	return all, err
}
