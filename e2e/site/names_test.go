package site_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/exeat-dev/exeat/e2e/site"
)

func TestEveryNameIsAnswered(t *testing.T) {
	s, err := site.New("prod.example")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	names, err := s.Names(func(name dnsmessage.Name) []dnsmessage.Resource {
		edge := dnsmessage.MustNewName("edge.example.")
		return []dnsmessage.Resource{site.Alias(name, edge), site.IPv4(edge, [4]byte{192, 0, 2, 1})}
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp", names.Address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		id      uint16
		of      dnsmessage.Type
		answers int
	}{{7, dnsmessage.TypeA, 2}, {8, dnsmessage.TypeAAAA, 0}} {
		m := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: row.id},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("any.example."), Type: row.of, Class: dnsmessage.ClassINET}},
		}
		query, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for _, sent := range [][]byte{query[:5], query} { // half a query is not answered
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 512)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		var got dnsmessage.Message
		if err := got.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if got.ID != row.id || !got.Response || !got.RecursionAvailable || len(got.Answers) != row.answers {
			t.Errorf("got %v", got)
		}
	}
}
