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

// cutsEvery is the time between two records, and two lines of the log, of the
// connections of one listener that were closed for want of a slot or a descriptor.
const cutsEvery = time.Second

// dnsShares divides the connections for queries among callers. One that is idle is
// given up for another: clients expect that of DNS, and open the next one cheaply
// (RFC 7766 section 6.2.2).
func (c *Config) dnsShares() limit.Shares {
	shares := limit.SharesOf(c.DNSConnections)
	one := cmp.Or(c.DNS.Streams, dns.DefaultStreams)
	shares.PerIdentity, shares.PerLocal = min(shares.PerIdentity, one), min(shares.PerLocal, one)
	shares.IdleYields = true
	return shares
}

// cuts tells of the connections that were closed for want of a slot or a descriptor:
// nobody else could, since most had not asked anything. It is safe for concurrent use.
type cuts struct {
	cfg       *Config
	listeners []*listenerCuts // complete before the first connection comes
}

// listenerCuts are those of one listener.
type listenerCuts struct {
	cfg      *Config
	listener string

	telling sync.Mutex // held while they are told, so that close waits for that

	mu     sync.Mutex // over what follows
	untold map[limit.Cause]uint64
	merged audit.Merged // of untold
	due    *time.Timer  // nil unless something is untold
}

func newCuts(cfg *Config) *cuts { return &cuts{cfg: cfg} }

// of returns what is told of each connection of a listener.
func (c *cuts) of(listener string) func(limit.Cause) {
	l := &listenerCuts{cfg: c.cfg, listener: listener, untold: map[limit.Cause]uint64{}}
	c.listeners = append(c.listeners, l)
	for _, cause := range limit.Causes() {
		c.cfg.Metrics.Cut(listener, cause, 0)
	}
	return l.add
}

// close tells what is untold. No connection may be served any more.
func (c *cuts) close() {
	for _, l := range c.listeners {
		l.mu.Lock()
		if l.due != nil {
			l.due.Stop()
		}
		l.mu.Unlock()
		l.tell()
	}
}

// add counts a connection. The record follows within a second, together with all
// others of that time.
func (l *listenerCuts) add(cause limit.Cause) {
	l.cfg.Metrics.Cut(l.listener, cause, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.untold[cause]++
	if l.merged.Count++; l.merged.Count == 1 {
		l.merged.First = now
	}
	l.merged.Last = now
	if l.due == nil {
		l.due = time.AfterFunc(cutsEvery, l.tell)
	}
}

// tell records and logs what is untold.
func (l *listenerCuts) tell() {
	l.telling.Lock()
	defer l.telling.Unlock()
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

// take returns what is untold, and how many there are of each cause in words.
func (l *listenerCuts) take() (merged audit.Merged, causes string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var words []string
	for _, cause := range limit.Causes() {
		if n := l.untold[cause]; n > 0 {
			words = append(words, fmt.Sprintf("%s %d", cause, n))
		}
	}
	merged = l.merged
	clear(l.untold)
	l.merged, l.due = audit.Merged{}, nil
	return merged, strings.Join(words, ", ")
}
