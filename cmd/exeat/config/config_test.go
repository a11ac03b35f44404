package config

import (
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/identity"
	"github.com/exeat-dev/exeat/proxy/audit/file"
	"github.com/exeat-dev/exeat/proxy/dns"
	"github.com/exeat-dev/exeat/proxy/gateway"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/listen"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

const minimal = `version: 1
identity: {dir: id}
policy: p.yaml
listeners: [{name: main, address: "127.0.0.1:0"}]
`

// TestDefaultsOfAMinimalFile checks the defaults of all keys that a minimal file does
// not set.
func TestDefaultsOfAMinimalFile(t *testing.T) {
	got, err := Parse("/etc/exeat/exeat.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	if want.Gateway.DNSConnections != 4096 || want.Gateway.SpanEvery != 1 {
		t.Errorf("without a key: %d DNS connections, a span of %d", want.Gateway.DNSConnections, want.Gateway.SpanEvery)
	}
	want.Identity = &identity.FileConfig{Dir: "/etc/exeat/id"}
	want.Policy = []string{"/etc/exeat/p.yaml"}
	want.Places = Places{
		"/etc/exeat/id":     {{strictyaml.Pos{File: "/etc/exeat/exeat.yaml", Line: 2, Column: 17}, "dir"}},
		"/etc/exeat/p.yaml": {{strictyaml.Pos{File: "/etc/exeat/exeat.yaml", Line: 3, Column: 9}, "policy"}},
		"127.0.0.1:0":       {{strictyaml.Pos{File: "/etc/exeat/exeat.yaml", Line: 4, Column: 35}, "address"}},
	}
	want.Listeners = []Listener{{Listener: gateway.Listener{Name: "main", Address: "127.0.0.1:0"}}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// everyValue is a configuration with every key of the sections that TestEveryKeyIsTried names.
const everyValue = `version: 1
identity:
  certificate: a.pem
  key: /k.pem
  bundle: b.pem
  bundles: {other.example: o.pem}
policy: [a, b]
listeners:
  - {name: web, address: "[::1]:1", present: {certificate: w.pem, key: wk.pem}}
  - {name: s, address: "unix:run/s", identity: self, socket_mode: "0660"}
  - {name: f, address: "127.0.0.1:3", identity: fixed, id: spiffe://td.example/w, proxy_protocol: [127.0.0.0/8, "::1/128"]}
  - {name: d, address: "10.0.0.9:53", protocol: dns, identity: source-map, sources: {10.1.0.0/16: spiffe://td.example/w, "2001:db8::7/128": spiffe://td.example/v}}
  - {name: dot, address: "0.0.0.0:853", protocol: dot}
  - {name: doh, address: "[::]:443", protocol: doh, present: {certificate: w.pem, key: wk.pem}}
  - {name: both, address: "[::]:444", protocol: [doh, connect], trace_parent: accept, present: {certificate: w.pem, key: wk.pem}}
  - {name: one, address: "[::]:445", protocol: [doh]}
  - {name: alone, address: "[::]:446", protocol: [connect]}
  - {name: socks, address: "127.0.0.1:1080", protocol: socks5, identity: self}
  - {name: socks-fixed, address: "unix:run/socks", protocol: socks5, identity: fixed, id: spiffe://td.example/w, socket_mode: "0660", trace_parent: link}
resolver:
  nat64: "2001:db8::/48"
  servers: [10.0.0.1, "[::1]:54", {udp: 10.0.0.2}, {tcp: 10.0.0.3}, {dot: "2001:db8::53", name: dns.example, ca: d.pem}]
  groups: [{suffixes: [corp.example, corp], servers: 10.0.0.4}]
  hosts: {db.example: ["::ffff:10.0.0.2", "2001:db8::1"]}
  cache_bytes: 1MiB
  serve_stale: 0s
  names_per_minute: 7
  cname: inspect
records: {file: r.jsonl}
refusals: {disclosure: id}
timeouts: {handshake: 1s, head: 2s, client_hello: 11s, dial: 3s, tunnel_idle: 4s, tunnel_max: 5s, drain_delay: 0s, drain_timeout: 7s, keep_alive: 8s, body: 9s, response: 10s}
http: {via: false, forwarded: pass}
limits:
  {connections: 8, streams_per_connection: 7, head_bytes: 2048, connections_per_source: 1, handshakes_per_source: 2, requests_per_identity: 3,
   tunnels: 4, connects_per_second: 5, upload_per_hour: 6KiB}
metrics: {identities: 100}
dns: {queries_per_second: 1, lookups: 2, lookups_per_identity: 3, connections: 4, connections_per_identity: 5, queries_per_connection: 6, span_every: 7}
`

// TestEveryKeySetsItsValue checks that every key of the configuration sets the value
// that it is for.
func TestEveryKeySetsItsValue(t *testing.T) {
	got, err := Parse("/x/exeat.yaml", []byte(everyValue))
	if err != nil {
		t.Fatal(err)
	}
	if id := got.Identity; id.Certificate != "/x/a.pem" || id.Key != "/k.pem" || id.Bundle != "/x/b.pem" || id.Bundles["other.example"] != "/x/o.pem" {
		t.Errorf("identity %+v", got.Identity)
	}
	if l := got.Listeners; l[0].WebCertificate != "/x/w.pem" || l[0].WebKey != "/x/wk.pem" ||
		l[1].Address != "unix:/x/run/s" || l[1].SocketMode != 0o660 || l[1].Identity != gateway.Self ||
		l[2].Identity != gateway.Fixed || l[2].ID.String() != "spiffe://td.example/w" {
		t.Errorf("listeners %+v", got.Listeners)
	}
	if l := got.Listeners[3:]; l[0].Protocol != gateway.DNS || l[0].Identity != gateway.SourceMap || len(l[0].Sources) != 2 ||
		l[0].Sources[netip.MustParsePrefix("10.1.0.0/16")].String() != "spiffe://td.example/w" ||
		l[1].Protocol != gateway.DoT || l[2].Protocol != gateway.DoH || l[2].WebKey != "/x/wk.pem" {
		t.Errorf("DNS listeners %+v", l)
	}
	if l := got.Listeners[6:]; l[0].Protocol != gateway.ConnectAndDoH || !l[0].AcceptTrace || l[0].WebKey != "/x/wk.pem" ||
		l[1].Protocol != gateway.DoH || l[2].Protocol != gateway.Connect {
		t.Errorf("listeners with a list of protocols %+v", l)
	}
	if l := got.Listeners[9:]; l[0].Protocol != gateway.SOCKS5 || l[0].Identity != gateway.Self ||
		l[1].Protocol != gateway.SOCKS5 || l[1].Identity != gateway.Fixed || l[1].SocketMode != 0o660 || l[1].AcceptTrace {
		t.Errorf("listeners for SOCKS5 %+v", l)
	}
	limits := dns.Limits{Total: 2, InFlight: 3, Streams: 5, PerStream: 6}
	if got.Gateway.DNS != limits || got.Gateway.DNSConnections != 4 || got.Gateway.SpanEvery != 7 {
		t.Errorf("DNS limits %+v, %d connections, a span of %d", got.Gateway.DNS, got.Gateway.DNSConnections, got.Gateway.SpanEvery)
	}
	checkResolver(t, got.Resolver)
	if l := got.Listeners[2].Proxies; len(l) != 2 || l[1].String() != "::1/128" {
		t.Errorf("proxies %v", l)
	}
	if n := got.Gateway.NAT64; len(n) != 1 || n[0].String() != "2001:db8::/48" {
		t.Errorf("nat64 %v", n)
	}
	wantLimits := limit.Config{
		Connections: 1, Handshakes: 2, Requests: 3,
		Identity: allowlist.Limits{Tunnels: 4, ConnectsPerSecond: 5, DNSPerSecond: 1, UploadPerHour: 6 << 10},
	}
	if diff := cmp.Diff(wantLimits, got.Gateway.Limits); diff != "" {
		t.Errorf("limits: %s", diff)
	}
	if got.Records[0].File != "/x/r.jsonl" || got.Gateway.Front.Disclosure != refusal.ID || got.Gateway.MaxConnections != 8 || got.Gateway.Front.HeadLimit != 2048 || got.Gateway.Front.Streams != 7 || got.MetricIdentities != 100 || !got.Gateway.Forward.NoVia || !got.Gateway.Forward.PassForwarded {
		t.Errorf("records, refusals or limits: %+v", got)
	}
	times := []time.Duration{got.Gateway.HandshakeTimeout, got.Gateway.Front.HeadTimeout, got.Gateway.DialTimeout, got.Gateway.Tunnel.Idle, got.Gateway.Tunnel.Max, got.Gateway.DrainDelay, got.Gateway.DrainTimeout, got.Gateway.Front.KeepAlive, got.Gateway.Forward.Body, got.Gateway.Forward.Response, got.Gateway.HelloTimeout}
	want := []time.Duration{1e9, 2e9, 3e9, 4e9, 5e9, 0, 7e9, 8e9, 9e9, 10e9, 11e9}
	if diff := cmp.Diff(want, times); diff != "" {
		t.Error(diff)
	}
}

// TestEveryKeyIsTried checks that TestEveryKeySetsItsValue reads a value of every key of the
// sections that hold numbers, times and words.
func TestEveryKeyIsTried(t *testing.T) {
	for _, section := range []string{"resolver", "timeouts", "http", "limits", "metrics", "dns", "refusals"} {
		_, err := Parse("e.yaml", []byte(minimal+section+": {no_such_key: 1}\n"))
		if err == nil {
			t.Fatalf("%s has an unknown key, and no error", section)
		}
		_, known, found := strings.Cut(err.Error(), "known: ")
		if !found {
			t.Fatalf("%s: the error names no keys: %v", section, err)
		}
		for name := range strings.SplitSeq(known, ", ") {
			if !regexp.MustCompile(`(?m)[{ ]` + name + `: `).MatchString(everyValue) {
				t.Errorf("%s.%s has no value in everyValue: add one, and check in TestEveryKeySetsItsValue where it arrives", section, name)
			}
		}
	}
}

func checkResolver(t *testing.T, got resolve.Config) {
	t.Helper()
	host := func(name string) allowlist.Host {
		h, err := allowlist.ParseHost(name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	at := netip.MustParseAddrPort
	want := resolve.Config{
		Servers: []resolve.Server{
			{Addr: at("10.0.0.1:53")},
			{Addr: at("[::1]:54")},
			{Addr: at("10.0.0.2:53")},
			{Protocol: resolve.TCP, Addr: at("10.0.0.3:53")},
			{Protocol: resolve.DoT, Addr: at("[2001:db8::53]:853"), Name: "dns.example", CA: "/x/d.pem"},
		},
		Groups: []resolve.Group{{
			Suffixes: []allowlist.Host{host("corp.example"), host("corp")},
			Servers:  []resolve.Server{{Addr: at("10.0.0.4:53")}},
		}},
		Hosts:      map[allowlist.Host][]netip.Addr{host("db.example"): {netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::1")}},
		CacheBytes: 1 << 20, ServeStale: -1, Names: 7, Inspect: true,
	}
	same := cmp.Options{
		cmp.Comparer(func(a, b allowlist.Host) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Error(diff)
	}
}

// TestSinks checks the sinks that the forms of records configure.
func TestSinks(t *testing.T) {
	got, err := Parse("/x/exeat.yaml", []byte(minimal+`records:
  collapse: 10s
  sinks:
    - {name: all, file: stdout}
    - {name: siem, file: siem.json, format: ocsf, only: denials, rotate: {size: 100MiB, every: 24h, keep: 7}}
    - {name: collector, otlp: true, only: all}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []RecordSink{
		{Name: "all"},
		{Name: "siem", File: "/x/siem.json", Format: OCSF, Only: Denials, Rotate: file.Rotation{Size: 100 << 20, Every: 24 * time.Hour, Keep: 7}},
		{Name: "collector", OTLP: true},
	}
	if diff := cmp.Diff(want, got.Records); diff != "" || got.RecordsRequired || got.Collapse != 10*time.Second {
		t.Errorf("required %v, collapse %v, %s", got.RecordsRequired, got.Collapse, diff)
	}
	got, err = Parse("/x/exeat.yaml", []byte(minimal+"records: {required: true, sinks: [{name: a, file: a, only: denials}, {name: b, file: b}]}\n"))
	if err != nil || !got.RecordsRequired {
		t.Errorf("required %v, %v", got.RecordsRequired, err)
	}
}

// TestMistakesAreRefused checks the error for each mistake in a configuration.
func TestMistakesAreRefused(t *testing.T) {
	listener := func(text string) string {
		return "version: 1\nidentity: {dir: id}\npolicy: p\nlisteners:\n  - " + text + "\n"
	}
	tests := []struct{ name, file, want string }{
		{"empty file", "", "the file is empty"},
		{"unknown key", minimal + "extra: 1\n", `e.yaml:5:1: unknown key "extra"`},
		{"nothing required is there", "version: 1\n", "policy is missing"},
		{"another version", strings.Replace(minimal, "1", "2", 1), "e.yaml:1:10: "},
		{"no identity for mtls", strings.Replace(minimal, "identity: {dir: id}\n", "", 1), "identity is missing: listener main"},
		{"half an identity", strings.Replace(minimal, "dir: id", "key: k", 1), "or all three"},
		{"no listener", strings.Replace(minimal, `[{name: main, address: "127.0.0.1:0"}]`, "[]", 1), "write a listener"},
		{"two names", listener("{name: a, address: 127.0.0.1:1}\n  - {name: a, address: 127.0.0.1:2}"), `two listeners with the name "a"`},
		{"no name", listener("{address: 127.0.0.1:1}"), "has no name"},
		{"the name of another listener", listener("{name: admin, address: 127.0.0.1:1}"), `"admin" is the name of the admin listener`},
		{"no address", listener("{name: a}"), "has no address"},
		{"a host name as address", listener("{name: a, address: localhost:1}"), `"localhost:1" is no address`},
		{"an open clear listener", listener("{name: a, address: 0.0.0.0:1, identity: self}"), "gives its identity to whoever reaches 0.0.0.0:1"},
		{"fixed without id", listener("{name: a, address: 127.0.0.1:1, identity: fixed}"), "id goes with identity: fixed"},
		{"id without fixed", listener("{name: a, address: 127.0.0.1:1, id: spiffe://td.example/w}"), "id goes with identity: fixed"},
		{"a trust domain as id", listener("{name: a, address: 127.0.0.1:1, identity: fixed, id: spiffe://td.example}"), "no SPIFFE ID of a workload"},
		{"a certificate without TLS", listener("{name: a, address: 127.0.0.1:1, identity: self, present: {certificate: c, key: k}}"), "speaks no TLS"},
		{"half a certificate", listener("{name: a, address: 127.0.0.1:1, present: {key: k}}"), "both certificate and key"},
		{"a mode for TCP", listener(`{name: a, address: 127.0.0.1:1, socket_mode: "0660"}`), "unix sockets only"},
		{"a mode that is none", listener(`{name: a, address: "unix:/s", socket_mode: "9"}`), "no permission"},
		{"DNS by certificate", listener("{name: a, address: 127.0.0.1:1, protocol: dns}"), "shows no certificate"},
		{"DNS on every address", listener("{name: a, address: '[::]:1', protocol: dns, identity: source-map, sources: {10.0.0.0/8: spiffe://td.example/w}}"), "write the one that clients ask"},
		{"open DNS", listener("{name: a, address: 10.0.0.1:1, protocol: dns, identity: self}"), "gives its identity to whoever reaches 10.0.0.1:1"},
		{"DNS on a socket", listener(`{name: a, address: "unix:/s", protocol: dns, identity: self}`), "over an IP address"},
		{"DoT with another identity", listener("{name: a, address: 127.0.0.1:1, protocol: dot, identity: self}"), "remove the key identity"},
		{"traces over DoH", listener("{name: a, address: 127.0.0.1:1, protocol: doh, trace_parent: accept}"), "queries carry none"},
		{"SOCKS5 by certificate", listener("{name: a, address: 127.0.0.1:1, protocol: socks5}"), "SOCKS5 shows no certificate: write identity: self or fixed, or protocol: connect"},
		{"SOCKS5 for everybody", listener("{name: a, address: 0.0.0.0:1, protocol: socks5, identity: self}"), "gives its identity to whoever reaches 0.0.0.0:1"},
		{"SOCKS5 by address", listener("{name: a, address: 127.0.0.1:1, protocol: socks5, identity: source-map, sources: {10.0.0.0/8: spiffe://td.example/w}}"), "protocol: dns only"},
		{"SOCKS5 with a certificate", listener("{name: a, address: 127.0.0.1:1, protocol: socks5, identity: self, present: {certificate: c, key: k}}"), "speaks no TLS"},
		{"traces over SOCKS5", listener("{name: a, address: 127.0.0.1:1, protocol: socks5, identity: self, trace_parent: accept}"), "SOCKS5 carries none"},
		{"SOCKS5 beside CONNECT", listener("{name: a, address: 127.0.0.1:1, protocol: [connect, socks5], identity: self}"), "item of protocol: socks5 shares no listener: write protocol: socks5"},
		{"SOCKS4", listener("{name: a, address: 127.0.0.1:1, protocol: socks4, identity: self}"), `want connect or dns or dot or doh or socks5, not "socks4"`},
		{"a source map for CONNECT", listener("{name: a, address: 127.0.0.1:1, identity: source-map, sources: {10.0.0.0/8: spiffe://td.example/w}}"), "protocol: dns only"},
		{"a source map without sources", listener("{name: a, address: 127.0.0.1:1, protocol: dns, identity: source-map}"), "which needs it"},
		{"sources without a source map", listener("{name: a, address: 127.0.0.1:1, sources: {10.0.0.0/8: spiffe://td.example/w}}"), "sources goes with"},
		{"no sources", listener("{name: a, address: 127.0.0.1:1, protocol: dns, identity: source-map, sources: {}}"), "has no keys"},
		{"a source with host bits", listener("{name: a, address: 127.0.0.1:1, protocol: dns, identity: source-map, sources: {10.0.0.1/8: spiffe://td.example/w}}"), "no range of addresses"},
		{"a source without an id", listener("{name: a, address: 127.0.0.1:1, protocol: dns, identity: source-map, sources: {10.0.0.0/8: w}}"), "no SPIFFE ID"},
		{"an unknown protocol", listener("{name: a, address: 127.0.0.1:1, protocol: doq}"), "doq"},
		{"an unknown protocol in a list", listener("{name: a, address: 127.0.0.1:1, protocol: [connect, doq]}"), `e.yaml:5:57: item of protocol: want connect or dns or dot or doh, not "doq"`},
		{"no protocol", listener("{name: a, address: 127.0.0.1:1, protocol: []}"), "e.yaml:5:47: protocol: write one of connect, dns, dot and doh, or [connect, doh]"},
		{"a protocol twice", listener("{name: a, address: 127.0.0.1:1, protocol: [doh, doh]}"), "or [connect, doh]"},
		{"three protocols", listener("{name: a, address: 127.0.0.1:1, protocol: [connect, doh, connect]}"), "or [connect, doh]"},
		{"protocols that do not share a listener", listener("{name: a, address: 127.0.0.1:1, protocol: [connect, dot]}"), "or [connect, doh]"},
		{"CONNECT and DoH without TLS", listener("{name: a, address: 127.0.0.1:1, protocol: [connect, doh], identity: self}"), "remove the key identity, or doh from protocol"},
		{"CONNECT and DoH on a socket", listener(`{name: a, address: "unix:/s", protocol: [connect, doh]}`), "over an IP address"},
		{"no queries", minimal + "dns: {queries_per_second: 0}\n", "want a number from 1"},
		{"an unknown bound", minimal + "dns: {queries: 1}\n", `unknown key "queries"`},
		{"a name server by name", minimal + "resolver: {servers: dns.example}\n", "no name server"},
		{"no name server in the list", minimal + "resolver: {servers: []}\n", "the list is empty"},
		{"a name server on port 0", minimal + "resolver: {servers: '10.0.0.1:0'}\n", "no name server"},
		{"two protocols", minimal + "resolver: {servers: [{udp: 10.0.0.1, tcp: 10.0.0.1}]}\n", "one of udp, tcp and dot"},
		{"a name without a server", minimal + "resolver: {servers: [{name: dns.example}]}\n", "one of udp, tcp and dot"},
		{"a protocol that nobody speaks", minimal + "resolver: {servers: [{doq: 10.0.0.1}]}\n", `unknown key "doq"`},
		{"DoT without a name", minimal + "resolver: {servers: [{dot: 10.0.0.1}]}\n", "name is missing"},
		{"a name for UDP", minimal + "resolver: {servers: [{udp: 10.0.0.1, name: dns.example}]}\n", "for dot only"},
		{"a server's name in capitals", minimal + "resolver: {servers: [{dot: 10.0.0.1, name: DNS.example}]}\n", "canonical form"},
		{"a group without servers", minimal + "resolver: {groups: [{suffixes: [a.example]}]}\n", "write both"},
		{"a suffix with a dot in front", minimal + "resolver: {groups: [{suffixes: [.a.example], servers: 10.0.0.1}]}\n", "canonical form"},
		{"a suffix twice", minimal + "resolver: {groups: [{suffixes: [a.example], servers: 10.0.0.1}, {suffixes: [a.example], servers: 10.0.0.2}]}\n", "two groups have the suffix a.example"},
		{"a tiny cache", minimal + "resolver: {cache_bytes: 1kB}\n", "1MiB to 64GiB"},
		{"no names at all", minimal + "resolver: {names_per_minute: 0}\n", "want a number from 1"},
		{"a name server that is the gateway", listener("{name: a, address: 127.0.0.1:53, protocol: dns, identity: self}") + "resolver: {servers: 127.0.0.1}\n", "e.yaml:6:21: servers: 127.0.0.1:53 is this gateway's own listener a"},
		{"a group that asks the gateway", listener("{name: a, address: 127.0.0.1:53, protocol: dns, identity: self}") + "resolver: {groups: [{suffixes: a.example, servers: [{tcp: 127.0.0.1}]}]}\n", "own listener a"},
		{"a name server that is the gateway at every address", listener("{name: a, address: 0.0.0.0:853, protocol: dot}") + "resolver: {servers: [{dot: 127.0.0.1, name: dns.example}]}\n", "own listener a"},
		{"a name server that is the admin listener", minimal + "admin: {address: 127.0.0.1:9464}\nresolver: {servers: [{tcp: '127.0.0.1:9464'}]}\n", "own listener admin"},
		{"an unknown cname mode", minimal + "resolver: {cname: follow}\n", "trust"},
		{"hosts with a capital", minimal + "resolver: {hosts: {A.example: 10.0.0.1}}\n", "canonical form"},
		{"hosts with localhost", minimal + "resolver: {hosts: {localhost: 10.0.0.1}}\n", "localhost is always 127.0.0.1 and ::1"},
		{"hosts with a name below localhost", minimal + "resolver: {hosts: {a.localhost: 127.0.0.1}}\n", "a.localhost is always 127.0.0.1 and ::1"},
		{"servers for localhost", minimal + "resolver: {groups: [{suffixes: a.localhost, servers: 10.0.0.1}]}\n", "no server is asked for a.localhost"},
		{"hosts without an address", minimal + "resolver: {hosts: {a.example: b}}\n", `"b" is no IP address`},
		{"two listeners at one address", listener("{name: a, address: 127.0.0.1:1}\n  - {name: b, address: 127.0.0.1:1}"), "e.yaml:6:24: address: 127.0.0.1:1 is taken by listener a at 127.0.0.1:1"},
		{"a listener at an address of another one", listener("{name: a, address: 127.0.0.1:1}\n  - {name: b, address: '[::]:1'}"), "[::]:1 is taken by listener a"},
		{"the admin listener where another one is", listener("{name: a, address: '0.0.0.0:1'}") + "admin: {address: 127.0.0.1:1}\n", "127.0.0.1:1 is taken by listener a at 0.0.0.0:1"},
		{"two listeners at one socket", listener(`{name: a, address: "unix:/r/../s"}` + "\n" + `  - {name: b, address: "unix:/s"}`), "unix:/s is taken by listener a"},
		{"a socket with a long path", listener(`{name: a, address: "unix:/` + strings.Repeat("s", 107) + `"}`), "has 108 bytes, and that of a unix socket at most 107"},
		{"a time of zero", minimal + "timeouts: {head: 0s}\n", "above zero"},
		{"a time without unit", minimal + "timeouts: {head: 10}\n", "duration with its unit"},
		{"a limit of nothing", minimal + "limits: {tunnels: 0}\n", "e.yaml:5:"},
		{"an unknown limit", minimal + "limits: {tunnel: 1}\n", `unknown key "tunnel"`},
		{"bytes without a unit", minimal + "limits: {upload_per_hour: 5}\n", "bytes with their unit"},
		{"a proxy that is an address", listener("{name: a, address: 127.0.0.1:1, proxy_protocol: 10.0.0.1}"), "no range of addresses"},
		{"a proxy with too many bits", listener("{name: a, address: 127.0.0.1:1, proxy_protocol: 10.0.0.1/8}"), "no range of addresses"},
		{"a proxy for a unix socket", listener(`{name: a, address: "unix:/s", identity: self, proxy_protocol: 10.0.0.0/8}`), "is for TCP only"},
		{"a NAT64 prefix of another length", minimal + "resolver: {nat64: \"2001:db8::/50\"}\n", "no prefix for NAT64"},
		{"a NAT64 prefix of IPv4", minimal + "resolver: {nat64: 10.0.0.0/32}\n", "no prefix for NAT64"},
		{"no connections", minimal + "limits: {connections: 0}\n", "e.yaml:5:"},
		{"a file and sinks", minimal + "records: {file: a, sinks: [{name: b, file: b}]}\n", "write it as one of sinks"},
		{"no sinks", minimal + "records: {sinks: []}\n", "records must go somewhere"},
		{"a sink to nowhere", minimal + "records: {sinks: [{name: a}]}\n", "either file or otlp"},
		{"a sink to two places", minimal + "records: {sinks: [{name: a, file: a, otlp: true}]}\n", "either file or otlp"},
		{"a sink without a name", minimal + "records: {sinks: [{file: a}]}\n", "has no name"},
		{"two sinks of one name", minimal + "records: {sinks: [{name: a, file: a}, {name: a, file: b}]}\n", `two sinks with the name "a"`},
		{"two sinks of one file", minimal + "records: {sinks: [{name: a, file: r}, {name: b, file: ./r}]}\n", "sink a writes to the same file"},
		{"two sinks of one collector", minimal + "records: {sinks: [{name: a, otlp: true}, {name: b, otlp: true, only: denials}]}\n", "sink a sends to the same place"},
		{"required and kept by nobody", minimal + "records: {required: true, sinks: [{name: a, file: a, only: denials}]}\n", "let out without a record"},
		{"required and merged", minimal + "records: {file: a, collapse: 10s, required: true}\n", "remove collapse or required"},
		{"a format for OTLP", minimal + "records: {sinks: [{name: a, otlp: true, format: ecs}]}\n", "are for files"},
		{"rotating standard output", minimal + "records: {sinks: [{name: a, file: stdout, rotate: {size: 1MiB}}]}\n", "cannot be rotated"},
		{"rotating nothing", minimal + "records: {sinks: [{name: a, file: a, rotate: {keep: 3}}]}\n", "size or every"},
		{"two sinks on standard output", minimal + "records: {sinks: [{name: a, file: stdout}, {name: b, file: stdout}]}\n", "sink a writes to the same file"},
		{"a name server at every address", minimal + "resolver: {servers: 0.0.0.0}\n", `"0.0.0.0" is no name server`},
		{"a name server that is a group", minimal + "resolver: {servers: [{tcp: \"[ff02::fb]:5353\"}]}\n", `"[ff02::fb]:5353" is no name server`},
		{"no groups", minimal + "resolver: {groups: []}\n", "groups: the list is empty"},
		{"hosts with a wildcard", minimal + "resolver: {hosts: {\"*.a.example\": 10.0.0.1}}\n", "write one whole name in lower case, without a wildcard"},
		{"a certificate without its key", listener("{name: a, address: 127.0.0.1:1, present: c.pem}"), `want svid, or {certificate: FILE, key: FILE}, not "c.pem"`},
		{"a directory and files", strings.Replace(minimal, "dir: id", "dir: id, key: k", 1), "e.yaml:2:11: identity: dir stands without certificate, key and bundle"},
		{"a poll interval below a second", strings.Replace(minimal, "p.yaml", "{files: p.yaml, poll: 999ms}", 1), "e.yaml:3:31: poll: write at least 1s, or 0s for never"},
		{"rotating too often", minimal + "records: {sinks: [{name: a, file: a, rotate: {size: 1KiB, every: 1s}}]}\n", "at least 1MiB"},
		{"disclosure", minimal + "refusals: {disclosure: some}\n", "full or id or none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("e.yaml", []byte(tt.file))
			if err == nil {
				t.Fatal("loaded")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to contain %q", err, tt.want)
			}
		})
	}
}

// TestOneMistakeIsOneError checks that no error is reported which only follows from
// another error.
func TestOneMistakeIsOneError(t *testing.T) {
	listener := func(more string) string {
		return "listeners: [{name: a, address: 127.0.0.1:1, " + more + "}]\n"
	}
	fixed := listener("identity: fixed, id: spiffe://td.example/w")
	for name, more := range map[string]string{
		"an id that is none":          listener("identity: fixed, id: w"),
		"a source with host bits":     listener("protocol: dns, identity: source-map, sources: {10.0.0.1/8: spiffe://td.example/w}"),
		"a source without an id":      listener("protocol: dns, identity: source-map, sources: {10.0.0.0/8: w}"),
		"fixed without an id":         listener("identity: fixed"),
		"a source map with nothing":   listener("protocol: dns, identity: source-map, sources: {}"),
		"protocols that do not mix":   "identity: {dir: id}\n" + listener("protocol: [connect, dot]"),
		"no protocol":                 "identity: {dir: id}\n" + listener("protocol: []"),
		"a protocol that is none":     "identity: {dir: id}\n" + listener("protocol: [connect, doq]"),
		"SOCKS5 without an identity":  "identity: {dir: id}\n" + listener("protocol: socks5"),
		"SOCKS5 beside another one":   "identity: {dir: id}\n" + listener("protocol: [socks5, connect]"),
		"both without TLS":            listener("protocol: [connect, doh], identity: self") + "identity: {dir: id}\n",
		"listeners that are no list":  "listeners: {a: {address: 127.0.0.1:1}}\n",
		"sinks that are no list":      listener("identity: fixed, id: spiffe://td.example/w") + "records: {sinks: {file: a}}\n",
		"an identity that has no key": listener("identity: self") + "identity: gateway\n",
		"an identity without a path":  listener("identity: self") + "identity: {dir: \"\"}\n",
		"an agent without a path":     listener("identity: self") + "identity: {workload_api: \"\"}\n",
		"a listener that is a word":   "listeners: [a]\n",
		"a listener without a value":  "listeners: [{name: \"\", address: 127.0.0.1:1, identity: fixed, id: spiffe://td.example/w}]\n",
		"present without keys":        "identity: {dir: id}\n" + listener("present: {}"),
		"present without a path":      "identity: {dir: id}\n" + listener("present: {certificate: c, key: \"\"}"),
		"a sink that is a word":       fixed + "records: {sinks: [stdout]}\n",
		"a sink without a value":      fixed + "records: {sinks: [{name: \"\", file: a}]}\n",
		"two sinks without a file":    fixed + "records: {sinks: [{name: a, file: \"\"}, {name: b, file: stdout}]}\n",
		"a rotation of nothing":       fixed + "records: {sinks: [{name: a, file: a, rotate: {}}]}\n",
		"a size without its unit":     fixed + "records: {sinks: [{name: a, file: a, rotate: {size: 10}}]}\n",
		"a time in days":              fixed + "records: {sinks: [{name: a, file: a, rotate: {every: 1d}}]}\n",
		"a group that is a word":      fixed + "resolver: {groups: [a.example]}\n",
		"a suffix that is none":       fixed + "resolver: {groups: [{suffixes: \"*.a.example\", servers: 10.0.0.1}]}\n",
		"a server without a value":    fixed + "resolver: {servers: [{}]}\n",
		"a server's name in capitals": fixed + "resolver: {servers: [{dot: 10.0.0.1, name: DNS.example}]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("e.yaml", []byte("version: 1\npolicy: p\n"+more))
			if err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line", err)
			}
		})
	}
	for _, whole := range []string{"- version: 1\n", "exeat\n", "{}\n", minimal + "policy: {}\n", strings.Replace(minimal, "p.yaml", "{}", 1), strings.Replace(minimal, "p.yaml", "{files: p.yaml, max_revoke: {}}", 1)} {
		if _, err := Parse("e.yaml", []byte(whole)); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one line", whole, err)
		}
	}
}

// TestLoadNamesTheFile checks that the error for a file that cannot be read names the
// file.
func TestLoadNamesTheFile(t *testing.T) {
	_, err := Load(t.TempDir() + "/none.yaml")
	if err == nil || !os.IsNotExist(err) && !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("got %v", err)
	}
}

// TestExclude checks that the configuration refuses exactly those pairs of addresses
// that the system refuses.
func TestExclude(t *testing.T) {
	hosts := []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"}
	for _, a := range hosts {
		for _, b := range hosts {
			first, err := listen.TCP(t.Context(), a+":0")
			if err != nil {
				t.Fatal(err)
			}
			_, port, err := net.SplitHostPort(first.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			second, err := listen.TCP(t.Context(), b+":"+port)
			if got := exclude(a+":"+port, b+":"+port); got != (err != nil) {
				t.Errorf("%s and %s exclude each other: %v, and the system says %v", a, b, got, err)
			}
			if err == nil {
				_ = second.Close()
			}
			_ = first.Close()
		}
	}
	for _, pair := range [][2]string{
		{"127.0.0.1:0", "127.0.0.1:0"}, {"127.0.0.1:1", "127.0.0.1:2"}, {"unix:/a", "unix:/b"}, {"unix:/a", "127.0.0.1:1"},
	} {
		if exclude(pair[0], pair[1]) {
			t.Errorf("%s and %s exclude each other", pair[0], pair[1])
		}
	}
}
