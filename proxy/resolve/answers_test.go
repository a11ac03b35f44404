package resolve

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// header returns a reply that is a header only, with the id of the query and a response
// code.
func header(code uint16) func(query []byte) []byte {
	return func(query []byte) []byte {
		p := binary.BigEndian.AppendUint16(slices.Clone(query[:2]), 1<<15|code)
		return append(p, make([]byte, 8)...)
	}
}

// TestAnswersThatLeadToTheNextServer checks that the next server is asked after an
// answer that says nothing about the name.
func TestAnswersThatLeadToTheNextServer(t *testing.T) {
	unrecursed := func(m *dns.Msg) { m.RecursionAvailable = false }
	for name, first := range map[string]answer{
		"a header with SERVFAIL":        {raw: header(dns.RcodeServerFailure)},
		"a header with REFUSED":         {raw: header(dns.RcodeRefused)},
		"a header with FORMERR":         {raw: header(dns.RcodeFormatError)},
		"a header with NXDOMAIN":        {raw: header(dns.RcodeNameError)},
		"a header that is truncated":    {raw: header(1 << 9)},
		"SERVFAIL":                      {code: dns.RcodeServerFailure},
		"a referral":                    {records: []string{"--", "example. 60 IN NS ns.example."}},
		"a referral upwards":            {records: []string{"--", ". 60 IN NS a.root-servers.net."}, change: unrecursed},
		"nothing, without recursion":    {change: unrecursed},
		"an address, without recursion": {records: []string{"api.example. 60 IN A 192.0.2.66"}, change: unrecursed},
		"an alias, without recursion":   {records: []string{"api.example. 60 IN CNAME x.example."}, change: unrecursed},
		"no name, without recursion":    {code: dns.RcodeNameError, records: []string{"--", outerSOA}, change: unrecursed},
		"records of another name":       {records: []string{"x.example. 60 IN A 192.0.2.66"}},
		"a record of another class":     {records: []string{"api.example. 60 CH A 192.0.2.66"}},
		"a circle":                      {records: []string{"api.example. 60 IN CNAME api.example."}},
	} {
		t.Run(name, func(t *testing.T) {
			s, other := newServer(t, always(first)), newServer(t, addresses("192.0.2.1"))
			r := newResolver(t, Config{}, s, other).impatient(patience)
			check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream") // otherwise no server would have time left
		})
	}
}

// TestAnswersWithoutRecursionAreTheLastResort checks that an answer without recursion
// counts only if no other server has a better one.
func TestAnswersWithoutRecursionAreTheLastResort(t *testing.T) {
	unrecursed := func(m *dns.Msg) { m.RecursionAvailable = false }
	authoritative := func(m *dns.Msg) { m.RecursionAvailable, m.Authoritative = false, true }
	record := []string{"api.example. 60 IN A 192.0.2.1"}
	lame, bad := answer{records: record, change: unrecursed}, answer{code: dns.RcodeRefused}
	for name, row := range map[string]struct {
		servers []answer
		want    string
	}{
		"the only server":   {[]answer{lame}, "192.0.2.1 from upstream"},
		"all of them":       {[]answer{lame, {records: []string{"api.example. 60 IN A 192.0.2.2"}, change: unrecursed}}, "192.0.2.1 from upstream"},
		"the others refuse": {[]answer{lame, bad, bad}, "192.0.2.1 from upstream"},
		"the first refuses": {[]answer{bad, lame}, "192.0.2.1 from upstream"},
		"by authority":      {[]answer{{records: record, change: authoritative}, {records: []string{"api.example. 60 IN A 192.0.2.66"}}}, "192.0.2.1 from upstream"},
	} {
		t.Run(name, func(t *testing.T) {
			var servers []*server
			for _, a := range row.servers {
				servers = append(servers, newServer(t, always(a)))
			}
			r := newResolver(t, Config{}, servers...).impatient(patience)
			check(t, lookup(t, r, "api.example", dns.TypeA), row.want)
			if n := len(servers[0].questions()); n > 2 || row.servers[0].code == 0 && n != 1 {
				t.Errorf("the first server was asked %d times", n)
			}
		})
	}
	t.Run("one that rests is not waited for", func(t *testing.T) {
		s, other := newServer(t, always(lame)), newServer(t, always(answer{silent: true}))
		r := newResolver(t, Config{}, s, other).impatient(patience)
		r.upstreams[1].backoffUntil = time.Now().Add(maxBackoff)
		check(t, lookup(t, r, "api.example", dns.TypeA), "192.0.2.1 from upstream")
		other.wasAsked(t)
	})
}

// TestServersWithoutEDNS checks that servers without EDNS are asked once more without it
// (RFC 6891 section 7), over either protocol.
func TestServersWithoutEDNS(t *testing.T) {
	for _, protocol := range []Protocol{UDP, TCP} {
		for name, old := range map[string]answer{
			"FORMERR":  {code: dns.RcodeFormatError, change: func(m *dns.Msg) { m.Extra = nil }},
			"NOTIMP":   {code: dns.RcodeNotImplemented},
			"BADVERS":  {change: func(m *dns.Msg) { m.SetEdns0(1232, false).Rcode = dns.RcodeBadVers }},
			"a header": {raw: header(dns.RcodeFormatError)},
		} {
			s := newServer(t, func(q asked) answer {
				if q.edns {
					return old
				}
				return answer{records: addressRecords(q, "192.0.2.1")}
			})
			r := newResolver(t, Config{Servers: []Server{{Protocol: protocol, Addr: s.addr}}})
			if got := lookup(t, r, "api.example", dns.TypeA); got != "192.0.2.1 from upstream" || len(s.questions()) != 2 {
				t.Errorf("%s over %s: %s, %q", name, protocol, got, s.questions())
			}
		}
	}
	s := newServer(t, always(answer{code: dns.RcodeFormatError}))
	check(t, lookup(t, newResolver(t, Config{}, s), "api.example", dns.TypeA), "resolve-failed")
	if n := len(s.questions()); n != 4 {
		t.Errorf("a server that takes neither was asked %d times", n)
	}
}
