package dns_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestRecordNamesTheServerThatFailed checks that the record names the server and its
// answer, and that the client gets the server's extended error if that is about the name,
// but never the server's text.
func TestRecordNamesTheServerThatFailed(t *testing.T) {
	passed := map[int]bool{1: true, 2: true, 5: true, 6: true, 7: true, 8: true, 9: true, 10: true, 11: true, 12: true, 16: true, 17: true, 22: true, 23: true, 24: true, 25: true, 27: true}
	g := newGateway(t, options{})
	for _, wire := range wires() {
		c := g.dial(t, wire, "sidecar")
		for code := range 40 {
			for range 2 { // first from the server, then from the remembered failure
				want := 23
				if passed[code] {
					want = code
				}
				a := ask(t, c, fmt.Sprintf("ede-%d.wild.example", code))
				if got := say(a); got != fmt.Sprintf("SERVFAIL, ede %d resolve-failed", want) {
					t.Errorf("%s: code %d: %s", wire, code, got)
				}
				r := g.next(t)
				detail := fmt.Sprintf("server %s (udp): SERVFAIL", g.upstream.addr)
				if !strings.HasPrefix(r.Detail, detail) || !strings.HasSuffix(r.Detail, fmt.Sprintf(`(EDE %d): "said the server"`, code)) || r.Verdict != "fail" {
					t.Errorf("%s: recorded %q, %s", wire, r.Detail, r.Verdict)
				}
				if strings.Contains(a.String(), "said the server") || strings.Contains(a.String(), g.upstream.addr.String()) {
					t.Errorf("%s: the client is told of the server: %s", wire, a)
				}
			}
		}
		if got := say(ask(t, c, "plain ede-6.wild.example")); got != "SERVFAIL" {
			t.Errorf("without EDNS: %s", got)
		}
		g.next(t)
	}
}

// TestTargetsOfAliasesAreLookedUp checks that the target of an alias is looked up if the
// policy allows the alias to lead to it, and that no packet is sent for a target that is
// not allowed.
func TestTargetsOfAliasesAreLookedUp(t *testing.T) {
	for _, wire := range wires() {
		g := newGateway(t, options{})
		c := g.dial(t, wire, "sidecar")
		for _, row := range []struct {
			question, want string
			packets        int64
		}{
			{"to-a.wild.example", "NOERROR, CNAME a.wild.example., A 93.184.216.34", 2},
			{"to-a.wild.example", "NOERROR, CNAME a.wild.example., A 93.184.216.34", 0},
			{"to-to-b.wild.example", "NOERROR, CNAME to-b.wild.example., CNAME b.wild.example., A 93.184.216.34", 3},
			{"to-denied.wild.example", "NOERROR, soa of wild.example., ede 15 denied-by-rule", 1},
			{"to-to-denied.wild.example", "NOERROR, soa of wild.example., ede 15 denied-by-rule", 1}, // the second one is in the cache
		} {
			before := g.upstream.packets.Load()
			if got := say(ask(t, c, row.question)); got != row.want {
				t.Errorf("%s: %s: %s, want %s", wire, row.question, got, row.want)
			}
			if n := g.upstream.packets.Load() - before; n != row.packets {
				t.Errorf("%s: %s: %d packets, want %d", wire, row.question, n, row.packets)
			}
			g.next(t)
		}
	}
}

// TestQueryBeyondTheNameBudgetIsAnsweredAtOnce checks that every wire gets an answer at
// once that blames the name, and that a datagram gets one that is hardly longer.
func TestQueryBeyondTheNameBudgetIsAnsweredAtOnce(t *testing.T) {
	for _, wire := range wires() {
		g := newGateway(t, options{names: 2})
		c := g.dial(t, wire, "sidecar")
		for i := range 4 {
			for _, plain := range []string{"", "plain "} {
				q := question(fmt.Sprintf("%sn%d.wild.example", plain, i))
				packet := must(q.Pack())
				begin := time.Now()
				raw, err := c.ask(packet)
				r := g.next(t)
				if err != nil || time.Since(begin) > patience/4 {
					t.Fatalf("%s: %v after %s", wire, err, time.Since(begin))
				}
				if i < 2 {
					continue
				}
				if raw[3]&0xf != 2 || r.Reason != "name-budget" || r.RCode != "SERVFAIL" || r.Detail != "too many distinct names below the wildcard within a minute" {
					t.Errorf("%s: answered %x, recorded %+v", wire, raw, r)
				}
				if most := len(packet); plain != "" && len(raw) > most || len(raw) > most+64 {
					t.Errorf("%s: %d bytes for a query of %d", wire, len(raw), most)
				}
			}
		}
		if got := say(ask(t, c, "m.wild.example")); got != "SERVFAIL, ede 18 name-budget" {
			t.Errorf("%s: %s", wire, got)
		}
	}
}

// TestOnlyDatagramsOverTheRateGetNoAnswer checks that a datagram gets an answer for
// every other reason.
func TestOnlyDatagramsOverTheRateGetNoAnswer(t *testing.T) {
	g := newGateway(t, options{names: 1, perSecond: 20})
	c := g.dial(t, "udp", "").(udpClient)
	const queries = 60
	for i := range queries {
		if _, err := c.Write(must(question(fmt.Sprintf("n%d.wild.example", i)).Pack())); err != nil {
			t.Fatal(err)
		}
	}
	answered := map[string]int{}
	for range queries {
		r := g.next(t)
		if r.Reason == allowlist.RateLimited.String() {
			if r.RCode != "" {
				t.Errorf("over the rate: %+v", r)
			}
			continue
		}
		answered[r.Reason+" "+r.RCode]++
	}
	if len(answered) != 2 || answered[" NOERROR"] != 1 || answered["name-budget SERVFAIL"] == 0 {
		t.Errorf("recorded %v", answered)
	}
	for range answered["name-budget SERVFAIL"] + 1 {
		if _, err := c.read(patience); err != nil {
			t.Fatal(err)
		}
	}
}
