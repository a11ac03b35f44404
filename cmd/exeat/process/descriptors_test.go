package process

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/live"
)

// protocols returns a configuration with a listener for each protocol.
func protocols(cfg *config.Config, all ...gateway.Protocol) *gateway.Config {
	to := cfg.Gateway
	for _, p := range all {
		to.Listeners = append(to.Listeners, gateway.Listener{Protocol: p})
	}
	return &to
}

// TestFitLowersUnsetBounds checks that bounds which the configuration does not set are
// lowered to the descriptors that there are, and that those which it sets stay, and are
// reported if they are too large.
func TestFitLowersUnsetBounds(t *testing.T) {
	both := []gateway.Protocol{gateway.Connect, gateway.DNS}
	for name, row := range map[string]struct {
		limit     int
		listeners []gateway.Protocol
		connects  int // set in the configuration; 0 if not
		queries   int // set in the configuration; 0 if not
		wantC     int
		wantD     int
		lowered   int // number of lines
		tooMuch   int
	}{
		"plenty":                              {limit: 1 << 20, listeners: both, wantC: 16384, wantD: 4096},
		"an unknown limit":                    {limit: 0, listeners: both, wantC: 16384, wantD: 4096},
		"an old default":                      {limit: 1024, listeners: both, wantC: 479, wantD: 116, lowered: 2},
		"no queries":                          {limit: 1024, listeners: both[:1], wantC: 547, wantD: 4096, lowered: 1},
		"queries only":                        {limit: 1024, listeners: both[1:], wantC: 16384, wantD: 934, lowered: 1},
		"CONNECT and DoH on one listener":     {limit: 1024, listeners: []gateway.Protocol{gateway.ConnectAndDoH}, wantC: 547, wantD: 4096, lowered: 1},
		"few descriptors":                     {limit: 40, listeners: both[:1], wantC: 4, wantD: 4096, lowered: 1},
		"set, and small enough":               {limit: 1024, listeners: both, connects: 300, queries: 64, wantC: 300, wantD: 64},
		"set, and too large":                  {limit: 1024, listeners: both, connects: 1000, queries: 1000, wantC: 1000, wantD: 1000, tooMuch: 1},
		"set for queries only":                {limit: 1024, listeners: both, queries: 500, wantC: 254, wantD: 500, lowered: 1},
		"set for queries only, and too large": {limit: 1024, listeners: both, queries: 5000, wantC: 1, wantD: 5000, lowered: 1, tooMuch: 1},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config.Defaults()
			if row.connects > 0 {
				cfg.Gateway.MaxConnections, cfg.FitConnections = row.connects, false
			}
			if row.queries > 0 {
				cfg.Gateway.DNSConnections, cfg.FitDNSConnections = row.queries, false
			}
			to := protocols(&cfg, row.listeners...)
			f := files{limit: row.limit, own: 15, admin: 4}
			got, err := f.fit(&cfg, to)
			if err != nil {
				t.Fatal(err)
			}
			if to.MaxConnections != row.wantC || to.DNSConnections != row.wantD {
				t.Errorf("%d connections and %d for queries, want %d and %d", to.MaxConnections, to.DNSConnections, row.wantC, row.wantD)
			}
			if len(got.lowered) != row.lowered || len(got.tooMuch) != row.tooMuch {
				t.Errorf("got %+v", got)
			}
			if need := needs(connections(to)); row.limit > 0 && row.tooMuch == 0 && need+f.kept() > row.limit {
				t.Errorf("%d descriptors are needed, %d of %d are kept", need, f.kept(), row.limit)
			}
		})
	}
}

// TestFitWithTooFewDescriptors checks that the error for too few descriptors says what
// to do.
func TestFitWithTooFewDescriptors(t *testing.T) {
	cfg := config.Defaults()
	_, err := files{limit: 38, own: 15, admin: 4}.fit(&cfg, protocols(&cfg, gateway.Connect))
	const want = "the process may have 38 files open, and keeps 31 for itself: raise the limit (ulimit -n, LimitNOFILE= of a systemd unit) to 39 at least"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestOpenFiles checks that a file that is opened is counted.
func TestOpenFiles(t *testing.T) {
	before := openFiles()
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if after := openFiles(); after <= before && before != unknownOpen || fileLimit() < after {
		t.Errorf("%d are open, and %d after one more, of %d", before, after, fileLimit())
	}
}

// TestChangedLimitOfFilesIsApplied checks that another limit of open files is applied,
// and that at most one line a second is logged about it.
func TestChangedLimitOfFilesIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cfg := config.Defaults()
		p := &Process{
			files:       files{limit: 1000, own: 20, admin: 8},
			descriptors: gateway.Descriptors{Accepted: limit.NewDescriptors(0), Opened: limit.NewDescriptors(0)},
			opts:        Options{Log: slog.New(slog.NewTextHandler(&log, nil))},
		}
		bounds := protocols(&cfg, gateway.Connect)
		p.share(bounds, p.files)
		var now atomic.Int64
		now.Store(1000)
		ctx, cancel := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() { p.followFiles(ctx, bounds, func() int { return int(now.Load()) }) })
		most := func() int { return p.descriptors.Accepted.Stats().Most + p.descriptors.Opened.Stats().Most }
		if got := most(); got != 960 {
			t.Errorf("%d for callers, want 960", got)
		}
		now.Store(50)
		time.Sleep(2 * filesEvery)
		synctest.Wait()
		if got := most(); got != 10 {
			t.Errorf("%d for callers with a limit of 50, want 10", got)
		}
		now.Store(30) // fewer than the process reserves for itself
		time.Sleep(filesEvery)
		synctest.Wait()
		for range 1000 {
			p.descriptors.Accepted.Take(1)
			p.descriptors.Opened.Take(1)
			time.Sleep(filesEvery / 100)
		}
		synctest.Wait()
		now.Store(0) // unknown: the last limit stays
		time.Sleep(filesEvery)
		cancel()
		following.Wait()
		text := log.String()
		if changes := strings.Count(text, "the limit of open files has changed"); changes != 2 || most() != 0 {
			t.Errorf("%d changes, %d for callers:\n%s", changes, most(), text)
		}
		if lines := strings.Count(text, "file descriptors are short"); lines < 10 || lines > 11 || !strings.Contains(text, "refused=200 ") {
			t.Errorf("%d lines:\n%s", lines, text)
		}
	})
}

// without calls do while the process cannot open files.
func without(t *testing.T, do func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 1 // open descriptors stay open
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}

// TestPolicyIsReadAgainAfterAMissingDescriptor checks that a policy which cannot be read
// for want of a descriptor is reported once, and read again until a descriptor is free,
// because no event reports that.
func TestPolicyIsReadAgainAfterAMissingDescriptor(t *testing.T) {
	path := write(t, "policy.yaml", goodPolicy)
	f, err := openPolicy(t.Context(), t, path)
	if err != nil {
		t.Fatal(err)
	}
	var told []error
	var last live.Change
	f.loaded = func(_ context.Context, change live.Change, err error) { told, last = append(told, err), change }
	replace(t, path, strings.Replace(goodPolicy, "api.example", "other.example", 1))
	without(t, func() {
		for range 3 {
			if f.reload(t.Context(), true) {
				t.Error("it is not read again")
			}
		}
	})
	if len(told) != 1 || !errors.Is(told[0], syscall.EMFILE) || last.Policy != nil {
		t.Fatalf("told of %v, want one error", told)
	}
	if !f.reload(t.Context(), true) || len(told) != 2 || told[1] != nil || last.Policy == nil || last.SameRules {
		t.Errorf("then: %v, %+v", told, last)
	}
	if !f.reload(t.Context(), true) {
		t.Error("it is read again when there is nothing more to read")
	}
}

// TestIdentityIsReadAgainAfterAMissingDescriptor checks that the identity stays if its
// files cannot be read for want of a descriptor, that the failure is logged once, and
// that the files are read again.
func TestIdentityIsReadAgainAfterAMissingDescriptor(t *testing.T) {
	ca, dir := newTestAuthority(t), t.TempDir()
	mint(t, ca, dir)
	var log bytes.Buffer
	var count identityReloads
	f, err := openIdentityFiles(identity.FileConfig{Dir: dir}, &count, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	f.changed = func(context.Context) { changed++ }
	before := f.Snapshot()
	mint(t, ca, dir)
	without(t, func() {
		for range 3 {
			if f.reload(t.Context(), true) {
				t.Error("it is not read again")
			}
		}
	})
	if lines := strings.Count(log.String(), "too many open files"); f.Snapshot() != before || changed != 0 || lines != 1 {
		t.Errorf("changed %d times, %d lines of the log", changed, lines)
	}
	if !f.reload(t.Context(), true) || f.Snapshot() == before || changed != 1 {
		t.Errorf("then: changed %d times", changed)
	}
	if loaded, refused := count.loaded.Load(), count.refused.Load(); loaded != 2 || refused != 0 {
		t.Errorf("counted %d loaded and %d refused, want 2 and none", loaded, refused)
	}
}
