package wire

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestFilter checks what a client sees of an answer through a filter.
func TestFilter(t *testing.T) {
	chain := []string{"www.example. 60 IN CNAME a.example.", "a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1", "b.example. 60 IN A 10.0.0.1"}
	aliases := []string{"NOERROR", "WWW.EXAMPLE. 60 IN CNAME a.example.", "a.example. 60 IN CNAME b.example."}
	gone := []string{"www.example. 60 IN CNAME a.example.", "--", "example. 60 IN SOA ns.example. admin.example. 1 2 3 4 20"}
	tests := []struct {
		name    string
		typ     uint16
		records []string
		code    int
		filter  only
		want    []string
		counts  Counts
	}{
		{
			name: "one of two addresses", typ: TypeA, records: chain, filter: only{"a.example", "b.example", "192.0.2.1"},
			want: append(slices.Clone(aliases), "b.example. 60 IN A 192.0.2.1"), counts: Counts{Answers: 3, Dropped: 1},
		},
		{
			name: "no address is left", typ: TypeA, records: chain, filter: only{"a.example", "b.example"},
			want: []string{"NOERROR"}, counts: Counts{Dropped: 2},
		},
		{
			name: "a refused alias hides the records after it", typ: TypeA, records: chain, filter: only{"a.example", "192.0.2.1", "10.0.0.1"},
			want: []string{"NOERROR"}, counts: Counts{Dropped: 1},
		},
		{
			name: "an IPv4-mapped address is the address", typ: TypeAAAA, records: []string{"www.example. 60 IN AAAA ::ffff:192.0.2.1", "www.example. 60 IN AAAA ::ffff:10.0.0.1"},
			filter: only{"192.0.2.1"}, want: []string{"NOERROR", "WWW.EXAMPLE. 60 IN AAAA ::ffff:192.0.2.1"}, counts: Counts{Answers: 1, Dropped: 1},
		},
		{
			name: "an allowed alias to a name that does not exist", typ: TypeA, records: gone, code: NXDomain, filter: only{"a.example"},
			want:   []string{"NXDOMAIN", "WWW.EXAMPLE. 60 IN CNAME a.example.", "-- example. 20 IN SOA ns.example. admin.example. 1 2 3 4 20"},
			counts: Counts{Answers: 1},
		},
		{
			name: "a refused alias to a name that does not exist", typ: TypeA, records: gone, code: NXDomain,
			want: []string{"NOERROR"}, counts: Counts{Dropped: 1},
		},
		{
			name: "a refused alias that was asked for", typ: TypeCNAME, records: chain[:1],
			want: []string{"NOERROR"}, counts: Counts{Dropped: 1},
		},
		{
			name: "a record without an address is not filtered", typ: dns.TypeTXT, records: []string{`www.example. 60 IN TXT "x"`},
			want: []string{"NOERROR", `WWW.EXAMPLE. 60 IN TXT "x"`}, counts: Counts{Answers: 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, counts := answered(t, "www.example", tt.typ, tt.filter, func(m *dns.Msg) { m.Rcode = tt.code }, tt.records...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if counts != tt.counts {
				t.Errorf("counts %+v, want %+v", counts, tt.counts)
			}
		})
	}
}

// TestServiceRecords checks what a client sees of service records through a filter.
func TestServiceRecords(t *testing.T) {
	const ech = `ech="AEX+DQBBxwAgACBaWxQ1yMwqgAx9ViQq6FQ8gLJl1tdMdpbSBVUfmsjGIAAEAAEAAQASY2xvdWRmbGFyZS1lY2guY29tAAA="`
	tests := []struct {
		name    string
		records []string
		filter  only
		want    []string
		dropped int
	}{
		{
			name: "ECH is removed", records: []string{`1 . alpn="h2" ` + ech + ` ipv6hint="2001:db8::1"`},
			filter: only{"2001:db8::1"}, want: []string{`1 . alpn="h2" ipv6hint="2001:db8::1"`},
		},
		{
			name: "a record that cannot be used without ECH is removed", records: []string{`1 . mandatory="ech" ` + ech, `2 . alpn="h2"`},
			want: []string{`2 . alpn="h2"`},
		},
		{
			name: "hints are filtered one by one", records: []string{`1 . ipv4hint="192.0.2.1,10.0.0.1,192.0.2.2" ipv6hint="2001:db8::1"`},
			filter: only{"192.0.2.1", "192.0.2.2"}, want: []string{`1 . ipv4hint="192.0.2.1,192.0.2.2"`}, dropped: 2,
		},
		{
			name: "a parameter without hints is removed", records: []string{`1 . alpn="h2" ipv4hint="10.0.0.1" port="8443"`},
			want: []string{`1 . alpn="h2" port="8443"`}, dropped: 1,
		},
		{
			name: "a record that cannot be used without its hints is removed", records: []string{`1 . mandatory="ipv4hint" ipv4hint="10.0.0.1"`, `2 . alpn="h2"`},
			want: []string{`2 . alpn="h2"`}, dropped: 1,
		},
		{
			name: "another mandatory key stays", records: []string{`1 . mandatory="alpn,ipv4hint" alpn="h2" ipv4hint="10.0.0.1,192.0.2.1"`},
			filter: only{"192.0.2.1"}, want: []string{`1 . mandatory="alpn,ipv4hint" alpn="h2" ipv4hint="192.0.2.1"`}, dropped: 1,
		},
		{
			name: "a target must be seen", records: []string{`1 Pool.Example. alpn="h2"`, `2 other.example. alpn="h3"`},
			filter: only{"pool.example"}, want: []string{`1 pool.example. alpn="h2"`}, dropped: 1,
		},
		{
			name: "an alias of the service", records: []string{`0 pool.example.`}, filter: only{"pool.example"}, want: []string{`0 pool.example.`},
		},
		{
			name: "no record is left", records: []string{`1 other.example. alpn="h3" ipv4hint="192.0.2.1"`}, want: nil, dropped: 1,
		},
		{
			name: "a target that is no host is none", records: []string{`1 a\.b.example. alpn="h3"`, `2 -a.example.`, `3 .`}, want: []string{`3 .`},
		},
		{
			name: "unknown parameters stay", records: []string{`1 . key65400="x"`}, want: []string{`1 . key65400="x"`},
		},
	}
	for _, tt := range tests {
		for typ, word := range map[uint16]string{TypeHTTPS: "HTTPS", TypeSVCB: "SVCB"} {
			t.Run(word+": "+tt.name, func(t *testing.T) {
				var records, want []string
				for _, r := range tt.records {
					records = append(records, "www.example. 60 IN "+word+" "+r)
				}
				want = append(want, "NOERROR")
				for _, r := range tt.want {
					want = append(want, "WWW.EXAMPLE. 60 IN "+word+" "+r)
				}
				got, counts := answered(t, "www.example", typ, tt.filter, nil, records...)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if want := (Counts{Answers: len(tt.want), Dropped: tt.dropped}); counts != want {
					t.Errorf("counts %+v, want %+v", counts, want)
				}
			})
		}
	}
}

// TestServiceRecordsThatAreMalformed checks that malformed service records, which the
// library cannot write, are refused.
func TestServiceRecordsThatAreMalformed(t *testing.T) {
	param := func(key uint16, value ...byte) []byte {
		b := binary.BigEndian.AppendUint16(nil, key)
		return append(binary.BigEndian.AppendUint16(b, uint16(len(value))), value...)
	}
	head := []byte{0, 1, 0}
	tests := []struct {
		name  string
		rdata []byte
	}{
		{"keys in another order", slices.Concat(head, param(3, 1, 1), param(1, 2, 'h', '2'))},
		{"a key twice", slices.Concat(head, param(3, 1, 1), param(3, 1, 1))},
		{"a hint of three bytes", slices.Concat(head, param(keyIPv4Hint, 1, 2, 3))},
		{"a hint of no bytes", slices.Concat(head, param(keyIPv6Hint))},
		{"cut off in a key", slices.Concat(head, []byte{0})},
		{"an empty parameter for ECH in the wrong place", slices.Concat(head, param(9), param(keyECH))},
		{"cut off in a value", slices.Concat(head, []byte{0, 1, 0, 9, 'x'})},
	}
	for _, tt := range tests {
		if kept, _, _ := stripService(slices.Clone(tt.rdata), MaxHints); kept != 0 {
			t.Errorf("%s: %d bytes are left", tt.name, kept)
		}
	}
}

// TestValidated checks that the AD bit is passed on only if the answer was not changed.
func TestValidated(t *testing.T) {
	tests := []struct {
		name    string
		typ     uint16
		filter  Filter
		records []string
		asked   bool
		stale   bool
		clear   bool // says that the server was not authenticated
		want    bool
	}{
		{name: "a validated answer", typ: TypeA, records: []string{"a.example. 60 IN A 192.0.2.1"}, asked: true, want: true},
		{name: "a client that does not ask for validation", typ: TypeA, records: []string{"a.example. 60 IN A 192.0.2.1"}},
		{name: "an expired answer", typ: TypeA, records: []string{"a.example. 60 IN A 192.0.2.1"}, asked: true, stale: true},
		{name: "a server that was not authenticated", typ: TypeA, records: []string{"a.example. 60 IN A 192.0.2.1"}, asked: true, clear: true},
		{name: "a record was removed", typ: TypeA, records: []string{"a.example. 60 IN A 192.0.2.1", "a.example. 60 IN A 192.0.2.2"}, filter: only{"192.0.2.1"}, asked: true},
		{name: "ECH was removed", typ: TypeHTTPS, records: []string{`a.example. 60 IN HTTPS 1 . ech="AAAA"`}, asked: true},
		{name: "a signature was removed", typ: TypeA, records: []string{"a.example. 60 IN A 192.0.2.1", `a.example. 60 IN TXT "x"`}, asked: true},
	}
	for _, tt := range tests {
		q := newQuery(t, "a.example", tt.typ, true)
		m, err := q.Parse(upstream(t, q, func(m *dns.Msg) { m.AuthenticatedData = true }, tt.records...))
		if err != nil {
			t.Fatal(err)
		}
		if tt.clear {
			m = m.Unauthenticated()
		}
		r := reply(q.question)
		r.AD = tt.asked
		if tt.filter == nil {
			tt.filter = everything{}
		}
		packet, _ := m.Append(nil, r, 0, tt.stale, tt.filter)
		if got := packet[3]&flagAD != 0; got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// TestResponseRepeatsTheClientsQuestion checks that a response has the client's id,
// flags and letter case.
func TestResponseRepeatsTheClientsQuestion(t *testing.T) {
	q := newQuery(t, "a.example", TypeA, true)
	m, err := q.Parse(upstream(t, q, nil, "a.example. 60 IN A 192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, rd := range []bool{true, false} {
		for _, cd := range []bool{true, false} {
			r := reply(q.question)
			r.RD, r.CD = rd, cd
			packet, _ := m.Append(nil, r, 0, false, everything{})
			var got dns.Msg
			if err := got.Unpack(packet); err != nil {
				t.Fatal(err)
			}
			if got.Id != 0x1234 || got.RecursionDesired != rd || got.CheckingDisabled != cd || got.Question[0].Name != "A.EXAMPLE." {
				t.Errorf("RD %v, CD %v: %v", rd, cd, got)
			}
		}
	}
}

// TestAddrsIncludeHints checks that Addrs returns the addresses in the hints of all
// services.
func TestAddrsIncludeHints(t *testing.T) {
	q := newQuery(t, "a.example", TypeHTTPS, true)
	m, err := q.Parse(upstream(t, q, nil, `a.example. 60 IN HTTPS 1 . alpn="h2" ipv4hint="192.0.2.1,192.0.2.2" ipv6hint="2001:db8::1"`, `a.example. 60 IN HTTPS 2 b.example. ipv4hint="192.0.2.3"`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for addr := range m.Addrs() {
		got = append(got, addr.String())
	}
	if diff := cmp.Diff([]string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"}, got); diff != "" {
		t.Error(diff)
	}
	for addr := range m.Addrs() {
		if addr != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("first %s", addr)
		}
		break
	}
}

// public is a filter that allows every name and no private address. It allocates
// nothing.
type public struct{ everything }

// Addr implements Filter.
func (public) Addr(addr netip.Addr) bool { return !addr.IsPrivate() }

// TestAppendAllocates checks that Append allocates nothing if the buffer is large
// enough.
func TestAppendAllocates(t *testing.T) {
	for _, row := range []struct {
		typ     uint16
		records []string
	}{
		{TypeA, []string{"a.example. 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1", "b.example. 60 IN A 10.0.0.1"}},
		{TypeHTTPS, []string{`a.example. 60 IN HTTPS 1 b.example. alpn="h2" ipv4hint="192.0.2.1,10.0.0.1"`}},
		{TypeAAAA, []string{"--", "example. 60 IN SOA ns.example. admin.example. 1 2 3 4 20"}},
	} {
		q := newQuery(t, "a.example", row.typ, true)
		m, err := q.Parse(upstream(t, q, nil, row.records...))
		if err != nil {
			t.Fatal(err)
		}
		buf, r := make([]byte, 0, 1500), reply(q.question)
		var f Filter = public{}
		if n := testing.AllocsPerRun(100, func() { buf, _ = m.Append(buf[:0], r, 1, false, f) }); n != 0 {
			t.Errorf("type %d: %v allocations", row.typ, n)
		}
	}
}
