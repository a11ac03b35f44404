package gateway

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// TestCutsAreRecorded once a second for each cause, with all that were cut.
func TestCutsAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type line struct {
			at     time.Duration
			detail string
		}
		var got []line
		began := time.Now()
		c := newCuts("main", func(r audit.Record) {
			if r.Event != audit.EventHandshake || r.Listener != "main" || r.Reason != allowlist.Busy || !r.Client.IsValid() {
				t.Errorf("recorded as %+v", r)
			}
			got = append(got, line{time.Since(began), r.Detail})
		})
		client := netip.MustParseAddrPort("192.0.2.1:1024")
		cut := func(n int, why listen.Cut) {
			for range n {
				c.add(t.Context(), client, why)
			}
		}
		const (
			noDescriptor = ", the process has no file descriptor left for them"
			noSlot       = ", as many are open as limits.connections and dns.connections allow"
			cut2300      = "connections closed at once: 2300" + noDescriptor
		)
		cut(2300, listen.NoDescriptor)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		cut(1, listen.NoSlot)
		time.Sleep(cutEvery / 2)
		cut(1, listen.NoSlot)
		time.Sleep(cutEvery)
		synctest.Wait()
		cut(3, listen.NoSlot)
		c.close()
		cut(1, listen.NoDescriptor)
		c.close()
		want := []line{
			{time.Second, cut2300},
			{6 * time.Second, "connections closed at once: 2" + noSlot},
			{6500 * time.Millisecond, "connections closed at once: 3" + noSlot},
			{6500 * time.Millisecond, "connections closed at once: 1" + noDescriptor},
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// TestShortDescriptorsAreNoted for as long as that is news, and the gateway stays
// ready.
func TestShortDescriptorsAreNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, d := range map[string]Descriptors{
			"accepted": {Accepted: limit.NewDescriptors(0)},
			"opened":   {Opened: limit.NewDescriptors(0)},
		} {
			p := &probes{cfg: &Config{Descriptors: d, Admin: Admin{Notes: func() []string { return []string{"log: lost"} }}}}
			if got := p.notes(); !slices.Equal(got, []string{"log: lost"}) {
				t.Errorf("%s: %q at the start", name, got)
			}
			if d.Accepted != nil {
				d.Accepted.Take(1)
			} else {
				d.Opened.Take(1)
			}
			if got := p.notes(); len(got) != 2 || !strings.HasPrefix(got[1], "descriptors: short, 0 of 0 are in use") {
				t.Errorf("%s: %q", name, got)
			}
			time.Sleep(10 * time.Second)
			if got := p.notes(); len(got) != 1 {
				t.Errorf("%s: %q when it is over", name, got)
			}
		}
		if got := (&probes{cfg: &Config{}}).notes(); got != nil {
			t.Errorf("without anything to note: %q", got)
		}
	})
}

// TestDescriptorsFor grows with each bound, and is nothing without listeners.
func TestDescriptorsFor(t *testing.T) {
	for _, row := range []struct{ connections, dns, accepted, opened int }{
		{0, 0, 0, 0},
		{16, 0, 18, 13},
		{0, 16, 18, 1},
		{16384, 1024, 18432 + 1152, 12288 + 1088},
	} {
		if accepted, opened := DescriptorsFor(row.connections, row.dns); accepted != row.accepted || opened != row.opened {
			t.Errorf("%d and %d connections: %d and %d, want %d and %d", row.connections, row.dns, accepted, opened, row.accepted, row.opened)
		}
	}
}
