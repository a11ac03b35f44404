// Package audittest has the records that tests and documents show: one of every kind,
// with the values that the gateway puts into them. It is for tests; no production code
// imports it.
package audittest

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// Sample is a record and the name of its kind, which can be used as a file name.
type Sample struct {
	Name   string
	Record audit.Record
}

// Samples returns one record of every kind, the same at every call.
func Samples() []Sample {
	return []Sample{
		{"allow", allow()},
		{"deny", deny()},
		{"attributed", with(allow(), func(r *audit.Record) {
			r.Attributed = `process="curl", pid=4711, job="build", step="test"`
		})},
		{"quarantined", with(deny(), func(r *audit.Record) {
			r.Reason, r.RuleAt, r.Detail = allowlist.QuarantinedIdentity, "quarantine.yaml:3", "INC-77"
		})},
		{"denied-address", with(allow(), func(r *audit.Record) {
			r.Verdict, r.Reason, r.Status = allowlist.Deny, allowlist.ResolvedAddressDenied, 403
			r.Class, r.Dropped, r.Address, r.Dial = allowlist.Private, 2, netip.AddrPort{}, 0
			r.Refused = []netip.Addr{addr("10.1.7.7"), addr("fd00::7")}
		})},
		{"address", with(deny(), func(r *audit.Record) {
			r.Reason, r.Dest = allowlist.IPNotOnAllowlist, destination("[2001:db8::7]:443")
		})},
		{"observe", with(allow(), func(r *audit.Record) {
			r.Verdict, r.WouldReason, r.Mode = allowlist.Observe, allowlist.NotOnAllowlist, allowlist.ModeObserve
			r.Rule, r.RuleAt, r.Ticket = "", "", ""
		})},
		{"fail", with(allow(), func(r *audit.Record) {
			r.Verdict, r.Reason, r.Status = allowlist.Fail, allowlist.DialTimeout, 504
			r.Address, r.Dial = netip.AddrPort{}, 10*time.Second
			r.Detail = "203.0.113.9:443: no answer; [2001:db8::9]:443: no answer"
		})},
		{"audit-unavailable", with(deny(), func(r *audit.Record) {
			r.Verdict, r.Reason, r.Status, r.Supersedes = allowlist.Fail, allowlist.AuditUnavailable, 503, true
		})},
		{"busy", with(deny(), func(r *audit.Record) {
			r.Verdict, r.Reason, r.Status = allowlist.Fail, allowlist.Busy, 503
			r.Policy, r.Generation, r.Mode, r.Decide = "", 0, 0, 0
		})},
		{"cut-off", with(allow(), func(r *audit.Record) {
			r.Protocol, r.Method, r.Dest, r.Address = audit.ProtocolHTTP, "POST", destination("www.example:80"), addrPort("203.0.113.9:80")
			r.Verdict, r.Reason, r.Status, r.Detail = allowlist.Fail, allowlist.CutOff, 502, "revoked"
		})},
		{"malformed", audit.Record{
			Time: now(), Event: audit.EventDecision, ID: "01M7Y22XF553ABP5HGTEDQJP9M", Instance: instance,
			Listener: "main", Protocol: audit.ProtocolConnect, Wire: audit.WireH1, Client: addrPort("10.1.2.3:53816"),
			Reason: allowlist.MalformedRequestLine, Status: 400, Trace: span(2),
		}},
		{"plain", with(allow(), func(r *audit.Record) {
			r.Protocol, r.Method, r.Path = audit.ProtocolHTTP, "GET", "/public/index"
			r.Dest, r.Address = destination("www.example:80"), addrPort("203.0.113.9:80")
		})},
		{"socks5", with(allow(), func(r *audit.Record) {
			r.Listener, r.Protocol, r.Wire, r.Proof = "socks", audit.ProtocolSOCKS5, audit.WireTCP, allowlist.ProofListener
		})},
		{"wrong-method", with(deny(), func(r *audit.Record) {
			r.Method, r.Reason, r.Status = "connect", allowlist.ConnectOnly, 405
			r.Dest, r.Policy, r.Generation, r.Mode, r.Decide = allowlist.Destination{}, "", 0, 0, 0
		})},
		{"client-gone", with(deny(), func(r *audit.Record) {
			r.Verdict, r.Reason, r.Status = allowlist.Fail, allowlist.ClientGone, 0
			r.Method, r.Dest, r.Policy, r.Generation, r.Mode, r.Decide = "", allowlist.Destination{}, "", 0, 0, 0
		})},
		{"unix-socket", with(allow(), func(r *audit.Record) {
			r.Listener, r.Proof, r.Client = "workload", allowlist.ProofListener, netip.AddrPort{}
		})},
		{"unix-stranger", with(deny(), func(r *audit.Record) {
			r.Listener, r.Client, r.Identity, r.Proof = "workload", netip.AddrPort{}, spiffeid.ID{}, 0
			r.Reason, r.Status, r.Policy, r.Generation, r.Mode, r.Decide = allowlist.IdentityMissing, 407, "", 0, 0, 0
		})},
		{"link-local", with(allow(), func(r *audit.Record) {
			r.Client, r.Address = addrPort("[fe80::2%eth0]:53816"), addrPort("[fe80::7%eth0]:443")
		})},
		{"dns-allow", query(func(*audit.Record) {})},
		{"dns-deny", query(func(r *audit.Record) {
			r.Verdict, r.Reason, r.Dest.Host = allowlist.Deny, allowlist.NotOnAllowlist, destination("api.evil.example:53").Host
			r.Rule, r.RuleAt, r.Ticket, r.Resolve = "", "", "", 0
			r.DNS = audit.DNS{Type: allowlist.TypeTXT, Code: "NXDOMAIN", Origin: "local"}
		})},
		{"dns-collapsed", query(func(r *audit.Record) {
			r.Event, r.Verdict, r.Reason, r.Rule, r.RuleAt, r.Ticket = audit.EventCollapsed, allowlist.Deny, allowlist.NotOnAllowlist, "", "", ""
			r.Resolve, r.Decide, r.DNS = 0, 0, audit.DNS{Type: allowlist.TypeA, Code: "NXDOMAIN", Origin: "local"}
			r.Merged = &audit.Merged{Count: 3, First: now().Add(time.Millisecond), Last: now().Add(9 * time.Second)}
		})},
		{"dns-filtered", query(func(r *audit.Record) {
			r.Verdict, r.Reason, r.Class = allowlist.Deny, allowlist.ResolvedAddressDenied, allowlist.Private
			r.DNS = audit.DNS{Type: allowlist.TypeA, Code: "NOERROR", Filtered: 2, Origin: "local"}
			r.Refused = []netip.Addr{addr("10.1.7.7"), addr("10.1.7.8")}
		})},
		{"dns-dropped", query(func(r *audit.Record) {
			r.Verdict, r.Reason, r.Wire, r.Listener, r.Proof = allowlist.Deny, allowlist.RateLimited, audit.WireUDP, "resolver", allowlist.ProofSourceMap
			r.Rule, r.RuleAt, r.Owner, r.Ticket, r.Resolve, r.Policy, r.Generation, r.Mode, r.Decide = "", "", "", "", 0, "", 0, 0, 0
			r.DNS = audit.DNS{Type: allowlist.TypeA, Origin: "local"}
		})},
		{"dns-malformed", query(func(r *audit.Record) {
			r.Verdict, r.Reason, r.Dest = allowlist.Deny, allowlist.MalformedHeader, allowlist.Destination{}
			r.Rule, r.RuleAt, r.Owner, r.Ticket, r.Resolve, r.Policy, r.Generation, r.Mode, r.Decide = "", "", "", "", 0, "", 0, 0, 0
			r.DNS = audit.DNS{Code: "FORMERR", Origin: "local"}
		})},
		{"tunnel-progress", tunnelRecord(audit.EventTunnelProgress, 60*time.Second, func(*audit.Record) {})},
		{"tunnel-close", tunnelRecord(audit.EventTunnelClose, 61500*time.Millisecond, func(r *audit.Record) {
			r.CloseReason = tunnel.Client
		})},
		{"tunnel-revoked", tunnelRecord(audit.EventTunnelClose, 90*time.Second, func(r *audit.Record) {
			r.CloseReason, r.Reason = tunnel.Revoked, allowlist.NotOnAllowlist
		})},
		{"tls-refused", with(allow(), func(r *audit.Record) {
			r.Verdict, r.Reason, r.Status = allowlist.Deny, allowlist.SNIMismatch, 0
			r.Resolve, r.Dial, r.Decide = 0, 0, 0
			r.Stage, r.Hello = audit.StageTLS, audit.Hello{SNI: "Other.example", TLS: audit.TLSMismatch, ECH: true}
		})},
		{"tls-observed", with(allow(), func(r *audit.Record) {
			r.Verdict, r.WouldReason, r.Mode, r.Status = allowlist.Observe, allowlist.NotOnAllowlist, allowlist.ModeObserve, 0
			r.Rule, r.RuleAt, r.Ticket, r.Resolve, r.Dial, r.Decide = "", "", "", 0, 0, 0
			r.Stage, r.Hello = audit.StageTLS, audit.Hello{SNI: "Other.example", TLS: audit.TLSMismatch}
		})},
		{"tunnel-tls", tunnelRecord(audit.EventTunnelClose, 2*time.Second, func(r *audit.Record) {
			r.CloseReason, r.Hello = tunnel.Upstream, audit.Hello{SNI: "api.example", TLS: audit.TLSMatch}
		})},
		{"collapsed", with(deny(), func(r *audit.Record) {
			r.Event = audit.EventCollapsed
			r.Merged = &audit.Merged{Count: 41, First: now().Add(time.Millisecond), Last: now().Add(9 * time.Second)}
		})},
		{"summary", summary()},
		{"summary-other", with(summary(), func(r *audit.Record) {
			r.Identity, r.Merged.Other = spiffeid.ID{}, true
		})},
		{"summary-unproven", with(summary(), func(r *audit.Record) {
			r.Proof, r.Wire = allowlist.ProofSourceMap, audit.WireUDP
		})},
		{"summary-cut", with(summary(), func(r *audit.Record) {
			r.Identity, r.Listener, r.Detail = spiffeid.ID{}, "main", "connections closed for want of room: source 40, all 2"
			r.Merged.Count, r.Merged.Counts = 42, []audit.Count{{Verdict: allowlist.Fail, Reason: allowlist.Busy, Count: 42}}
		})},
		{"handshake", audit.Record{
			Time: now(), Event: audit.EventHandshake, ID: "01M7Y22XF553ABP5HGTEDQJP9H", Instance: instance, Listener: "main",
			Client: addrPort("10.1.2.3:53816"), Reason: allowlist.TLSHandshakeFailed,
			Detail: "remote error: tls: unknown certificate authority",
		}},
		{"policy-reload", audit.Record{
			Time: now(), Event: audit.EventPolicyReload, ID: "01M7Y22XF553ABP5HGTEDQJP9R", Instance: instance,
			Policy: "1a2b3c4d5e6f", Generation: 8, Duration: 1250 * time.Microsecond, Detail: "closed 2 of 40 tunnels",
		}},
		{"policy-refused", audit.Record{
			Time: now(), Event: audit.EventPolicyReload, ID: "01M7Y22XF553ABP5HGTEDQJP9S", Instance: instance,
			Detail: "refused: policy.yaml:4:7: unknown key \"alow\"",
		}},
		{"quarantine", audit.Record{
			Time: now(), Event: audit.EventQuarantine, ID: "01M7Y22XF553ABP5HGTEDQJP9V", Instance: instance,
			Policy: "1a2b3c4d5e6f", Quarantine: "6f5e4d3c2b1a", Generation: 9, Detail: "2 in force; added: spiffe://prod.example/ns/payments/sa/legacy",
		}},
		{"identity-rotate", audit.Record{
			Time: now(), Event: audit.EventIdentityRotate, ID: "01M7Y22XF553ABP5HGTEDQJP9T", Instance: instance,
			Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/egress/sa/exeat"),
			Detail:   "valid until 2026-11-21T04:23:31Z",
		}},
	}
}

// instance is the process that wrote all samples.
const instance = "6f1d2c3b-0a49-4e58-9c77-2b8e5d10f3a6"

func now() time.Time { return time.Date(2026, 11, 21, 3, 23, 31, 870_412_993, time.UTC) }

func allow() audit.Record {
	return audit.Record{
		Time: now(), Event: audit.EventDecision, ID: "01M7Y22XF553ABP5HGTEDQJP9D", Instance: instance,
		Listener: "main", Protocol: audit.ProtocolConnect, Wire: audit.WireH1,
		Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Proof:    allowlist.ProofX509SVID, Client: addrPort("10.1.2.3:53816"),
		Dest: destination("api.example:443"), Method: "CONNECT", Address: addrPort("203.0.113.9:443"),
		Verdict: allowlist.Allow, Status: 200, Rule: "api", RuleAt: "policy.yaml:7", Owner: "team-ci", Ticket: "SEC-1234",
		Policy: "1a2b3c4d5e6f", Generation: 7, Mode: allowlist.ModeEnforce,
		Resolve: 1500 * time.Microsecond, Dial: 12250 * time.Microsecond, Decide: 4100 * time.Nanosecond,
		Trace: span(1), CallerTrace: trace.TraceID{0x0c, 1},
	}
}

func deny() audit.Record {
	return with(allow(), func(r *audit.Record) {
		r.Verdict, r.Reason, r.Status = allowlist.Deny, allowlist.NotOnAllowlist, 403
		r.Dest, r.Address = destination("api.evil.example:443"), netip.AddrPort{}
		r.Rule, r.RuleAt, r.Ticket, r.Resolve, r.Dial, r.CallerTrace = "", "", "", 0, 0, trace.TraceID{}
	})
}

// query returns the record of a query over DoT.
func query(change func(*audit.Record)) audit.Record {
	return with(allow(), func(r *audit.Record) {
		r.Listener, r.Protocol, r.Wire = "dot", audit.ProtocolDNS, audit.WireDoT
		r.Dest, r.Method, r.Address, r.Status = allowlist.Destination{Host: r.Dest.Host}, "", netip.AddrPort{}, 0
		r.Dial, r.CallerTrace = 0, trace.TraceID{}
		r.DNS = audit.DNS{Type: allowlist.TypeA, Code: "NOERROR", Answers: 2, Origin: "upstream"}
		r.DNS.Answered = []netip.Addr{addr("203.0.113.9"), addr("203.0.113.10")}
		change(r)
	})
}

// tunnelRecord returns a record as audit.Tunnel makes it after an allowed decision.
func tunnelRecord(event audit.Event, after time.Duration, change func(*audit.Record)) audit.Record {
	return with(allow(), func(r *audit.Record) {
		r.Event, r.Time, r.Duration = event, now().Add(after), after
		r.Up, r.Down = 1200, 3_400_000
		r.Resolve, r.Dial, r.Decide, r.Status = 0, 0, 0, 0
		change(r)
	})
}

func summary() audit.Record {
	return audit.Record{
		Time: now().Add(time.Second), Event: audit.EventSummary, ID: "01M7Y22XF553ABP5HGTEDQJP9U", Instance: instance,
		Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/ci/sa/builder"),
		Merged: &audit.Merged{
			Count: 5031, First: now(), Last: now().Add(999 * time.Millisecond),
			Counts: []audit.Count{
				{Verdict: allowlist.Deny, Reason: allowlist.NotOnAllowlist, Count: 5000},
				{Verdict: allowlist.Deny, Reason: allowlist.PortNotAllowed, Count: 31},
			},
		},
	}
}

func with(r audit.Record, change func(*audit.Record)) audit.Record {
	change(&r)
	return r
}

func span(n byte) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{0x4b, n}, SpanID: trace.SpanID{0x5c, n}})
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// destination parses a destination of this file, and panics if it is not valid.
func destination(s string) allowlist.Destination {
	d, err := allowlist.ParseDestination(s)
	if err != nil {
		panic(err)
	}
	return d
}
