package gateway

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestShortDescriptorsAreNoted checks that a note reports for a while that descriptors
// are short, and that the gateway stays ready.
func TestShortDescriptorsAreNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, d := range map[string]Descriptors{
			"accepted": {Accepted: limit.NewDescriptors(0)},
			"opened":   {Opened: limit.NewDescriptors(0)},
		} {
			p := &probes{heldNotes: func() []string { return nil }, cfg: &Config{Descriptors: d, Admin: Admin{Notes: func() []string { return []string{"log: lost"} }}}}
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
		if got := (&probes{heldNotes: func() []string { return nil }, cfg: &Config{}}).notes(); got != nil {
			t.Errorf("without anything to note: %q", got)
		}
	})
}

// TestDescriptorsFor checks that the numbers of descriptors grow with each bound, and
// are zero without listeners.
func TestDescriptorsFor(t *testing.T) {
	for _, row := range []struct{ connections, dns, accepted, opened int }{
		{0, 0, 0, 0},
		{16, 0, 16, 13},
		{0, 16, 16, 1},
		{16384, 4096, 16384 + 4096, 12288 + 1280},
	} {
		if accepted, opened := DescriptorsFor(row.connections, row.dns); accepted != row.accepted || opened != row.opened {
			t.Errorf("%d and %d connections: %d and %d, want %d and %d", row.connections, row.dns, accepted, opened, row.accepted, row.opened)
		}
	}
}
