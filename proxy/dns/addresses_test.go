package dns_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// TestRecordNamesTheAddresses checks that a record holds the addresses in the response, as
// another parser reads them, and those that the caller must not see.
func TestRecordNamesTheAddresses(t *testing.T) {
	for _, wire := range wires() {
		t.Run(wire, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.dial(t, wire, "sidecar")
			for _, row := range []struct{ question, refused string }{
				{"allowed.example", ""},
				{"allowed.example", ""}, // from the cache
				{"AAAA allowed.example", ""},
				{"alias.example", ""},
				{"mixed.example", "10.0.0.1"},
				{"mixed.example", "10.0.0.1"},
				{"inner.example", "10.0.0.1 169.254.169.254"},
				{"hidden.example", "8.8.4.4"},
				{"HTTPS service.example", "10.0.0.1"},
				{"bad-alias.example", ""},
				{"TXT text.example", ""},
				{"crowd.example", ""},
				{"throng.example", ""}, // cut down in a datagram
				{"open.localhost", ""},
				{"localhost", ""},
				{"AAAA a.localhost", ""},
				{"shut.localhost", "127.0.0.1"},
				{"denied.example", ""},
				{"ANY allowed.example", ""},
				{"AXFR allowed.example", ""},
				{"broken.example", ""},
				{"gone.example", ""},
			} {
				a := ask(t, c, row.question)
				r := g.next(t)
				if diff := cmp.Diff(addressesIn(a), r.Answered); diff != "" {
					t.Errorf("%s: answered (-response +record):\n%s", row.question, diff)
				}
				if got := strings.Join(r.Refused, " "); got != row.refused {
					t.Errorf("%s: refused %q, want %q", row.question, got, row.refused)
				}
				if r.Answers == nil || *r.Answers != len(a.Answer) {
					t.Errorf("%s: %v answers, the response has %d", row.question, r.Answers, len(a.Answer))
				}
			}
		})
	}
}

// addressesIn returns the first addresses in a response, each once.
func addressesIn(a *mdns.Msg) []string {
	var all []string
	add := func(text string) {
		if addr := netip.MustParseAddr(text).Unmap().String(); len(all) < audit.MaxAddresses && !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	for _, rr := range a.Answer {
		switch rr := rr.(type) {
		case *mdns.A:
			add(rr.A.String())
		case *mdns.AAAA:
			add(rr.AAAA.String())
		case *mdns.HTTPS:
			for _, v := range rr.Value {
				switch v := v.(type) {
				case *mdns.SVCBIPv4Hint:
					for _, hint := range v.Hint {
						add(hint.String())
					}
				case *mdns.SVCBIPv6Hint:
					for _, hint := range v.Hint {
						add(hint.String())
					}
				}
			}
		}
	}
	return all
}

// TestRecordNamesOwnerTicketAndInstance checks that a record of a query holds the owner of
// the entry, the ticket of the rule and the instance, as a record of a request does.
func TestRecordNamesOwnerTicketAndInstance(t *testing.T) {
	g := newGateway(t, options{audit: audit.Config{Instance: "gateway-7"}})
	spec := policy()
	spec.Entries[0].Owner = "team-a"
	spec.Entries[0].Allow = []allowlist.Rule{to("allowed.example", func(r *allowlist.Rule) { r.Ticket = "SEC-1" }), to("other.example")}
	spec.Entries[0].Deny = []allowlist.Rule{to("denied.example", func(r *allowlist.Rule) { r.Ticket = "SEC-2" })}
	g.swap(t, spec)
	c := g.dial(t, "tcp", "sidecar")
	for question, want := range map[string]string{
		"allowed.example": "allow team-a SEC-1", "other.example": "allow team-a ", "denied.example": "deny team-a SEC-2", "no.example": "deny team-a ",
	} {
		ask(t, c, question)
		r := g.next(t)
		if got := r.Verdict + " " + r.Owner + " " + r.Ticket; got != want || r.Instance != "gateway-7" {
			t.Errorf("%s: %q of instance %q, want %q", question, got, r.Instance, want)
		}
	}
}
