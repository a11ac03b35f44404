package process

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"sort"
	"syscall"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/admin"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// The descriptors that callers cannot use: for reading a policy, an identity and
// certificates, for reopening a record file, and for exporters; and those of the admin
// listener, which get a share of the limit.
const (
	ownReserve      = 12 // for files, certificates and exporters
	adminShare      = 64 // the admin listener gets the limit divided by this
	adminLeast      = 4  // least number for the admin listener
	unknownOpen     = 32 // assumed number of open descriptors where the system does not report it
	leastForCallers = 8  // with fewer descriptors for callers the start fails
)

// files counts the descriptors of the process. Its limit is the soft limit, which the
// Go runtime has raised to the hard limit before main.
type files struct {
	limit int // how many the process may have open; 0 if unknown
	own   int // number open at the start, without any callers
	admin int // number reserved for connections to the admin listener
}

// readFiles counts the descriptors that are open now, and those that the start still
// opens: for listeners, and for watching the files and directories.
func readFiles(cfg *gateway.Config, watched int) files {
	f := files{limit: fileLimit(), own: openFiles() + watched}
	for _, l := range cfg.Listeners {
		f.own++
		if l.Protocol == gateway.DNS {
			f.own += runtime.NumCPU() // the sockets for its datagrams
		}
	}
	if cfg.Admin.Address != "" {
		if cfg.Admin.Opened == nil {
			f.own++
		}
		f.admin = adminConnections(f.limit)
	}
	return f
}

// adminConnections returns how many connections the admin listener keeps open under a
// limit of descriptors. Without a limit it is zero, which means the default.
func adminConnections(limit int) int {
	if limit == 0 {
		return 0
	}
	return min(admin.DefaultConnections, max(adminLeast, limit/adminShare))
}

// fileLimit returns how many descriptors the process may have, or 0 if that is unknown.
func fileLimit() int {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	return int(min(uint64(l.Cur), math.MaxInt32)) //nolint:unconvert // signed on some systems
}

// openFiles returns how many descriptors are open.
func openFiles() int {
	for _, dir := range []string{"/proc/self/fd", "/dev/fd"} {
		if entries, err := os.ReadDir(dir); err == nil {
			return len(entries) - 1 // without the descriptor of this directory
		}
	}
	return unknownOpen
}

// forCallers returns how many descriptors callers may make the process use.
func (f files) forCallers() int { return max(0, f.limit-f.kept()) }

// kept returns how many descriptors callers cannot use.
func (f files) kept() int { return f.own + ownReserve + f.admin }

// fitted describes what fit did with the bounds on connections, a line each.
type fitted struct {
	lowered []string // bounds that the configuration does not set, and that were lowered
	tooMuch []string // bounds that the configuration sets, and that need too many descriptors
}

// fit makes the bounds on connections fit the descriptors: it lowers the bounds that the
// configuration does not set, and leaves the others unchanged. The error says that
// there are too few descriptors to serve at all.
func (f files) fit(cfg *config.Config, to *gateway.Config) (done fitted, err error) {
	if f.limit == 0 {
		return done, nil
	}
	most := f.forCallers()
	if most < leastForCallers {
		return done, fmt.Errorf("the process may have %d files open, and keeps %d for itself: raise the limit (ulimit -n, LimitNOFILE= of a systemd unit) to %d at least",
			f.limit, f.kept(), f.kept()+leastForCallers)
	}
	requests, queries := connections(to)
	needed := needs(requests, queries)
	if needed <= most {
		return done, nil
	}
	if queries > 0 && cfg.FitDNSConnections {
		share := most
		if requests > 0 {
			share /= 8
		}
		queries = fitting(queries, func(n int) int { return needs(0, n) }, share)
		done.lowered = append(done.lowered, f.lowered("dns.connections", to.DNSConnections, queries, needed))
		to.DNSConnections = queries
	}
	if requests > 0 && cfg.FitConnections {
		requests = fitting(requests, func(n int) int { return needs(n, queries) }, most)
		done.lowered = append(done.lowered, f.lowered("limits.connections", to.MaxConnections, requests, needed))
		to.MaxConnections = requests
	}
	if now := needs(requests, queries); now > most {
		done.tooMuch = append(done.tooMuch, fmt.Sprintf("limits.connections and dns.connections may need %d file descriptors, and there are %d for callers (a limit of %d, %d of them kept): what needs one more is refused as busy; raise the limit to %d (ulimit -n, LimitNOFILE= of a systemd unit), or lower the connections",
			now, most, f.limit, f.kept(), now+f.kept()))
	}
	return done, nil
}

func (f files) lowered(key string, from, to, needed int) string {
	return fmt.Sprintf("%s is %d and not %d, for want of file descriptors: the process may have %d, and %d would be needed (ulimit -n, LimitNOFILE= of a systemd unit)",
		key, to, from, f.limit, needed+f.kept())
}

// connections returns the bounds on connections for requests and for queries. Each is
// zero without a listener for them.
func connections(cfg *gateway.Config) (requests, queries int) {
	for _, l := range cfg.Listeners {
		if l.Protocol.TakesRequests() {
			requests = cmp.Or(cfg.MaxConnections, gateway.DefaultMaxConnections)
		} else {
			queries = cmp.Or(cfg.DNSConnections, gateway.DefaultDNSConnections)
		}
	}
	return requests, queries
}

// needs returns how many descriptors the bounds need together.
func needs(requests, queries int) int {
	accepted, opened := gateway.DescriptorsFor(requests, queries)
	return accepted + opened
}

// fitting returns the largest number up to most, but at least one, that needs at most the
// available descriptors.
func fitting(most int, needs func(int) int, available int) int {
	return max(1, sort.Search(most, func(i int) bool { return needs(i+1) > available }))
}

// fitFiles makes the bounds on connections fit the descriptors of the process, and passes
// the counters to the gateway and the resolver. Call it when it is known which files the
// start opens.
func (p *Process) fitFiles(cfg *gateway.Config) (err error) {
	p.files = readFiles(cfg, len(p.inputs.files))
	if p.files.limit == 0 {
		return nil
	}
	if p.fitted, err = p.files.fit(&p.cfg, cfg); err != nil {
		return err
	}
	p.descriptors = gateway.Descriptors{Accepted: limit.NewDescriptors(0), Opened: limit.NewDescriptors(0)}
	p.share(cfg, p.files)
	cfg.Descriptors, p.cfg.Resolver.Descriptors = p.descriptors, p.descriptors.Opened
	return nil
}

// share divides the descriptors for callers in the proportion in which the bounds on
// connections need them. A remainder goes to the connections of callers, because over a
// connection the caller can be told that there is no descriptor for its destination.
func (p *Process) share(cfg *gateway.Config, f files) {
	most := f.forCallers()
	accepted, opened := gateway.DescriptorsFor(connections(cfg))
	in := (most*accepted + accepted + opened - 1) / (accepted + opened)
	p.descriptors.Accepted.SetMost(in)
	p.descriptors.Opened.SetMost(most - in)
}

// filesOpened logs what fit did, and counts the open descriptors after everything is
// open.
func (p *Process) filesOpened(ctx context.Context, cfg *gateway.Config) {
	for _, line := range p.fitted.lowered {
		p.opts.Log.InfoContext(ctx, "fewer connections than by default", slog.String("cause", line))
	}
	for _, line := range p.fitted.tooMuch {
		p.opts.Log.WarnContext(ctx, "more connections than there are file descriptors for", slog.String("cause", line))
	}
	if p.files.limit > 0 {
		p.files.own = openFiles()
		p.share(cfg, p.files)
	}
}

// filesEvery is the time between two readings of the limit.
const filesEvery = time.Second

// followFiles applies a changed limit of the process, and logs, at most once a second,
// that descriptors are short.
func (p *Process) followFiles(ctx context.Context, cfg *gateway.Config, now func() int) {
	if p.files.limit == 0 {
		return
	}
	ticker := time.NewTicker(filesEvery)
	defer ticker.Stop()
	var logged uint64 // number of missing descriptors that the log has reported
	for f := p.files; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if l := now(); l != f.limit && l > 0 {
			f.limit = l
			p.share(cfg, f)
			p.opts.Log.LogAttrs(ctx, slog.LevelWarn, "the limit of open files has changed",
				slog.Int("limit", l), slog.Int("for_callers", f.forCallers()))
		}
		in, out := p.descriptors.Accepted.Stats(), p.descriptors.Opened.Stats()
		if missed := in.Missed + out.Missed; missed != logged {
			p.opts.Log.LogAttrs(ctx, slog.LevelWarn, "file descriptors are short: what needs one more is refused as busy",
				slog.Uint64("refused", missed-logged), slog.Int("limit", f.limit), slog.Int("accepted", in.Used), slog.Int("of", in.Most),
				slog.Int("opened", out.Used), slog.Int("of_opened", out.Most))
			logged = missed
		}
	}
}
