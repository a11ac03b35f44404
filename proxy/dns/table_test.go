package dns_test

import (
	"net"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// TestAnswers checks the table in docs/dns.md over every wire.
func TestAnswers(t *testing.T) {
	for _, wire := range wires() {
		t.Run(wire, func(t *testing.T) {
			listener := map[string]string{"udp": "dns", "tcp": "dns", "dot": "dot", "doh": "doh", "both": "both", "both-h2": "both"}[wire]
			g := newGateway(t, options{})
			c := g.dial(t, wire, "sidecar")
			for _, row := range []struct{ question, want, record string }{
				{"allowed.example", "NOERROR, A 93.184.216.34", "allow A NOERROR upstream"},
				{"allowed.example", "NOERROR, A 93.184.216.34", "allow A NOERROR cache"},
				{"AAAA ALLOWED.Example", "NOERROR, AAAA 2606:2800:220:1::1", "allow AAAA NOERROR upstream"},
				{"plain allowed.example", "NOERROR, A 93.184.216.34", "allow A NOERROR cache"},
				{"alias.example", "NOERROR, CNAME cdn.elsewhere.example., A 93.184.216.35", "allow A NOERROR upstream"},
				{"TXT text.example", `NOERROR, TXT "hello"`, "allow TXT NOERROR upstream"},
				{"SSHFP a.shell.example", "NOERROR, SSHFP 4 2 " + strings.Repeat("0F", 32), "allow SSHFP NOERROR upstream"},
				{"TLSA a.shell.example", "NOERROR, TLSA 3 1 1 " + strings.Repeat("f0", 32), "allow TLSA NOERROR upstream"},
				{"TLSA cut.shell.example", "SERVFAIL, ede 23 resolve-failed", "fail resolve-failed TLSA SERVFAIL local"},
				{"URI a.shell.example", `NOERROR, URI 10 1 "ftp://Shell.example/pub"`, "allow URI NOERROR upstream"},
				{"URI allowed.example", "NOERROR, soa of example., ede 15 type-not-allowed", "deny type-not-allowed URI NOERROR local"},
				{"x.one.example", "NOERROR, A 93.184.216.34", "allow A NOERROR upstream"},
				{"db.example", "NOERROR, A 10.20.0.1", "allow A NOERROR upstream"},
				{"empty.example", "NOERROR, soa of example.", "allow A NOERROR upstream"},
				{"gone.example", "NXDOMAIN, soa of example.", "allow A NXDOMAIN upstream"},
				{"printer.local", "NOERROR, A 93.184.216.34", "allow A NOERROR upstream"},

				{"denied.example", "NXDOMAIN, soa of example., ede 15 not-on-allowlist", "deny not-on-allowlist A NXDOMAIN local"},
				{"plain denied.example", "NXDOMAIN, soa of example.", "deny not-on-allowlist A NXDOMAIN local"},
				{"denied.wild.example", "NXDOMAIN, soa of wild.example., ede 15 denied-by-rule", "deny denied-by-rule A NXDOMAIN local"},
				{"old.example", "NXDOMAIN, soa of example., ede 15 rule-expired", "deny rule-expired A NXDOMAIN local"},
				{"one.example", "NOERROR, soa of example., ede 15 not-on-allowlist", "deny not-on-allowlist A NOERROR local"},
				{"below.example", "NOERROR, soa of example., ede 15 not-on-allowlist", "deny not-on-allowlist A NOERROR local"},
				{"MX allowed.example", "NOERROR, soa of example., ede 15 type-not-allowed", "deny type-not-allowed MX NOERROR local"},
				{"ANY allowed.example", `NOERROR, HINFO "RFC8482" "", ede 15 type-not-allowed`, "deny type-not-allowed TYPE255 NOERROR local"},
				{"ANY denied.example", "NXDOMAIN, soa of example., ede 15 not-on-allowlist", "deny not-on-allowlist TYPE255 NXDOMAIN local"},
				{"NULL allowed.example", "NOERROR, soa of example., ede 15 type-not-allowed", "deny type-not-allowed TYPE10 NOERROR local"},
				{"AXFR allowed.example", "REFUSED, ede 18 type-not-allowed", "deny type-not-allowed TYPE252 REFUSED local"},
				{"IXFR denied.example", "REFUSED, ede 18 type-not-allowed", "deny type-not-allowed TYPE251 REFUSED local"},

				{"inner.example", "NOERROR, soa of example., ede 15 resolved-address-denied", "deny resolved-address-denied A NOERROR local"},
				{"hidden.example", "NOERROR, soa of example., ede 15 resolved-address-denied", "deny resolved-address-denied A NOERROR local"},
				{"bad-alias.example", "NOERROR, soa of example., ede 15 denied-by-rule", "deny denied-by-rule A NOERROR local"},
				{"mixed.example", "NOERROR, A 93.184.216.34", "allow A NOERROR upstream"},
				{"HTTPS service.example", `NOERROR, HTTPS 1 . alpn="h2" ipv4hint="93.184.216.34"`, "allow HTTPS NOERROR upstream"},
				{"broken.example", "SERVFAIL, ede 23 resolve-failed", "fail resolve-failed A SERVFAIL local"},

				{"localhost", "NOERROR, A 127.0.0.1, ede 15 special-name", "deny special-name A NOERROR local"},
				{"AAAA a.localhost", "NOERROR, AAAA ::1, ede 15 special-name", "deny special-name AAAA NOERROR local"},
				{"MX localhost", "NOERROR, soa of ., ede 15 special-name", "deny special-name MX NOERROR local"},
				{"open.localhost", "NOERROR, A 127.0.0.1", "allow A NOERROR local"},
				{"AAAA Open.LOCALHOST", "NOERROR, AAAA ::1", "allow AAAA NOERROR local"},
				{"TXT open.localhost", "NOERROR", "allow TXT NOERROR local"},
				{"MX open.localhost", "NOERROR, soa of localhost., ede 15 type-not-allowed", "deny type-not-allowed MX NOERROR local"},
				{"half.localhost", "NOERROR, A 127.0.0.1", "allow A NOERROR local"},
				{"AAAA half.localhost", "NOERROR, AAAA ::1, ede 15 resolved-address-denied", "deny resolved-address-denied AAAA NOERROR local"},
				{"shut.localhost", "NOERROR, A 127.0.0.1, ede 15 resolved-address-denied", "deny resolved-address-denied A NOERROR local"},
				{"a.invalid", "NXDOMAIN, soa of invalid., ede 15 special-name", "deny special-name A NXDOMAIN local"},
				{"allowed.example.corp.example", "NXDOMAIN, soa of example.corp.example., ede 15 special-name", "deny special-name A NXDOMAIN local"}, // as a search list makes it
				{"a.b.onion", "NXDOMAIN, soa of b.onion., ede 15 special-name", "deny special-name A NXDOMAIN local"},
				{"scanner.local", "NXDOMAIN, soa of local., ede 15 special-name", "deny special-name A NXDOMAIN local"},
				{"local", "NOERROR, soa of ., ede 15 special-name", "deny special-name A NOERROR local"},
				{"wpad", "NXDOMAIN, soa of ., ede 15 special-name", "deny special-name A NXDOMAIN local"},
				{"example", "NOERROR, soa of ., ede 15 special-name", "deny special-name A NOERROR local"},
				{"PTR 1.0.0.10.in-addr.arpa", "NXDOMAIN, soa of 0.0.10.in-addr.arpa., ede 15 special-name", "deny special-name PTR NXDOMAIN local"},
				{"PTR 1.0.ip6.arpa", "NXDOMAIN, soa of 0.ip6.arpa., ede 15 special-name", "deny special-name PTR NXDOMAIN local"},
				{"SVCB _dns.resolver.arpa", "NOERROR, soa of resolver.arpa., ede 15 special-name", "deny special-name SVCB NOERROR local"},
				{"NS .", "NOERROR, soa of ., ede 15 malformed-target", "deny malformed-target NS NOERROR local"},
				{`foo\.example.com`, "NXDOMAIN, soa of com., ede 15 malformed-target", "deny malformed-target A NXDOMAIN local"},
				{`allowed\.example`, "NXDOMAIN, soa of ., ede 15 malformed-target", "deny malformed-target A NXDOMAIN local"},
				{`allowed.example\000`, `NXDOMAIN, soa of example\000., ede 15 malformed-target`, "deny malformed-target A NXDOMAIN local"},
				{"8.8.8.8", "NXDOMAIN, soa of 8.8.8., ede 15 malformed-target", "deny malformed-target A NXDOMAIN local"},
			} {
				before := g.upstream.packets.Load()
				a := ask(t, c, row.question)
				if got := say(a); got != row.want {
					t.Errorf("%s: %s\nwant %s", row.question, got, row.want)
				}
				r := g.next(t)
				if got := r.text(); got != row.record {
					t.Errorf("%s: record %q, want %q", row.question, got, row.record)
				}
				if r.Protocol != "dns" || r.Wire != recorded(wire) || r.Listener != listener || r.Identity != id("sidecar").String() || r.Event != "decision" {
					t.Errorf("%s: record %+v", row.question, r)
				}
				if a.IsEdns0() != nil && r.Verdict != "allow" && decisionID(a) != r.ID {
					t.Errorf("%s: the answer names %s, the record is %s", row.question, decisionID(a), r.ID)
				}
				if r.Source == "local" && (r.Reason != "resolved-address-denied" || strings.HasSuffix(strings.ToLower(row.question), "localhost")) && r.Reason != "resolve-failed" && row.question != "bad-alias.example" && g.upstream.packets.Load() != before {
					t.Errorf("%s: a packet left", row.question)
				}
			}
			g.none(t)
		})
	}
}

// text returns the parts of a record that a row names.
func (r record) text() string {
	text := r.Verdict
	for _, word := range []string{r.Reason, r.QType, r.RCode, r.Source} {
		if word != "" {
			text += " " + word
		}
	}
	return text
}

// TestAnswersDependOnTheIdentity checks answers and records by the identity of the caller.
func TestAnswersDependOnTheIdentity(t *testing.T) {
	g := newGateway(t, options{})
	for _, row := range []struct{ wire, name, question, want, record string }{
		{"dot", "", "allowed.example", "REFUSED, ede 18 identity-missing", "deny identity-missing A REFUSED local"},
		{"doh", "", "denied.example", "REFUSED, ede 18 identity-missing", "deny identity-missing A REFUSED local"},
		{"dot", "stranger", "allowed.example", "NXDOMAIN, soa of example., ede 15 identity-unknown", "deny identity-unknown A NXDOMAIN local"},
		{"doh", "legacy", "allowed.example", "NXDOMAIN, soa of example., ede 15 quarantined", "deny quarantined A NXDOMAIN local"},
		{"dot", "mapped", "allowed.example", "NXDOMAIN, soa of example., ede 15 identity-source-not-accepted", "deny identity-source-not-accepted A NXDOMAIN local"},
		{"mapped", "", "allowed.example", "NOERROR, A 93.184.216.34", "allow A NOERROR upstream"},
		{"dot", "other", "allowed.example", "NXDOMAIN, soa of example., ede 15 not-on-allowlist", "deny not-on-allowlist A NXDOMAIN local"},
		{"dot", "observed", "a.observed.example", "NOERROR, A 93.184.216.34", "observe A NOERROR upstream"},
		{"dot", "observed", "TXT a.observed.example", "NOERROR, soa of observed.example., ede 15 type-not-allowed", "deny type-not-allowed TXT NOERROR local"},
		{"dot", "observed", "wpad", "NOERROR, soa of .", "observe A NOERROR local"},
	} {
		if got := say(ask(t, g.dial(t, row.wire, row.name), row.question)); got != row.want {
			t.Errorf("%s asks %s over %s: %s, want %s", row.name, row.question, row.wire, got, row.want)
		}
		if r := g.next(t); r.text() != row.record {
			t.Errorf("%s asks %s over %s: record %q, want %q", row.name, row.question, row.wire, r.text(), row.record)
		}
	}
}

// TestInspectedAliasMustBeAllowed checks that with inspection no alias may lead to a name
// that is not allowed itself.
func TestInspectedAliasMustBeAllowed(t *testing.T) {
	g := newGateway(t, options{inspect: true})
	c := g.dial(t, "dot", "sidecar")
	for question, want := range map[string]string{
		"allowed.example":   "NOERROR, A 93.184.216.34",
		"alias.example":     "NOERROR, soa of example., ede 15 not-on-allowlist",
		"bad-alias.example": "NOERROR, soa of example., ede 15 denied-by-rule",
	} {
		if got := say(ask(t, c, question)); got != want {
			t.Errorf("%s: %s, want %s", question, got, want)
		}
	}
}

// TestStaleAnswers checks that an expired answer is sent, with an extended error that
// says so, if no server answers.
func TestStaleAnswers(t *testing.T) {
	t.Parallel()
	g := newGateway(t, options{})
	c := g.dial(t, "dot", "sidecar")
	ask(t, c, "brief.example")
	ask(t, c, "brief-gone.example")
	g.upstream.down.Store(true)
	for question, want := range map[string]string{
		"brief.example":      "NOERROR, A 93.184.216.37, ede 3",
		"brief-gone.example": "NXDOMAIN, soa of example., ede 19",
	} {
		waitFor(t, "stale answer to "+question, func() bool { return say(ask(t, c, question)) == want })
	}
	for {
		if r := g.next(t); r.Source == "stale" {
			if r.text() != "allow A NOERROR stale" && r.text() != "allow A NXDOMAIN stale" {
				t.Errorf("record %+v", r)
			}
			return
		}
	}
}

// TestIPv6 sends queries over IPv6, if the machine has it.
func TestIPv6(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = l.Close()
	} else {
		missing.Skip(t, "there is no IPv6 loopback: "+err.Error())
	}
	g := newGateway(t, options{address: "[::1]"})
	if got := say(ask(t, g.dial(t, "mapped", ""), "allowed.example")); got != "NOERROR, A 93.184.216.34" {
		t.Error(got)
	}
	if r := g.next(t); r.Identity != id("mapped").String() || r.IdentitySource != "source-map" {
		t.Errorf("record %+v", r)
	}
}

func TestWithoutAPolicyQueriesFail(t *testing.T) {
	g := newGateway(t, options{noPolicy: true})
	for _, wire := range wires() {
		if got, want := say(ask(t, g.dial(t, wire, "sidecar"), "allowed.example")), "SERVFAIL, ede 14 policy-unavailable"; got != want {
			t.Errorf("%s: %s, want %s", wire, got, want)
		}
	}
}
