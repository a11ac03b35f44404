package resolve

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// server is a DNS server on loopback, over UDP and TCP on one port, that
// answers as its script says and remembers what it was asked.
type server struct {
	addr   netip.AddrPort
	script func(q dnsmessage.Question, network string) answer

	mu    sync.Mutex
	asked []string // "udp A api.example."
}

// answer is what the script says: addresses of the type that was asked for.
type answer struct {
	silent    bool
	truncated bool
	code      dnsmessage.RCode
	addrs     []netip.Addr
}

func newServer(t *testing.T, script func(q dnsmessage.Question, network string) answer) *server {
	t.Helper()
	udp, tcp := listenBoth(t)
	addr := netip.MustParseAddrPort(udp.LocalAddr().String())
	s := &server{addr: addr, script: script}
	var serving sync.WaitGroup
	serving.Go(func() { s.serveUDP(udp) })
	serving.Go(func() { s.serveTCP(tcp) })
	t.Cleanup(func() {
		_ = udp.Close()
		_ = tcp.Close()
		serving.Wait()
	})
	return s
}

// listenBoth finds a port that is free for both.
func listenBoth(t *testing.T) (*net.UDPConn, *net.TCPListener) {
	t.Helper()
	var err error
	for range 20 {
		var udp *net.UDPConn
		udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			continue
		}
		addr := netip.MustParseAddrPort(udp.LocalAddr().String())
		var tcp *net.TCPListener
		if tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr)); err == nil {
			return udp, tcp
		}
		_ = udp.Close()
	}
	t.Fatal(err)
	return nil, nil
}

func (s *server) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error of somebody who left
			continue
		}
		if reply := s.reply(buf[:n], "udp"); reply != nil {
			_, _ = conn.WriteToUDPAddrPort(reply, peer)
		}
	}
}

func (s *server) serveTCP(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err == nil {
			query := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(conn, query); err == nil {
				if reply := s.reply(query, "tcp"); reply != nil {
					_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
				}
			}
		}
		_ = conn.Close()
	}
}

// reply makes the answer to a query, nil for none.
func (s *server) reply(query []byte, network string) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	s.asked = append(s.asked, network+" "+q.Type.String()[len("Type"):]+" "+q.Name.String())
	s.mu.Unlock()
	a := s.script(q, network)
	if a.silent {
		return nil
	}
	msg := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: head.ID, Response: true, RecursionDesired: true, RecursionAvailable: true,
			Truncated: a.truncated, RCode: a.code,
		},
		Questions: []dnsmessage.Question{q},
	}
	rr := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}
	for _, addr := range a.addrs {
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: rr, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: rr, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	reply, err := msg.Pack()
	if err != nil {
		return nil
	}
	return reply
}

// questions returns what was asked so far.
func (s *server) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}
