package dns_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/dns"
)

var denied = flag.Int("denied", 500, "denied names that TestNoPacketLeavesForADeniedName asks for over each way")

// nearMiss returns a name that is not allowed but mostly similar to an allowed one:
// with a label more or less, the apex of a wildcard, a dot inside a label, a changed
// letter, or a suffix.
func nearMiss(r *rand.Rand) string {
	allowed := []string{"allowed.example", "text.example", "db.example", "alias.example", "deep.below.example", "printer.local"}
	base := allowed[r.IntN(len(allowed))]
	word := fmt.Sprintf("n%d", r.Uint32())
	switch r.IntN(12) {
	case 0:
		return word + "." + base
	case 1:
		return word + base
	case 2:
		return base + "." + word + ".test"
	case 3:
		return strings.Replace(base, ".", "", 1) + "." + word
	case 4:
		return strings.Replace(base, ".", `\.`, 1) + "." + word
	case 5:
		return base[:len(base)-1] + "." + word + ".example"
	case 6:
		return "one.example" // the apex of a wildcard
	case 7:
		return word + "." + word + ".one.example"
	case 8:
		return word + ".xwild.example"
	case 9:
		return "denied.wild.example" // denied by a rule
	case 10:
		return word + `\000.wild.example`
	}
	return word + ".example"
}

// TestNoPacketLeavesForADeniedName sends queries for many denied names and one allowed
// name over every wire, and checks that packets leave for the allowed name only.
func TestNoPacketLeavesForADeniedName(t *testing.T) {
	for _, wire := range wires() {
		t.Run(wire, func(t *testing.T) {
			g := newGateway(t, options{perSecond: 1 << 30, audit: audit.Config{Queue: 1024}})
			const clients = 4
			var asking sync.WaitGroup
			for i := range clients {
				c := g.dial(t, wire, "sidecar")
				asking.Go(func() { askDenied(t, c, rand.New(rand.NewPCG(uint64(i), 1)), *denied/clients) })
			}
			asking.Wait()
			if n := g.upstream.packets.Load(); n != 0 {
				t.Errorf("%d packets left for denied names", n)
			}
			if got := say(ask(t, g.dial(t, wire, "sidecar"), "allowed.example")); got != "NOERROR, A 93.184.216.34" {
				t.Errorf("the allowed one: %s", got)
			}
			if n := g.upstream.packets.Load(); n != 1 {
				t.Errorf("%d packets left for the allowed name, want 1", n)
			}
			if stats := g.Stats().DNS; stats != (dns.Stats{}) {
				t.Errorf("%+v", stats)
			}
		})
	}
}

func askDenied(t *testing.T, c client, r *rand.Rand, n int) {
	t.Helper()
	for i := range n {
		name := nearMiss(r)
		q := new(mdns.Msg)
		q.SetQuestion(mdns.Fqdn(name), []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeHTTPS, mdns.TypeTXT}[r.IntN(4)])
		q.SetEdns0(1232, false)
		q.Id = uint16(i)
		raw, err := c.ask(must(q.Pack()))
		if err != nil || len(raw) < 12 || binary.BigEndian.Uint16(raw) != q.Id {
			t.Errorf("%s: % x, %v", name, raw, err)
			return
		}
		a := new(mdns.Msg)
		if err := a.Unpack(raw); err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		want := mdns.RcodeNameError
		if name == "one.example" { // a name above allowed names
			want = mdns.RcodeSuccess
		}
		if a.Rcode != want || len(a.Answer) != 0 || len(a.Ns) != 1 || decisionID(a) == "" || !strings.Contains(say(a), "ede 15 ") {
			t.Errorf("%s: %s", name, say(a))
			return
		}
	}
}
