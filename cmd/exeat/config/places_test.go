package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// TestPlacesOfPaths checks that an error about a file or an address gets the place where
// the configuration names it.
func TestPlacesOfPaths(t *testing.T) {
	cfg, err := Parse("/x/e.yaml", []byte(`version: 1
identity:
  certificate: id/svid.pem
  key: id/key.pem
  bundle: /b
  bundles: {other.example: id/other.pem}
policy: [p, p/q, "a b.yaml"]
listeners: [{name: a, address: 127.0.0.1:1, present: {certificate: web.pem, key: web_key.pem}}, {name: s, address: "unix:run/s", identity: self}]
resolver: {servers: [{dot: 10.0.0.1, name: dns.example, ca: ca.pem}]}
records: {sinks: [{name: all, file: r.jsonl}, {name: out, file: stdout}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	for text, at := range map[string]string{
		"open /x/id/svid.pem: no such file":                     "3:16",
		"key file /x/id/key.pem is not PEM":                     "4:8",
		"bundle file /b; check the path":                        "5:11",
		"bundle file /x/id/other.pem is no PEM":                 "6:28",
		"/x/p/rules.yaml would not be read":                     "7:10",
		"stat /x/p: no such file":                               "7:10",
		"/x/p/q/rules.yaml is not a regular file":               "7:13",
		"stat /x/a b.yaml: no such file":                        "7:18",
		`open "/x/web_key.pem"`:                                 "8:82",
		"/x/web.pem":                                            "8:68",
		"the authorities: open /x/ca.pem: permission":           "9:61",
		"records: sink all: open /x/r.jsonl: no space":          "10:37",
		"open /y/x/p: no such file":                             "",
		"open /x/ppp: no such file":                             "",
		"listen tcp 127.0.0.1:1: bind: in use":                  "8:32",
		"listen unix /x/run/s: no such directory":               "8:116",
		"127.0.0.1:12 is taken":                                 "",
		"address already in use":                                "",
		"key file /x/web_key.pem is not that of /x/id/svid.pem": "8:82", // which is longer
	} {
		want := text
		if at != "" {
			want = "/x/e.yaml:" + at + ": " + text
		}
		cause := errors.New(text)
		if got := cfg.Places.Explain(cause); got.Error() != want || !errors.Is(got, cause) {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	agent, err := Parse("e.yaml", []byte(strings.Replace(minimal, "dir: id", "workload_api: http://x", 1)))
	if got := agent.Places.Explain(errors.New(`socket of the Workload API "http://x": bad`)); err != nil || !strings.HasPrefix(got.Error(), "e.yaml:2:26: socket") {
		t.Errorf("the Workload API: %v, %v", got, err)
	}
	own := strictyaml.Errors{{Pos: strictyaml.Pos{File: "/x/p/q", Line: 1, Column: 1}, Msg: "version is missing"}}
	if got := cfg.Places.Explain(own); got.Error() != own.Error() {
		t.Errorf("an error with a place of its own is %v", got)
	}
	twice, err := Parse("e.yaml", []byte(strings.Replace(minimal, "dir: id", "certificate: /a.pem, key: /k.pem, bundle: /a.pem", 1)))
	if err != nil {
		t.Fatal(err)
	}
	for text, at := range map[string]string{
		"bundle file /a.pem: certificate 1 is no CA": "e.yaml:2:54: ",
		"certificate file /a.pem: it has ended":      "e.yaml:2:25: ",
		"open /a.pem: no such file":                  "e.yaml:2:25: ",
	} {
		if got := twice.Places.Explain(errors.New(text)); got.Error() != at+text {
			t.Errorf("got %v, want %s%s", got, at, text)
		}
	}
	if cfg.Places.Explain(nil) != nil {
		t.Error("no error is one")
	}
}

// TestLimitsThatAreNeverReached checks that a warning names the place of a limit that
// another limit keeps from being reached.
func TestLimitsThatAreNeverReached(t *testing.T) {
	for more, want := range map[string]string{
		"limits: {connections: 10, connections_per_source: 11}": "e.yaml:5:51: connections_per_source: 11 is never reached, since limits.connections is 10",
		"limits: {connections_per_source: 11, connections: 10}": "e.yaml:5:34: connections_per_source: 11 is never reached, since limits.connections is 10",
		"limits: {connections_per_source: 20000}":               "e.yaml:5:34: connections_per_source: 20000 is never reached, since limits.connections is 16384",
		"limits: {connections: 10, tunnels: 11}":                "e.yaml:5:36: tunnels: 11 is never reached, since limits.connections is 10",
		"limits: {connections: 10, streams_per_connection: 11}": "e.yaml:5:51: streams_per_connection: 11 is never reached, since limits.connections is 10",
		"limits: {connects_per_second: 1001}":                   "e.yaml:5:31: connects_per_second: 1001 is never reached, since limits.requests_per_identity is 1000",
		"dns: {connections: 10, connections_per_identity: 11}":  "e.yaml:5:50: connections_per_identity: 11 is never reached, since dns.connections is 10",
		"dns: {connections_per_identity: 5000}":                 "e.yaml:5:33: connections_per_identity: 5000 is never reached, since dns.connections is 4096",
		"dns: {lookups: 10, lookups_per_identity: 11}":          "e.yaml:5:42: lookups_per_identity: 11 is never reached, since dns.lookups is 10",
		"dns: {lookups_per_identity: 5000}":                     "e.yaml:5:29: lookups_per_identity: 5000 is never reached, since dns.lookups is 4096",
		"timeouts: {tunnel_idle: 13h}":                          "e.yaml:5:25: tunnel_idle: 13h0m0s is never reached, since timeouts.tunnel_max is 12h0m0s",
		"limits: {connections: 10}":                             "", // the defaults of other limits are larger, and not warned of
		"limits: {connections: 10, connections_per_source: 10}": "",
		"timeouts: {tunnel_max: 1m}":                            "",
		"dns: {connections: 1, lookups: 1}":                     "",
	} {
		cfg, err := Parse("e.yaml", []byte(minimal+more+"\n"))
		got := ""
		if warned := cfg.Warnings.Err(); warned != nil {
			got = warned.Error()
		}
		if want != "" {
			want += ": lower it, or remove the key"
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", more, got, err, want)
		}
	}
	for _, value := range []string{"100%", "{share: 100%}"} {
		cfg, err := Parse("e.yaml", []byte(strings.Replace(minimal, "p.yaml", "{files: p.yaml, max_revoke: "+value+"}", 1)))
		if warned := cfg.Warnings.Err(); err != nil || warned == nil || !strings.Contains(warned.Error(), "with 100% nothing is ever held") {
			t.Errorf("%s: %v, %v", value, warned, err)
		}
	}
}
