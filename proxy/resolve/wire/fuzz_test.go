package wire

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// FuzzParse parses answers with arbitrary flags, counts and bytes after the question.
// An accepted answer must be the answer to the question, must not change in its stored
// form, and must not show what the filter refuses.
func FuzzParse(f *testing.F) {
	for _, seed := range []struct {
		typ     uint16
		records []string
	}{
		{TypeA, []string{"www.example. 60 IN CNAME a.example.", "a.example. 60 IN A 192.0.2.1"}},
		{TypeAAAA, []string{"www.example. 60 IN AAAA 2001:db8::1"}},
		{TypeHTTPS, []string{`www.example. 60 IN HTTPS 1 a.example. alpn="h2" ech="AAAA" ipv4hint="192.0.2.1"`}},
		{dns.TypeMX, []string{"www.example. 60 IN MX 1 mail.example."}},
		{dns.TypeNAPTR, []string{`www.example. 60 IN NAPTR 1 2 "S" "SIP+D2U" "" _sip._udp.example.`}},
		{dns.TypeSSHFP, []string{"www.example. 60 IN SSHFP 4 2 00ff"}},
		{dns.TypeTLSA, []string{"www.example. 60 IN TLSA 3 1 1 00ff"}},
		{dns.TypeURI, []string{`www.example. 60 IN URI 1 2 "https://www.example/"`}},
		{dns.TypeCAA, []string{`www.example. 60 IN CAA 0 issue "ca.example"`}},
		{dns.TypeTXT, []string{"--", "example. 60 IN SOA ns.example. admin.example. 1 2 3 4 20"}},
	} {
		q := newQuery(f, "www.example", seed.typ, false)
		packet := upstream(f, q, nil, seed.records...)
		f.Add(seed.typ, packet[2:4], packet[6:headLen], packet[headLen+len(q.questionSection()):])
	}
	f.Fuzz(func(t *testing.T, typ uint16, flags, counts, body []byte) {
		query, err := NewQuery(question(t, "www.example", typ), false)
		if err != nil || len(flags) != 2 || len(counts) != 6 {
			return
		}
		packet := slices.Concat(query.packet[:2], flags, []byte{0, 1}, counts, query.questionSection(), body)
		given := bytes.Clone(packet)
		m, err := query.Parse(packet)
		if !bytes.Equal(packet, given) {
			t.Fatal("the packet was changed")
		}
		if err != nil {
			if m != nil {
				t.Fatalf("%v beside %v", m, err)
			}
			return
		}
		checkStored(t, query, m)
	})
}

func checkStored(t *testing.T, query *Query, m *Message) {
	t.Helper()
	whole, counts := m.Append(nil, Reply{Question: query.questionSection()}, 0, false, everything{})
	if counts.Dropped != 0 || len(whole) > 65535-11 {
		t.Fatalf("%+v, %d bytes", counts, len(whole))
	}
	checkChain(t, query, whole)

	// The response must parse to the same answer.
	copy(whole, query.packet[:2])
	again, err := query.Parse(whole)
	if err != nil {
		t.Fatalf("what was stored is not taken again: %v", err)
	}
	if !bytes.Equal(again.data, m.data) || !slices.Equal(again.names, m.names) || again.rcode != m.rcode || again.ttl != m.ttl || again.negative != m.negative {
		t.Fatalf("stored %+v, again %+v", m, again)
	}

	// Without addresses and names, no record that has one is left.
	none, counts := m.Append(nil, Reply{Question: query.questionSection()}, 0, false, only{})
	var msg dns.Msg
	if err := msg.Unpack(none); err != nil {
		t.Fatal(err)
	}
	if counts.Answers != len(msg.Answer) {
		t.Fatalf("counts %+v of %d answers", counts, len(msg.Answer))
	}
	for _, rr := range msg.Answer {
		switch rr := rr.(type) {
		case *dns.A, *dns.AAAA, *dns.CNAME:
			t.Fatalf("%v is seen", rr)
		case *dns.HTTPS:
			checkService(t, &rr.SVCB)
		case *dns.SVCB:
			checkService(t, rr)
		}
	}
}

// checkChain parses a response with the library and checks that the records lead from
// the name of the question to its type, and that there are no others.
func checkChain(t *testing.T, query *Query, packet []byte) {
	t.Helper()
	var msg dns.Msg
	if err := msg.Unpack(packet); err != nil {
		t.Fatalf("%v: %x", err, packet)
	}
	if len(msg.Answer) != int(binary.BigEndian.Uint16(packet[6:])) || len(msg.Extra) != 0 {
		t.Fatalf("sections of %v", msg)
	}
	at := dns.CanonicalName(msg.Question[0].Name)
	seen := map[string]bool{at: true}
	for _, rr := range msg.Answer {
		h := rr.Header()
		if dns.CanonicalName(h.Name) != at || h.Class != dns.ClassINET || h.Ttl > MaxTTL {
			t.Fatalf("at %s: %v", at, rr)
		}
		if alias, ok := rr.(*dns.CNAME); ok {
			at = alias.Target
			if seen[at] {
				t.Fatalf("a loop over %s", at)
			}
			seen[at] = true
		} else if h.Rrtype != query.question.Type {
			t.Fatalf("nobody asked for %v", rr)
		}
	}
	for _, rr := range msg.Ns {
		if rr.Header().Rrtype != dns.TypeSOA || !dns.IsSubDomain(rr.Header().Name, at) || rr.Header().Ttl > MaxNegativeTTL {
			t.Fatalf("authority %v", rr)
		}
	}
}

func checkService(t *testing.T, rr *dns.SVCB) {
	t.Helper()
	if rr.Target != "." {
		t.Fatalf("%v is seen", rr)
	}
	for _, v := range rr.Value {
		if k := v.Key(); k == dns.SVCB_IPV4HINT || k == dns.SVCB_IPV6HINT || k == dns.SVCB_ECHCONFIG {
			t.Fatalf("%v is seen", rr)
		}
	}
}
