package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// mark is a packet that is no query. When the server has read it, it has counted every
// packet before it.
const mark = "mark"

// server is a name server that counts packets, until the process ends.
type server struct {
	address string
	packets atomic.Int64
	marks   chan struct{}

	mu    sync.Mutex
	names map[string]bool
}

func (s *server) asked() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.names)
}

// listen starts a server. It answers queries only if answers is true.
func listen(ctx context.Context, address string, answers bool) (*server, error) {
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	s := &server{address: address, marks: make(chan struct{}, 1), names: map[string]bool{}}
	go s.serve(conn, answers)
	return s, nil
}

// count returns how many packets have been sent to the server so far, including those
// that wait in its socket.
func (s *server) count(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", s.address)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, mark); err != nil {
		return 0, err
	}
	select {
	case <-s.marks:
		return s.packets.Load(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("counting the packets to %s: %w", s.address, ctx.Err())
	}
}

func (s *server) serve(conn net.PacketConn, answers bool) {
	buf := make([]byte, 4096)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if string(buf[:n]) == mark {
			s.marks <- struct{}{}
			continue
		}
		s.packets.Add(1)
		if !answers {
			continue
		}
		if reply := s.reply(buf[:n]); reply != nil {
			_, _ = conn.WriteTo(reply, peer)
		}
	}
}

// reply resolves every name to the address, and answers other types without records.
func (s *server) reply(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	s.mu.Lock()
	s.names[strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")] = true
	s.mu.Unlock()
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{93, 184, 216, 34}},
		}}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}
