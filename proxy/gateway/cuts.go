package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// cutEvery is how long connections that a listener cuts are counted, for one
// record of each cause.
const cutEvery = time.Second

// cuts records the connections that a listener has closed as soon as they were
// accepted: a record a second at most for each cause, however many they are.
type cuts struct {
	listener string
	record   func(audit.Record)

	mu     sync.Mutex
	counts map[listen.Cut]cut // since the timer was set
	timer  *time.Timer        // nil if nothing is counted
	closed bool               // nothing is counted any more, but recorded at once
}

// cut is what was cut for one cause.
type cut struct {
	count uint64
	last  netip.AddrPort // the client
}

func newCuts(listener string, record func(audit.Record)) *cuts {
	return &cuts{listener: listener, record: record, counts: map[listen.Cut]cut{}}
}

// add is for listen.Config.Cut.
func (c *cuts) add(_ context.Context, client netip.AddrPort, why listen.Cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[why] = cut{c.counts[why].count + 1, client}
	switch {
	case c.closed:
		c.tell()
	case c.timer == nil:
		c.timer = time.AfterFunc(cutEvery, c.due)
	}
}

// due is called by the timer.
func (c *cuts) due() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell()
}

// close records what is counted. It may be called again.
func (c *cuts) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.tell()
}

// tell is called with mu held.
func (c *cuts) tell() {
	c.timer = nil
	for why, n := range c.counts {
		c.record(audit.Record{
			Event: audit.EventHandshake, Listener: c.listener, Client: n.last, Reason: allowlist.Busy, Detail: cutDetail(why, n.count),
		})
	}
	clear(c.counts)
}

// cutDetail says what was cut, and why.
func cutDetail(why listen.Cut, count uint64) string {
	switch why {
	case listen.NoSlot:
		return fmt.Sprintf("connections closed at once: %d, as many are open as limits.connections and dns.connections allow", count)
	case listen.NoDescriptor:
		return fmt.Sprintf("connections closed at once: %d, the process has no file descriptor left for them", count)
	}
	return fmt.Sprintf("connections closed at once: %d", count)
}
