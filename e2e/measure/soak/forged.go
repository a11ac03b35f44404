package soak

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The flood of forged datagrams: five times what an identity may ask.
const (
	forgedFrom   = "127.0.0.66" // stands for the victim
	forgedBatch  = 50
	forgedPause  = 10 * time.Millisecond
	forgedSuffix = ".forged.soak.example" // below it the victim may have any name
)

// victimNames is how many new names the victim asks for meanwhile, of the hundred
// that it may have in a minute.
const victimNames = 50

// forged has datagrams come from an address that stands for an identity, as if it
// were forged. The identity, which shows a certificate, keeps its tunnel, opens
// others to new names, and then nothing has stayed.
func forged(ctx context.Context, w *world, o options, out io.Writer) (faults []string, err error) {
	names, err := newNameServer()
	if err != nil {
		return nil, err
	}
	defer names.close()
	g, door, err := w.serveNames(ctx, names.conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	defer g.Stop()
	victim := w.caller(g, "quiet", "127.0.0.1")
	before, err := g.settled(ctx, victim)
	if err != nil {
		return nil, err
	}
	held, err := victim.tunnel(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }()
	if err := held.SetDeadline(time.Now().Add(o.alone + patience)); err != nil {
		return nil, err
	}

	flooding, stop := context.WithTimeout(ctx, o.alone)
	defer stop()
	var flooder sync.WaitGroup
	var sent, answered atomic.Int64
	var floodErr error
	flooder.Go(func() { floodErr = floodNames(flooding, door, &sent, &answered) })
	opened := 0
	tick := time.NewTicker(max(time.Millisecond, o.alone/victimNames))
	defer tick.Stop()
	for n := range victimNames {
		<-tick.C
		c := *victim
		c.target = w.origin.At(fmt.Sprintf("v%d%s", n, forgedSuffix))
		if err = errors.Join(c.roundTrip(ctx, 1<<10), echo(held)); err != nil {
			err = fmt.Errorf("the victim of forged datagrams, after %d of them: %w", sent.Load(), err)
			break
		}
		opened++
	}
	stop()
	flooder.Wait()
	if err := errors.Join(err, floodErr, held.Close()); err != nil {
		return nil, err
	}
	after, err := g.returns(ctx, before, victim)
	if err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(out, "%d forged datagrams, %d answered: their victim keeps its tunnel and opens %d to new names; %.1f MiB heap before, %.1f after\n",
		sent.Load(), answered.Load(), opened, float64(before.heap)/(1<<20), float64(after.heap)/(1<<20))
	if sent.Load() <= 2*answered.Load() {
		faults = append(faults, fmt.Sprintf("%d of %d forged datagrams are answered: there is no limit", answered.Load(), sent.Load()))
	}
	return append(faults, stays(before, after)...), nil
}

// serveNames starts a gateway that takes an address for an identity, and returns
// where it answers queries.
func (w *world) serveNames(ctx context.Context, server string) (g *gateway, door string, err error) {
	policy := fmt.Sprintf(`version: 1
identities:
  - id: spiffe://%[1]s/quiet
    accept: [x509-svid, source-map]
    allow:
      - {host: %[2]s, ports: [%[4]d], addresses: 127.0.0.1/32}
      - {host: "*%[3]s", ports: [%[4]d], addresses: 127.0.0.1/32}
`, trustDomain, goodHost, forgedSuffix, w.origin.Address.Port())
	if err := w.Write("forged-policy.yaml", policy); err != nil {
		return nil, "", err
	}
	child, err := w.Serve(ctx, "forged.yaml", fmt.Sprintf(`version: 1
identity: {dir: gateway}
policy: forged-policy.yaml
listeners:
  - {name: soak, address: "127.0.0.1:0", identity: mtls}
  - {name: names, address: "127.0.0.1:0", protocol: dns, identity: source-map, sources: {%s/32: spiffe://%s/quiet}}
admin: {address: "127.0.0.1:0"}
resolver:
  servers: [{udp: "%s"}]
  hosts:
    %s: 127.0.0.1
records: {file: records.jsonl}
%s`, forgedFrom, trustDomain, server, goodHost, hasty), 3, "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
	if err != nil {
		return nil, "", err
	}
	at := child.Addresses
	return &gateway{Process: child, address: at[0], metrics: "http://" + at[2] + "/metrics"}, at[1], nil
}

// echo sends a byte through a tunnel and waits for it to come back.
func echo(conn io.ReadWriter) error {
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// floodNames sends queries from the forged address until ctx ends: for names that
// the victim may have and nobody has asked for, and for one that it may not.
func floodNames(ctx context.Context, door string, sent, answered *atomic.Int64) error {
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(forgedFrom)}}
	conn, err := d.DialContext(ctx, "udp", door)
	if err != nil {
		return err
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for buf := make([]byte, 4096); ; {
			if _, err := conn.Read(buf); err != nil {
				return
			}
			answered.Add(1)
		}
	})
	defer reading.Wait()
	defer func() { _ = conn.Close() }()
	tick := time.NewTicker(forgedPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for range forgedBatch {
			name := fmt.Sprintf("f%d%s", sent.Load(), forgedSuffix)
			if sent.Load()%4 == 0 {
				name = "evil.test"
			}
			if _, err := conn.Write(question(name)); err != nil {
				return err
			}
			sent.Add(1)
		}
	}
}

// question is a query for the IPv4 address of a name (RFC 1035 section 4).
func question(name string) []byte {
	msg := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for len(name) > 0 {
		label := name
		for i := range name {
			if name[i] == '.' {
				label = name[:i]
				break
			}
		}
		msg = append(append(msg, byte(len(label))), label...)
		name = name[min(len(name), len(label)+1):]
	}
	return append(msg, 0, 0, 1, 0, 1)
}

// nameServer knows every name: it is at 127.0.0.1.
type nameServer struct {
	conn    *net.UDPConn
	serving sync.WaitGroup
}

func newNameServer() (*nameServer, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	s := &nameServer{conn: conn}
	s.serving.Go(s.serve)
	return s, nil
}

func (s *nameServer) close() {
	_ = s.conn.Close()
	s.serving.Wait()
}

func (s *nameServer) serve() {
	for buf := make([]byte, 4096); ; {
		n, peer, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if answer := addressOf(buf[:n]); answer != nil {
			_, _ = s.conn.WriteToUDPAddrPort(answer, peer)
		}
	}
}

// addressOf answers a query of one question; nil if that is not what it is.
func addressOf(query []byte) []byte {
	const header = 12
	end := header
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end])
	}
	end += 1 + 4
	if end > len(query) {
		return nil
	}
	answer := append([]byte{}, query[:end]...)
	answer[2], answer[3] = 0x81, 0x80 // a response, with recursion
	binary.BigEndian.PutUint64(answer[4:], 1<<48)
	if binary.BigEndian.Uint16(answer[end-4:]) != 1 { // of another type it has nothing
		return answer
	}
	binary.BigEndian.PutUint16(answer[6:], 1)
	return append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
}
