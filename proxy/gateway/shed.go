package gateway

import (
	"cmp"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// shedReportEvery is the time between two records, and between two log messages, about the
// connections of one listener that were closed for want of a slot or a descriptor.
const shedReportEvery = time.Second

// dnsShares divides the connections for queries among callers. An idle connection is
// closed to make room for another one: clients expect that of DNS, and open the next
// one cheaply (RFC 7766 section 6.2.2).
func (c *Config) dnsShares() limit.Shares {
	shares := limit.SharesOf(c.DNSConnections)
	one := cmp.Or(c.DNS.Streams, dns.DefaultStreams)
	shares.PerIdentity, shares.PerLocal = min(shares.PerIdentity, one), min(shares.PerLocal, one)
	shares.IdleYields = true
	return shares
}

// shedReporter reports the connections that were closed for want of a slot or a descriptor.
// Most of them had not made a request yet, so that they have no other record. It is
// safe for concurrent use.
type shedReporter struct {
	cfg       *Config
	listeners []*listenerShed // complete before the first connection is accepted
}

// listenerShed counts the closed connections of one listener.
type listenerShed struct {
	cfg      *Config
	listener string

	reporting sync.Mutex // held during a report, so that close waits for it

	mu         sync.Mutex // guards the fields below
	unreported map[limit.Cause]uint64
	merged     audit.Merged // count and times of unreported
	due        *time.Timer  // nil if nothing is unreported
}

func newShedReporter(cfg *Config) *shedReporter { return &shedReporter{cfg: cfg} }

// counter returns a function that counts a closed connection of a listener.
func (c *shedReporter) counter(listener string) func(limit.Cause) {
	l := &listenerShed{cfg: c.cfg, listener: listener, unreported: map[limit.Cause]uint64{}}
	c.listeners = append(c.listeners, l)
	for _, cause := range limit.Causes() {
		c.cfg.Metrics.Shed(listener, cause, 0)
	}
	return l.add
}

// close reports the connections that are not reported yet. No connection may be served any
// more.
func (c *shedReporter) close() {
	for _, l := range c.listeners {
		l.mu.Lock()
		if l.due != nil {
			l.due.Stop()
		}
		l.mu.Unlock()
		l.report()
	}
}

// add counts a connection. It is reported within a second, together with all others of
// that time.
func (l *listenerShed) add(cause limit.Cause) {
	l.cfg.Metrics.Shed(l.listener, cause, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.unreported[cause]++
	if l.merged.Count++; l.merged.Count == 1 {
		l.merged.First = now
	}
	l.merged.Last = now
	if l.due == nil {
		l.due = time.AfterFunc(shedReportEvery, l.report)
	}
}

// report records and logs the connections that are not reported yet.
func (l *listenerShed) report() {
	l.reporting.Lock()
	defer l.reporting.Unlock()
	merged, causes := l.take()
	if merged.Count == 0 {
		return
	}
	merged.Counts = []audit.Count{{Verdict: allowlist.Fail, Reason: allowlist.Busy, Count: merged.Count}}
	l.cfg.Recorder.Event(audit.Record{
		Event: audit.EventSummary, Listener: l.listener, Merged: &merged,
		Detail: "connections closed for want of room: " + causes,
	})
	l.cfg.Log.Warn("connections were closed for want of room",
		slog.String("listener", l.listener), slog.Uint64("connections", merged.Count), slog.String("causes", causes))
}

// take returns the counts that are not reported yet, and the number for each cause in
// words. It resets them.
func (l *listenerShed) take() (merged audit.Merged, causes string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var words []string
	for _, cause := range limit.Causes() {
		if n := l.unreported[cause]; n > 0 {
			words = append(words, fmt.Sprintf("%s %d", cause, n))
		}
	}
	merged = l.merged
	clear(l.unreported)
	l.merged, l.due = audit.Merged{}, nil
	return merged, strings.Join(words, ", ")
}
