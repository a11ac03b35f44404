package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/exeat-dev/exeat/e2e/site"
)

// The flood of forged datagrams: five times as many queries as an identity may send.
const (
	forgedFrom   = "127.0.0.66" // stands for the victim in the gateway's source map
	forgedBatch  = 50
	forgedPause  = 10 * time.Millisecond
	forgedSuffix = ".forged.soak.example" // the victim may have any name below it
)

// victimNames is the number of new names that the victim asks for during the flood, of
// the hundred that it may have in a minute.
const victimNames = 50

// forged sends datagrams from an address that stands for an identity, as if they were
// forged. Meanwhile the identity, with its certificate, keeps a tunnel and opens others
// to new names. In the end nothing of the flood may be left in the gateway.
func forged(ctx context.Context, w *world, o options, out io.Writer) (faults []string, err error) {
	names, err := w.Names(onLoopback)
	if err != nil {
		return nil, err
	}
	g, door, err := w.serveNames(ctx, names.Address.String())
	if err != nil {
		return nil, err
	}
	defer g.Stop()
	victim := w.caller(g, "quiet", "127.0.0.1")
	before, err := g.leastUsage(ctx, victim)
	if err != nil {
		return nil, err
	}
	kept, err := victim.tunnel(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = kept.Close() }()
	if err := kept.SetDeadline(time.Now().Add(o.alone + patience)); err != nil {
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
		if err = errors.Join(c.roundTrip(ctx, 1<<10), echo(kept)); err != nil {
			err = fmt.Errorf("the victim of forged datagrams, after %d of them: %w", sent.Load(), err)
			break
		}
		opened++
	}
	stop()
	flooder.Wait()
	if err := errors.Join(err, floodErr, kept.Close()); err != nil {
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

// serveNames starts a gateway that maps an address to an identity, and returns the
// address of its listener for DNS.
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

// echo sends a byte through a tunnel, and waits until it comes back.
func echo(conn io.ReadWriter) error {
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// floodNames sends queries from the forged address until ctx ends: for new names that the
// victim may have, and for a name that it may not.
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
			query, err := question(name)
			if err != nil {
				return err
			}
			if _, err := conn.Write(query); err != nil {
				return err
			}
			sent.Add(1)
		}
	}
}

// onLoopback resolves every name to the address of the origin.
func onLoopback(name dnsmessage.Name) []dnsmessage.Resource {
	return []dnsmessage.Resource{site.IPv4(name, [4]byte{127, 0, 0, 1})}
}

// question returns a query for the IPv4 address of a name.
func question(name string) ([]byte, error) {
	of, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 1, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: of, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}
