package audittest

import (
	"net/netip"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Hostile returns a record with the text in every field that takes one, and with
// numbers derived from n, for fuzz tests. Any text and any number may be passed,
// including those that no gateway puts into a record.
func Hostile(event audit.Event, text string, n uint64) audit.Record {
	octet, number := byte(n), int64(n)                             //nolint:gosec // G115: any number will do
	elapsed, moment := time.Duration(number), time.Unix(0, number) // any of them
	host, err := allowlist.ParseHost(text)
	if err != nil {
		host = allowlist.HostOf(netip.AddrFrom4([4]byte{octet, 1, 1, 1}))
	}
	r := audit.Record{
		Time: moment, Event: event, ID: text, Instance: text, Listener: text, Protocol: audit.Protocol(text), Wire: audit.Wire(text),
		Proof: allowlist.Proof(octet), Client: netip.AddrPortFrom(netip.IPv6Loopback().WithZone(text), uint16(octet)), Attributed: text,
		Dest: allowlist.Destination{Host: host, Port: uint16(octet)}, Method: text,
		Address: netip.AddrPortFrom(host.Addr(), 1), Verdict: allowlist.Verdict(octet % 8), Reason: allowlist.Reason(octet),
		WouldReason: allowlist.Reason(octet), Status: int(octet) - 1, Rule: text, RuleAt: text, Owner: text, Ticket: text, Policy: text, Generation: n,
		Stage: audit.Stage(octet), Hello: audit.Hello{SNI: text, TLS: audit.TLS(octet), ECH: octet%2 == 0},
		Mode: allowlist.Mode(octet), Class: allowlist.Class(octet), Dropped: int(octet) - 1, Refused: addresses(octet),
		Resolve: elapsed, Dial: -elapsed, Decide: elapsed, Up: number, Down: -number, Duration: elapsed,
		CloseReason: tunnel.Reason(octet), Detail: text, CallerTrace: trace.TraceID{octet},
		Trace: trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{octet}}),
	}
	if n%2 == 0 {
		r.Merged = &audit.Merged{Count: n, First: moment, Other: n%4 == 0, Counts: []audit.Count{{Verdict: r.Verdict, Reason: r.Reason, Count: n}}}
	}
	return r
}

// addresses returns up to as many addresses as a record may name.
func addresses(n byte) []netip.Addr {
	var all []netip.Addr
	for i := range n % (audit.MaxAddresses + 1) {
		addr := netip.AddrFrom4([4]byte{203, 0, 113, i})
		if i%2 == 1 {
			addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: i})
		}
		all = append(all, addr)
	}
	return all
}
