package allowlist

import (
	"strings"
	"testing"
)

// row is a request and the expected decision, in the words of answer.
type row struct {
	why  string
	req  Request
	want string
}

func checkRows(t *testing.T, p *Policy, rows []row) {
	t.Helper()
	for _, r := range rows {
		if got := answer(p.Decide(r.req)); got != r.want {
			t.Errorf("%s: %s to %s %s%s: %s, want %s", r.why, r.req.ID.Path(), r.req.Method, r.req.Dest, r.req.Path, got, r.want)
		}
	}
}

// TestNamesNearAnAllowedName checks that names which resemble an allowed name are
// denied, and that other spellings of it are allowed.
func TestNamesNearAnAllowedName(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(rule("allowed.example port 443,80"), rule("**.wild.example"), rule("xn--bcher-kva.example"))))
	const no = "not-on-allowlist"
	checkRows(t, p, []row{
		{"the name itself", tunnel(checkout, "allowed.example:443"), "allow"},
		{"in capitals", tunnel(checkout, "ALLOWED.Example:443"), "allow"},
		{"with a final dot", tunnel(checkout, "allowed.example.:443"), "allow"},
		{"one label below a wildcard", tunnel(checkout, "a.wild.example:443"), "allow"},
		{"two labels below", tunnel(checkout, "a.b.wild.example:443"), "allow"},
		{"a service label below", tunnel(checkout, "_svc._tcp.wild.example:443"), "allow"},
		{"the apex of a wildcard", tunnel(checkout, "wild.example:443"), no},
		{"a longer label than the apex", tunnel(checkout, "xwild.example:443"), no},
		{"a name in front of another", tunnel(checkout, "allowed.example.evil.test:443"), no},
		{"a label that ends like the allowed one", tunnel(checkout, "evilallowed.example:443"), no},
		{"a name below an exact one", tunnel(checkout, "a.allowed.example:443"), no},
		{"the parent of an exact one", tunnel(checkout, "example:443"), no},
		{"a single label", tunnel(checkout, "allowed:443"), no},
		{"localhost", tunnel(checkout, "localhost:443"), no},
		{"an A-label in capitals", tunnel(checkout, "XN--BCHER-KVA.example:443"), "allow"},
		{"127 labels below", tunnel(checkout, strings.Repeat("a.", 119)+"wild.example:443"), "allow"},
		{"a port that is not written", tunnel(checkout, "a.wild.example:80"), "port-not-allowed"},
		{"an address where only names are listed", tunnel(checkout, "127.0.0.1:443"), "ip-not-on-allowlist"},
		{"a mapped address where only names are listed", tunnel(checkout, "[::ffff:127.0.0.1]:443"), "ip-not-on-allowlist"},
		{"the loopback address", tunnel(checkout, "[::1]:443"), "ip-not-on-allowlist"},
		{"no address", tunnel(checkout, "[::]:443"), "ip-not-on-allowlist"},
		{"an IPv4-compatible address", tunnel(checkout, "[::127.0.0.1]:443"), "ip-not-on-allowlist"},
	})
}

// TestTheMoreSpecificRuleWins checks which rule decides if several match a request.
func TestTheMoreSpecificRuleWins(t *testing.T) {
	for _, row := range []struct {
		why, dest, want string
		entries         []Entry
	}{
		{"an exact host before *.", "a.b.example:443", "exact", []Entry{
			entryOf(checkout, allow(rule("*.b.example", named("one")), rule("**.b.example", named("many")), rule("a.b.example", named("exact")))),
		}},
		{"*. before **.", "a.b.example:443", "one", []Entry{
			entryOf(checkout, allow(rule("**.b.example", named("many")), rule("*.b.example", named("one")))),
		}},
		{"the longer suffix", "a.b.c.example:443", "long", []Entry{
			entryOf(checkout, allow(rule("**.example", named("short")), rule("**.b.c.example", named("long")), rule("**.c.example", named("middle")))),
		}},
		{"the host before the identity", "a.b.example:443", "exact", []Entry{
			entryOf(checkout, allow(rule("*.b.example", named("one")))),
			entryOf("everyone of prod.example", allow(rule("a.b.example", named("exact")))),
		}},
		{"the exact identity", "a.example:443", "exact", []Entry{
			entryOf("everyone of prod.example", allow(rule("a.example", named("everyone")))),
			entryOf("spiffe://prod.example/ns/payments/sa/*", allow(rule("a.example", named("one")))),
			entryOf(checkout, allow(rule("a.example", named("exact")))),
		}},
		{"the longer identity prefix", "a.example:443", "long", []Entry{
			entryOf("spiffe://prod.example/**", allow(rule("a.example", named("short")))),
			entryOf("spiffe://prod.example/ns/payments/**", allow(rule("a.example", named("long")))),
		}},
		{"/* before /**", "a.example:443", "one", []Entry{
			entryOf("spiffe://prod.example/ns/payments/sa/**", allow(rule("a.example", named("many")))),
			entryOf("spiffe://prod.example/ns/payments/sa/*", allow(rule("a.example", named("one")))),
		}},
		{"/** before everyone", "a.example:443", "many", []Entry{
			entryOf("everyone of prod.example", allow(rule("a.example", named("everyone")))),
			entryOf("spiffe://prod.example/**", allow(rule("a.example", named("many")))),
		}},
		{"the first in the file", "a.example:443", "first", []Entry{
			entryOf(checkout, allow(rule("a.example", named("first")), rule("a.example", named("second")))),
		}},
		{"the first that holds", "a.example:443", "second", []Entry{
			entryOf(checkout, allow(rule("a.example", named("first"), expires(now())), rule("a.example", named("second")))),
		}},
		{"the one whose port it is", "a.example:8443", "ranged", []Entry{
			entryOf(checkout, allow(rule("a.example", named("default")), rule("a.example port 8000-8999", named("ranged")))),
		}},
		{"a less specific host where the exact one misses", "a.b.example:80", "one", []Entry{
			entryOf(checkout, allow(rule("a.b.example", named("exact")), rule("*.b.example port 80", named("one")))),
		}},
		{"the longest range", "8.8.8.8:443", "long", []Entry{
			entryOf(checkout, allow(rule("0.0.0.0/0", named("all")), rule("8.8.0.0/16", named("middle")))),
			entryOf("everyone of prod.example", allow(rule("8.8.8.8/32", named("long")))),
		}},
		{"the identity among equal ranges", "8.8.8.8:443", "exact", []Entry{
			entryOf("everyone of prod.example", allow(rule("8.8.8.0/24", named("everyone")))),
			entryOf(checkout, allow(rule("8.8.8.0/24", named("exact")))),
		}},
	} {
		p := policyOf(t, row.entries...)
		if got := answer(p.Decide(tunnel(checkout, row.dest))); got != "allow by "+row.want {
			t.Errorf("%s wins: %s, want allow by %s", row.why, got, row.want)
		}
	}
}

// TestTheNearestMissNamesTheReason checks that the reason of a denial is that of the
// rule which nearly matches.
func TestTheNearestMissNamesTheReason(t *testing.T) {
	get := func(dest, path string) Request { return plain(checkout, "GET", dest, path) }
	p := policyOf(t, entryOf(checkout, allow(
		rule("port.example port 8443,9000-9001"),
		rule("old.example", expires(now())),
		rule("read.example port 80", methods("GET", "HEAD"), paths("/public/**", "/health")),
		rule("any.example port 80", paths("/public/*")),
		rule("every.example port 80", paths("/", "/**")),
		rule("ws.example port 80", methods("GET"), upgrade),
		rule("plain.example port 80"),
		rule("name.example", noTunnel),
		rule("both.example port 53", noTunnel), rule("both.example"),
		rule("mixed.example port 1", named("a")), rule("mixed.example", expires(now())), rule("mixed.example", methods("PUT")),
	)))
	checkRows(t, p, []row{
		{"another port", tunnel(checkout, "port.example:443"), "port-not-allowed"},
		{"an expired rule on another port", tunnel(checkout, "old.example:80"), "port-not-allowed"},
		{"an expired rule", tunnel(checkout, "old.example:443"), "rule-expired"},
		{"a tunnel where methods are written", tunnel(checkout, "read.example:80"), "method-not-allowed"},
		{"a tunnel where paths are written", tunnel(checkout, "any.example:80"), "method-not-allowed"},
		{"another method", plain(checkout, "POST", "read.example:80", "/public/x"), "method-not-allowed"},
		{"a method in lower case", plain(checkout, "get", "read.example:80", "/public/x"), "method-not-allowed"},
		{"a method and a path", get("read.example:80", "/public/x"), "allow"},
		{"an exact path", get("read.example:80", "/health"), "allow"},
		{"many segments", get("read.example:80", "/public/x/y"), "allow"},
		{"another path", get("read.example:80", "/private"), "path-not-allowed"},
		{"a path that begins like an allowed one", get("read.example:80", "/healthy"), "path-not-allowed"},
		{"the folder itself", get("read.example:80", "/public"), "path-not-allowed"},
		{"no path", get("read.example:80", ""), "malformed-target"},
		{"the server itself where every path is allowed", plain(checkout, "OPTIONS", "every.example:80", Asterisk), "path-not-allowed"},
		{"the server itself under a rule without paths", plain(checkout, "OPTIONS", "plain.example:80", Asterisk), "allow"},
		{"any method where only paths are written", plain(checkout, "DELETE", "any.example:80", "/public/x"), "allow"},
		{"one segment only", get("any.example:80", "/public/x/y"), "path-not-allowed"},
		{"an upgrade where methods are written", upgraded(get("read.example:80", "/public/x")), "upgrade-not-allowed"},
		{"an upgrade that the rule takes", upgraded(get("ws.example:80", "/")), "allow"},
		{"a tunnel where only plain requests are allowed", upgraded(tunnel(checkout, "ws.example:80")), "method-not-allowed"},
		{"an upgrade under a rule that asks for nothing", upgraded(get("plain.example:80", "/")), "upgrade-not-allowed"},
		{"any path under a plain rule", get("plain.example:80", "/a/../b"), "allow"},
		{"a name that is only resolved", tunnel(checkout, "name.example:443"), "not-on-allowlist"},
		{"a name that is only resolved, on another port", tunnel(checkout, "name.example:80"), "not-on-allowlist"},
		{"the port of a rule that only resolves, beside one that connects", tunnel(checkout, "both.example:53"), "port-not-allowed"},
		{"the rule that connects", tunnel(checkout, "both.example:443"), "allow"},
		{"the method counts before the date", tunnel(checkout, "mixed.example:443"), "method-not-allowed"},
		{"no rule at all", tunnel(checkout, "none.example:443"), "not-on-allowlist"},
	})
	if got, want := p.Decide(tunnel(checkout, "port.example:443")).AllowedPorts(), "8443, 9000-9001"; got != want {
		t.Errorf("allowed ports %q, want %q", got, want)
	}
	if got, want := p.Decide(tunnel(checkout, "old.example:80")).AllowedPorts(), "443"; got != want {
		t.Errorf("allowed ports %q, want %q", got, want)
	}
	if got := p.Decide(tunnel(checkout, "none.example:443")).AllowedPorts(); got != "" {
		t.Errorf("allowed ports of an unknown host %q, want none", got)
	}
	if got, want := p.Decide(tunnel(checkout, "both.example:53")).AllowedPorts(), "443"; got != want {
		t.Errorf("allowed ports %q, want %q: a name that is only resolved has none", got, want)
	}
}

func upgraded(r Request) Request {
	r.Upgrade = MustUpgrade
	return r
}

func mayUpgrade(r Request) Request {
	r.Upgrade = MayUpgrade
	return r
}

// TestAnOptionalUpgrade checks that an optional upgrade is dropped if no rule allows it,
// and that it is never the reason of a denial.
func TestAnOptionalUpgrade(t *testing.T) {
	both := []Rule{
		rule("two.example port 80", named("plain")),
		rule("two.example port 80", methods("POST"), paths("/exec/**"), upgrade, named("upgrade")),
	}
	reversed := []Rule{both[1], both[0]}
	reversed[0].Host, reversed[1].Host = must(ParseHostPattern("reversed.example")), must(ParseHostPattern("reversed.example"))
	p := policyOf(t, entryOf(checkout, allow(
		rule("plain.example port 80"),
		rule("read.example port 80", methods("GET"), paths("/public/**")),
		rule("ws.example port 80", methods("GET"), upgrade),
		rule("*.wild.example port 1-65535", upgrade),
		rule("a.wild.example port 80", named("exact")),
		rule("strict.example", methods("GET"), func(r *Rule) { r.TLS = TLSOff }, named("clear")),
		rule("strict.example", upgrade, named("strict")),
	), allow(both...), allow(reversed...), deny(rule("no.wild.example"))), entryOf(builder, observe(now().Add(1)), allow(rule("plain.example port 80"))))
	post := func(dest, path string) Request { return plain(checkout, "POST", dest, path) }
	get := func(dest, path string) Request { return plain(checkout, "GET", dest, path) }
	observed := plain(builder, "GET", "plain.example:80", "/")
	elsewhere := plain(builder, "GET", "new.example:80", "/")
	for _, c := range []struct {
		why       string
		req       Request
		may, must string
		becomes   Upgrade // Upgrade of the decision for MayUpgrade
	}{
		{"a plain rule", get("plain.example:80", "/"), "allow", "upgrade-not-allowed", NoUpgrade},
		{"a rule with a method and a path", get("read.example:80", "/public/x"), "allow", "upgrade-not-allowed", NoUpgrade},
		{"another method", post("read.example:80", "/public/x"), "method-not-allowed", "upgrade-not-allowed", NoUpgrade},
		{"another path", get("read.example:80", "/x"), "path-not-allowed", "upgrade-not-allowed", NoUpgrade},
		{"another method of a rule for upgrades", post("ws.example:80", "/"), "method-not-allowed", "method-not-allowed", NoUpgrade},
		{"a rule for upgrades", get("ws.example:80", "/"), "allow", "allow", MustUpgrade},
		{"the rule for upgrades of two", post("two.example:80", "/exec/x"), "allow by upgrade", "allow by upgrade", MustUpgrade},
		{"the other one", post("two.example:80", "/"), "allow by plain", "path-not-allowed", NoUpgrade},
		{"the rule for upgrades, written first", post("reversed.example:80", "/exec/x"), "allow by upgrade", "allow by upgrade", MustUpgrade},
		{"the other one, written last", get("reversed.example:80", "/exec/x"), "allow by plain", "method-not-allowed", NoUpgrade},
		{"a wildcard for upgrades beside an exact rule", get("a.wild.example:80", "/"), "allow", "allow", MustUpgrade},
		{"a deny rule", get("no.wild.example:80", "/"), "denied-by-rule", "denied-by-rule", NoUpgrade},
		{"TLS asked for by the rule for upgrades only", get("strict.example:443", "/"), "allow by clear", "not-tls", NoUpgrade},
		{"another port", get("plain.example:81", "/"), "port-not-allowed", "port-not-allowed", NoUpgrade},
		{"no rule", get("none.example:80", "/"), "not-on-allowlist", "not-on-allowlist", NoUpgrade},
		{"observed, a plain rule", observed, "allow", "observe upgrade-not-allowed", NoUpgrade},
		{"observed, no rule", elsewhere, "observe not-on-allowlist", "observe not-on-allowlist", NoUpgrade},
	} {
		d := p.Decide(mayUpgrade(c.req))
		if got := answer(d); got != c.may || d.Upgrade != c.becomes {
			t.Errorf("%s: %s with upgrade %d, want %s with %d", c.why, got, d.Upgrade, c.may, c.becomes)
		}
		if got := answer(p.Decide(upgraded(c.req))); got != c.must {
			t.Errorf("%s: %s if it must be an upgrade, want %s", c.why, got, c.must)
		}
	}
}

// TestPathsAreMatchedRaw checks that paths are compared byte for byte, without decoding
// escapes.
func TestPathsAreMatchedRaw(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(rule("a.example port 80", paths("/public/**")))))
	for path, want := range map[string]string{
		"/public/x": "allow", "/public/my%20file": "allow", "/public/%c3%a9": "allow", "/public/...": "allow", "/public/.x": "allow", "/public/x/": "allow",
		"/PUBLIC/x": "path-not-allowed", "/%70ublic/x": "path-not-allowed", "/public": "path-not-allowed", "/publicx": "path-not-allowed", "/": "path-not-allowed", Asterisk: "path-not-allowed",

		"/public/../admin": "", "/public/./x": "", "/public/..": "", "/public/.": "", "/public/..%2fadmin": "", "/public/%2e%2e/admin": "", "/public/%2E%2E/admin": "",
		"/public//x": "", "//public/x": "", "/public/x;y": "", "/public/x%3by": "", `/public\x`: "", "/public/x%5cy": "", "/public/x\x00": "", "/public/%00": "", "/public/%": "", "/public/%2": "", "/public/%zz": "", "/public/%252f": "",
		"/public/x y": "", "/public/\xc3\xa9": "", "/public/\x7f": "", "/public/%0d%0a": "", "/public/..%20/admin": "", "/public/.%20%20/x": "", "public/x": "", "": "", "**": "", "*/": "",
	} {
		if want == "" {
			want = "malformed-target"
		}
		if got := answer(p.Decide(plain(checkout, "GET", "a.example:80", path))); got != want {
			t.Errorf("path %q: %s, want %s", path, got, want)
		}
	}
	for in, ok := range map[string]bool{
		"/": true, "/*": true, "/**": true, "/a": true, "/a/*": true, "/a/**": true, "/a%20b": true,
		"": false, "a": false, "**": false, "/a*": false, "/*/a": false, "/a/***": false, "/a?b": false, "/a#b": false, "/a/../b": false, "//": false, "/a;b": false, `/a\b`: false, "/%2e": false,
	} {
		pattern, err := ParsePathPattern(in)
		if (err == nil) != ok || ok && pattern.String() != in || !ok && pattern != (PathPattern{}) {
			t.Errorf("ParsePathPattern(%q) = %q, %v, want accepted: %t", in, pattern, err, ok)
		}
	}
	if (PathPattern{}).matches("/") || (PathPattern{}).matches("") {
		t.Error("the zero path pattern matches something")
	}
}

// TestDenyBeatsAllowWhereverItIsWritten checks that a deny rule beats every allow rule,
// whichever entry has it.
func TestDenyBeatsAllowWhereverItIsWritten(t *testing.T) {
	p := policyOf(t,
		entryOf(checkout,
			allow(rule("**.example port 443,22"), rule("gist.example"), rule("8.8.0.0/16"), rule("10.20.0.0/16"), rule("::/0")),
			deny(rule("gist.example"), rule("*.one.example"), rule("ssh.example port 22"), rule("8.8.4.0/24"))),
		entryOf("everyone of prod.example", deny(rule("**.many.example"), rule("10.20.9.0/24"))))
	checkRows(t, p, []row{
		{"an exact name", tunnel(checkout, "gist.example:443"), "denied-by-rule"},
		{"on every port", tunnel(checkout, "gist.example:9999"), "denied-by-rule"},
		{"in plain HTTP", plain(checkout, "GET", "gist.example:443", "/"), "denied-by-rule"},
		{"in capitals with a final dot", tunnel(checkout, "GIST.example.:443"), "denied-by-rule"},
		{"a name below it is another", tunnel(checkout, "a.gist.example:443"), "allow"},
		{"*.", tunnel(checkout, "a.one.example:443"), "denied-by-rule"},
		{"*. is one label", tunnel(checkout, "a.b.one.example:443"), "allow"},
		{"the apex is another", tunnel(checkout, "one.example:443"), "allow"},
		{"**. of a less specific entry", tunnel(checkout, "a.b.many.example:443"), "denied-by-rule"},
		{"the denied port", tunnel(checkout, "ssh.example:22"), "denied-by-rule"},
		{"another port", tunnel(checkout, "ssh.example:443"), "allow"},
		{"a range inside an allowed one", tunnel(checkout, "8.8.4.4:443"), "denied-by-rule"},
		{"mapped", tunnel(checkout, "[::ffff:8.8.4.4]:443"), "denied-by-rule"},
		{"through NAT64", tunnel(checkout, "[64:ff9b::808:404]:443"), "denied-by-rule"},
		{"NAT64 of the neighbour of a denied address", tunnel(checkout, "[64:ff9b::808:808]:443"), "allow"},
		{"the neighbour of a denied address", tunnel(checkout, "8.8.8.8:443"), "allow"},
		{"a private range", tunnel(checkout, "10.20.9.1:443"), "denied-by-rule"},
		{"an address outside the private range", tunnel(checkout, "10.20.8.1:443"), "allow"},
	})
}
