package site

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// Names is a name server on loopback, over UDP.
type Names struct {
	// Address is the address of the server, on 127.0.0.1.
	Address netip.AddrPort

	conn    *net.UDPConn
	answers func(dnsmessage.Name) []dnsmessage.Resource
	serving sync.WaitGroup
}

// Names starts a name server that Close stops. answers returns the records that answer a
// query for the IPv4 address of a name. Queries of every other type get an answer without
// records. Packets that are no query with one question get no answer.
func (s *Site) Names(answers func(dnsmessage.Name) []dnsmessage.Resource) (*Names, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	n := &Names{conn: conn, answers: answers}
	if n.Address, err = netip.ParseAddrPort(conn.LocalAddr().String()); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	n.serving.Go(n.serve)
	s.ends = append(s.ends, n.close)
	return n, nil
}

// IPv4 returns a record with the address of a name, valid for a day.
func IPv4(name dnsmessage.Name, address [4]byte) dnsmessage.Resource {
	return dnsmessage.Resource{Header: forADay(name), Body: &dnsmessage.AResource{A: address}}
}

// Alias returns a record that makes a name an alias of another one, valid for a day.
func Alias(name, to dnsmessage.Name) dnsmessage.Resource {
	return dnsmessage.Resource{Header: forADay(name), Body: &dnsmessage.CNAMEResource{CNAME: to}}
}

func forADay(name dnsmessage.Name) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 24 * 3600}
}

func (n *Names) close() {
	_ = n.conn.Close()
	n.serving.Wait()
}

func (n *Names) serve() {
	for buf := make([]byte, 4096); ; {
		size, peer, err := n.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if reply := n.reply(buf[:size]); reply != nil {
			_, _ = n.conn.WriteToUDPAddrPort(reply, peer)
		}
	}
}

// reply returns nil if the query gets no answer.
func (n *Names) reply(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
		m.Answers = n.answers(q.Name)
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}
