package wire

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// counting is a filter that allows everything and counts its calls.
type counting struct{ addrs, hops int }

// Addr implements Filter.
func (c *counting) Addr(netip.Addr) bool { c.addrs++; return true }

// Hop implements Filter.
func (c *counting) Hop(allowlist.Host) bool { c.hops++; return true }

// hints returns n addresses for a hint, from 192.0.2.0 or 2001:db8:: on.
func hints(format string, from, n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(format, from+i))
	}
	return strings.Join(all, ",")
}

// each returns n records.
func each(n int, format string) []string {
	var records []string
	for i := range n {
		records = append(records, fmt.Sprintf(format, i))
	}
	return records
}

// TestRecordsBeyondTheBoundAreDropped checks that the first records of any type are kept
// and sent, and the first hints of all services together.
func TestRecordsBeyondTheBoundAreDropped(t *testing.T) {
	const hint4, hint6 = "192.0.2.%d", "2001:db8::%x"
	for name, row := range map[string]struct {
		typ                 uint16
		records             []string
		answers, addrs, cut int
	}{
		"as many addresses as are kept": {TypeA, each(64, "a.example. 60 IN A 192.0.2.%d"), 64, 64, 0},
		"one more":                      {TypeA, each(65, "a.example. 60 IN A 192.0.2.%d"), 64, 64, 1},
		"addresses of IPv6":             {TypeAAAA, each(300, "a.example. 60 IN AAAA 2001:db8::%x"), 64, 64, 236},
		"behind aliases": {TypeA, append([]string{
			"a.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME c.example.",
		}, each(100, "c.example. 60 IN A 192.0.2.%d")...), 66, 64, 36},
		"texts":                {dns.TypeTXT, each(500, `a.example. 60 IN TXT "%d"`), 64, 0, 436},
		"name servers":         {dns.TypeNS, each(70, "a.example. 60 IN NS ns%d.example."), 64, 0, 6},
		"services":             {TypeHTTPS, each(80, "a.example. 60 IN HTTPS 1 s%d.example."), 64, 0, 16},
		"hints of one service": {TypeHTTPS, []string{"a.example. 60 IN HTTPS 1 . ipv4hint=" + hints(hint4, 0, 100) + " ipv6hint=" + hints(hint6, 0, 9)}, 1, 64, 45},
		"hints of several": {TypeSVCB, []string{
			"a.example. 60 IN SVCB 1 b.example. ipv4hint=" + hints(hint4, 0, 40), "a.example. 60 IN SVCB 2 . ipv6hint=" + hints(hint6, 0, 40),
			"a.example. 60 IN SVCB 3 . ipv4hint=" + hints(hint4, 40, 3),
		}, 3, 64, 19},
		"a service that cannot be used without its hints": {TypeHTTPS, []string{
			"a.example. 60 IN HTTPS 1 . ipv4hint=" + hints(hint4, 0, 64), "a.example. 60 IN HTTPS 2 . mandatory=ipv4hint ipv4hint=192.0.2.9",
		}, 1, 64, 1},
	} {
		q := newQuery(t, "a.example", row.typ, true)
		m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.AuthenticatedData = true }, row.records...))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		packet, counts := m.Append(nil, reply(q.question), 0, false, everything{})
		var shown dns.Msg
		if err := shown.Unpack(packet); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		addrs := 0
		for range m.Addrs() {
			addrs++
		}
		if want := (Counts{Answers: row.answers, Cut: row.cut}); counts != want || len(shown.Answer) != row.answers || addrs != row.addrs {
			t.Errorf("%s: %+v, %d records, %d addresses; want %+v, %d", name, counts, len(shown.Answer), addrs, want, row.addrs)
		}
		if shown.AuthenticatedData && row.cut > 0 {
			t.Errorf("%s: validated, although a part is missing", name)
		}
	}
}

// TestNXDomainWithManyRecords checks that an NXDOMAIN with records is malformed,
// whatever their number.
func TestNXDomainWithManyRecords(t *testing.T) {
	q := newQuery(t, "a.example", TypeA, true)
	nothing := func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }
	if m, err := q.Parse(upstream(t, q, nothing, each(100, "a.example. 60 IN A 192.0.2.%d")...)); err == nil {
		t.Errorf("%d", m.RCode())
	}
}

// TestDecisionsForAnAnswerAreBounded checks that sending any answer and binding its
// addresses needs a bounded number of decisions, and allocates nothing.
func TestDecisionsForAnAnswerAreBounded(t *testing.T) {
	draw := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		var records []string
		owner, typ := "a.example.", []uint16{TypeA, TypeAAAA, TypeHTTPS, TypeSVCB, dns.TypeMX, dns.TypeTXT}[draw.IntN(6)]
		for i := range draw.IntN(MaxHops + 1) {
			next := fmt.Sprintf("n%d.example.", i)
			records = append(records, owner+" 60 IN CNAME "+next)
			owner = next
		}
		for range draw.IntN(400) {
			data := map[uint16]string{
				TypeA: fmt.Sprintf("192.0.2.%d", draw.IntN(256)), TypeAAAA: fmt.Sprintf("2001:db8::%x", draw.IntN(9999)),
				dns.TypeMX: fmt.Sprintf("1 m%d.example.", draw.IntN(256)), dns.TypeTXT: `"x"`,
			}[typ]
			if data == "" {
				data = fmt.Sprintf("1 s%d.example. ipv4hint=%s", draw.IntN(9), hints("192.0.2.%d", 0, 1+draw.IntN(30)))
			}
			records = append(records, owner+" 60 IN "+dns.TypeToString[typ]+" "+data)
		}
		q := newQuery(t, "a.example", typ, true)
		packet := upstream(t, q, nil, records...)
		if len(packet) > 65535 {
			continue
		}
		m, err := q.Parse(packet)
		if err != nil {
			t.Fatal(err)
		}
		var c counting
		buf, r := make([]byte, 0, 65535), reply(q.question)
		if n := testing.AllocsPerRun(1, func() {
			c = counting{}
			m.Append(buf, r, 0, false, &c)
		}); n != 0 {
			t.Errorf("%d records: %v allocations", len(records), n)
		}
		if c.addrs > MaxHints || c.hops > MaxHops+MaxRecords {
			t.Errorf("%d records: %d addresses and %d names are decided", len(records), c.addrs, c.hops)
		}
		c = counting{}
		for range m.Seen(&c) {
		}
		if c.addrs > MaxHints || c.hops > MaxHops+MaxRecords {
			t.Errorf("%d records: %d addresses and %d names are decided again", len(records), c.addrs, c.hops)
		}
	}
}

// BenchmarkLargest sends the most expensive answers that are kept.
func BenchmarkLargest(b *testing.B) {
	var aliases []string
	owner := "a.example."
	for i := range MaxHops {
		next := fmt.Sprintf("n%d.example.", i)
		aliases, owner = append(aliases, owner+" 60 IN CNAME "+next), next
	}
	for name, row := range map[string]struct {
		typ     uint16
		records []string
	}{
		"one address":       {TypeA, each(1, "a.example. 60 IN A 192.0.2.%d")},
		"64 addresses":      {TypeA, each(64, "a.example. 60 IN A 192.0.2.%d")},
		"behind 16 aliases": {TypeA, append(aliases, each(64, owner+" 60 IN A 192.0.2.%d")...)},
		"64 services":       {TypeHTTPS, each(64, "a.example. 60 IN HTTPS 1 s%[1]d.example. ipv4hint=192.0.2.%[1]d")},
		"64 kB of texts":    {dns.TypeTXT, each(63, "a.example. 60 IN TXT %d"+strings.Repeat(` "`+strings.Repeat("x", 249)+`"`, 4))},
	} {
		b.Run(name, func(b *testing.B) {
			q := newQuery(b, "a.example", row.typ, false)
			m, err := q.Parse(upstream(b, q, nil, row.records...))
			if err != nil {
				b.Fatal(err)
			}
			buf, r := make([]byte, 0, 65535), reply(q.question)
			b.ReportAllocs()
			for b.Loop() {
				m.Append(buf, r, 0, false, public{})
			}
		})
	}
}
