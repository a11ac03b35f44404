package allowlist

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestHostPatternsHaveOneSpelling checks which host patterns are accepted, and what the
// errors for others suggest.
func TestHostPatternsHaveOneSpelling(t *testing.T) {
	for _, row := range []struct{ in, help string }{
		{"api.example", ""},
		{"*.api.example", ""},
		{"**.api.example", ""},
		{"xn--bcher-kva.example", ""},
		{"_sip._tcp.voice.example", ""},
		{"**.github.io", ""},     // a private suffix, for which the linter has a warning
		{"**.amazonaws.com", ""}, // above a private suffix, likewise
		{"*.internal", ""},
		{"com", ""}, // the name itself belongs to one owner

		{"*", "write a name, *.name for one label below it, or **.name for one or more"},
		{"**", "write a name, *.name"},
		{"", "write a name, *.name"},
		{"*.", "write a name, *.name"},
		{"a.*.b", "write a name, *.name"},
		{"*x.example", "write a name, *.name"},
		{"***.example", "write a name, *.name"},
		{"*.*.example", "write a name, *.name"},
		{"API.example", `write "api.example"`},
		{"*.API.example", `write "*.api.example"`},
		{"api.example.", `write "api.example"`},
		{"**.api.example.", `write "**.api.example"`},
		{"bücher.example", `write "xn--bcher-kva.example"`},
		{"*.bücher.example", `write "*.xn--bcher-kva.example"`},
		{"10.0.0.1", "write cidr: 10.0.0.1/32"},
		{"2001:db8::1", "write cidr: 2001:db8::1/128"},
		{"*.10.0.0.1", "write cidr: 10.0.0.1/32"},
		{"https://api.example/", "write only that, without scheme"},
		{"api.example:443", "the port in ports"},
		{"api..example", "malformed host"},
		{"127.1", "malformed host"},
		{"xn--a.example", "malformed host"},

		{"*.com", "public suffix com"},
		{"**.co.uk", "public suffix co.uk"},
		{"*.xn--p1ai", "public suffix xn--p1ai"},
		{"**.ck", "public suffix ck"}, // the list has *.ck, so anybody can register a name below ck
		{"*.kawasaki.jp", "public suffix kawasaki.jp"},
		{"**.x.ck", "public suffix x.ck"},
	} {
		p, err := ParseHostPattern(row.in)
		switch {
		case row.help == "" && (err != nil || p.String() != row.in || p.IsZero()):
			t.Errorf("ParseHostPattern(%q) = %q, %v, want itself", row.in, p, err)
		case row.help != "" && (err == nil || !strings.Contains(err.Error(), row.help) || !p.IsZero()):
			t.Errorf("ParseHostPattern(%q) = %q, %v, want %q", row.in, p, err, row.help)
		}
	}
}

// TestIdentityPatternsHaveOneSpelling checks which identity patterns are accepted, and
// what the errors for others suggest.
func TestIdentityPatternsHaveOneSpelling(t *testing.T) {
	deep := "spiffe://td" + strings.Repeat("/a", maxSegments)
	for _, row := range []struct{ in, help string }{
		{checkout, ""},
		{"spiffe://prod.example/ns/ci/sa/*", ""},
		{"spiffe://prod.example/**", ""},
		{"spiffe://prod.example/*", ""},
		{deep, ""},
		{deep + "/**", ""},

		{"spiffe://prod.example", "write spiffe://prod.example/** for all of its identities"},
		{"spiffe://*/ns/a", "the trust domain is always literal"},
		{"spiffe://*.example/**", "the trust domain is always literal"},
		{"spiffe://td/*/a", "only the last segment"},
		{"spiffe://td/a*", "only the last segment"},
		{"spiffe://td/**/**", "only the last segment"},
		{"spiffe://td/***", "only the last segment"},
		{deep + "/a", "more than 32 segments"},
		{"", "not a SPIFFE ID"},
		{"/**", "not a SPIFFE ID"},
		{"spiffe:///**", "not a SPIFFE ID"},
		{"https://td/a", "not a SPIFFE ID"},
		{"spiffe://TD/a", "not a SPIFFE ID"},
		{"spiffe://td:443/a", "not a SPIFFE ID"},
		{"spiffe://me@td/a", "not a SPIFFE ID"},
		{"spiffe://td/a?b=c", "not a SPIFFE ID"},
		{"spiffe://td/a/../b", "not a SPIFFE ID"},
		{"spiffe://td//a", "not a SPIFFE ID"},
		{"spiffe://td/a/", "not a SPIFFE ID"},
		{"spiffe://td/a//*", "not a SPIFFE ID"},
		{"spiffe://td/%2f", "not a SPIFFE ID"},
		{"spiffe://td/ä", "not a SPIFFE ID"},
		{"spiffe://td/" + strings.Repeat("a", 2048), "longer than 2048 bytes"},
	} {
		p, err := ParseIdentityPattern(row.in)
		switch {
		case row.help == "" && (err != nil || p.String() != row.in || p.IsZero()):
			t.Errorf("ParseIdentityPattern(%q) = %q, %v, want itself", row.in, p, err)
		case row.help != "" && (err == nil || !strings.Contains(err.Error(), row.help) || !p.IsZero()):
			t.Errorf("ParseIdentityPattern(%.80q) = %q, %v, want %q", row.in, p, err, row.help)
		}
	}
}

// TestIdentityPatternMatchesWholeSegments checks that an identity pattern matches whole
// segments and one trust domain.
func TestIdentityPatternMatchesWholeSegments(t *testing.T) {
	const known, unknown = "allow", "identity-unknown"
	for _, row := range []struct{ pattern, id, want string }{
		{"spiffe://td/ns/a", "spiffe://td/ns/a", known},
		{"spiffe://td/ns/a", "spiffe://td/ns/ab", unknown},
		{"spiffe://td/ns/a", "spiffe://td/ns/a/b", unknown},
		{"spiffe://td/ns/a", "spiffe://td/ns/A", unknown},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a/b", known},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a", unknown},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a/b/c", unknown},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/ab/c", unknown},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a/b/c", known},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a", unknown},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/ab/c", unknown},
		{"spiffe://td/*", "spiffe://td/a", known},
		{"spiffe://td/*", "spiffe://td/a/b", unknown},
		{"spiffe://td/**", "spiffe://td/a/b", known},
		{"spiffe://td/**", "spiffe://td.evil/a", unknown},
		{"spiffe://td/**", "spiffe://evil.td/a", unknown},
		{"spiffe://td/**", "spiffe://td" + strings.Repeat("/a", 900), known},
		{"spiffe://td/*", "spiffe://td" + strings.Repeat("/a", 900), unknown},
		{"spiffe://td" + strings.Repeat("/a", 32) + "/*", "spiffe://td" + strings.Repeat("/a", 33), known},
		{"spiffe://td/**", "spiffe://td", "identity-invalid"},
		{"everyone of td", "spiffe://td/a", unknown}, // no other entry names it, and unlisted is not set
	} {
		p := policyOf(t, entryOf(row.pattern, allow(rule("api.example"))))
		if got := answer(p.Decide(tunnel(row.id, "api.example:443"))); got != row.want {
			t.Errorf("entry %.60s, caller %.60s: %s, want %s", row.pattern, row.id, got, row.want)
		}
	}
}

// TestPatternContainsAnother checks whether one identity pattern matches every identity
// that another one matches.
func TestPatternContainsAnother(t *testing.T) {
	for _, row := range []struct {
		p, q string
		want bool
	}{
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a/b", true},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a/*", true},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a/**", true},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a/b/**", true},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/a", false},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/ab", false},
		{"spiffe://td/ns/a/**", "spiffe://td/ns/**", false},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a/b", true},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a/b/c", false},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a/**", false},
		{"spiffe://td/ns/a/*", "spiffe://td/ns/a/b/*", false},
		{"spiffe://td/ns/a", "spiffe://td/ns/a", true},
		{"spiffe://td/ns/a", "spiffe://td/ns/a/b", false},
		{"spiffe://td/**", "spiffe://td.evil/a", false},
	} {
		if got := must(ParseIdentityPattern(row.p)).Contains(must(ParseIdentityPattern(row.q))); got != row.want {
			t.Errorf("%s contains %s: %t, want %t", row.p, row.q, got, row.want)
		}
	}
	everyone := EveryonePattern(spiffeid.RequireTrustDomainFromString("td"))
	if !everyone.Contains(must(ParseIdentityPattern("spiffe://td/**"))) || everyone.Contains(must(ParseIdentityPattern("spiffe://td.evil/a"))) {
		t.Error("everyone of td contains other identities than those of td")
	}
	if must(ParseIdentityPattern("spiffe://td/ns/**")).Contains(everyone) {
		t.Error("a namespace contains everyone")
	}
}

func TestPortRanges(t *testing.T) {
	for in, want := range map[string]string{
		"443": "443", "1": "1", "65535": "65535", "8000-8999": "8000-8999", "80-80": "80",
		"": "", "0": "", "0-1": "", "1-0": "", "9-8": "", "65536": "", "1-65536": "", "-": "", "1-": "", "-1": "", "1-2-3": "", "080": "", "+1": "", "a": "", " 1": "",
	} {
		r, err := ParsePortRange(in)
		if (err == nil) != (want != "") || err == nil && r.String() != want {
			t.Errorf("ParsePortRange(%q) = %s, %v, want %q", in, r, err, want)
		}
	}
	if _, err := ParsePortRange("9-8"); err == nil || !strings.Contains(err.Error(), `write "8-9"`) {
		t.Errorf("an empty range: %v, want the form that would match", err)
	}
}

func FuzzParseHostPattern(f *testing.F) {
	for _, s := range []string{"api.example", "*.api.example", "**.co.uk", "*.*.x", "*.10.0.0.1", "**.ck", "Bücher.example", "*.xn--a"} {
		f.Add(s, "a.api.example")
	}
	f.Fuzz(func(t *testing.T, s, name string) {
		p, err := ParseHostPattern(s)
		if err != nil {
			if !p.IsZero() {
				t.Fatalf("got %q with error %v", p, err)
			}
			return
		}
		if p.String() != s {
			t.Fatalf("ParseHostPattern(%q) = %q: two spellings", s, p)
		}
		host, err := ParseHost(name)
		if err != nil || host.IsAddr() {
			return
		}
		policy := policyOf(t, Entry{Pattern: must(ParseIdentityPattern(checkout)), Allow: []Rule{{Host: p}}})
		req := tunnel(checkout, "a.example:443")
		req.Dest.Host = host
		if got, want := policy.Decide(req).Allowed(), hostMatches(s, host.String()); got != want {
			t.Fatalf("pattern %q, name %q: %t, want %t", s, host, got, want)
		}
	})
}

func FuzzParseIdentityPattern(f *testing.F) {
	for _, s := range []string{checkout, "spiffe://td/**", "spiffe://td/a/*", "spiffe://td", "spiffe://*/a", "spiffe://td/a//*"} {
		f.Add(s, "spiffe://td/a/b")
	}
	f.Fuzz(func(t *testing.T, s, caller string) {
		p, err := ParseIdentityPattern(s)
		if err != nil {
			if !p.IsZero() {
				t.Fatalf("got %q with error %v", p, err)
			}
			return
		}
		if p.String() != s {
			t.Fatalf("ParseIdentityPattern(%q) = %q: two spellings", s, p)
		}
		id, err := spiffeid.FromString(caller)
		if err != nil || id.Path() == "" {
			return
		}
		policy := policyOf(t, Entry{Pattern: p, Allow: []Rule{rule("a.example")}})
		req := tunnel(checkout, "a.example:443")
		req.ID = id
		if got, want := policy.Decide(req).Allowed(), idMatches(s, caller); got != want {
			t.Fatalf("pattern %q, caller %q: %t, want %t", s, caller, got, want)
		}
	})
}
