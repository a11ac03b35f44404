package hostile

import (
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
)

// port stands behind a host in a target; fill replaces PORT with the origin's port.
const port = ":PORT"

// targets returns the cases of CONNECT targets that are refused before policy.
func targets(reason allowlist.Reason, all ...string) []scenario {
	var cases []scenario
	for _, target := range all {
		cases = append(cases, refused(reason, connectTo(target))...)
	}
	return cases
}

// within returns host names with each text in the middle of a label.
func within(texts ...string) []string {
	var all []string
	for _, text := range texts {
		all = append(all, "al"+text+"lowed.example"+port)
	}
	return all
}

// name returns a host name of size bytes below wild.example.
func name(size int) string {
	const below = ".wild.example"
	var b strings.Builder
	for size -= len(below); size > 0; {
		label := min(size, 63)
		if size-label == 1 { // a label of one byte less, so that no dot is left at the end
			label--
		}
		b.WriteString(strings.Repeat("a", label))
		size -= label
		if size > 0 {
			b.WriteByte('.')
			size--
		}
	}
	return b.String() + below
}

func hostRows() []row {
	const malformed = allowlist.MalformedTarget
	return []row{
		{"A1", "upper-case letters in the name", "the same as in lower case; only ASCII is folded", []scenario{
			opens(connectTo("ALLOWED.Example"+port), "allowed.example"),
			opens(connectTo("allowed.EXAMPLE"+port), "allowed.example"),
			opens(connectTo("A.Wild.Example"+port), "a.wild.example"),
		}},
		{"A2", "one final dot", "the same as without", []scenario{
			opens(connectTo("allowed.example."+port), "allowed.example"),
			opens("CONNECT allowed.example:PORT HTTP/1.1\r\nHost: Allowed.Example.:PORT\r\n\r\n", "allowed.example"),
			denied(allowlist.NotOnAllowlist, connectTo("wild.example."+port), "wild.example"),
		}},
		{"A3", "two final dots, a leading dot, an empty label", "400", targets(malformed,
			"allowed.example.."+port, ".allowed.example"+port, "a..wild.example"+port, "."+port, ".."+port)},
		{"A4", "brackets around anything but an IPv6 address, or text beside them", "400", targets(malformed,
			"[allowed.example]"+port, "[127.0.0.1]"+port, "[[x]]"+port, "[[::1]]"+port, "[::1]x"+port, "x[::1]"+port, "[::1"+port, "::1]"+port, "[]"+port)},
		{"A5", "the name itself, where the rule allows only the names below it", "denied", []scenario{
			denied(allowlist.NotOnAllowlist, connectTo("wild.example"+port), "wild.example"),
			denied(allowlist.NotOnAllowlist, connectTo("one.example"+port), "one.example"),
			denied(allowlist.NotOnAllowlist, connectTo("a.b.one.example"+port), "a.b.one.example"),
			opens(connectTo("a.one.example"+port), "a.one.example"),
			opens(connectTo("a.b.wild.example"+port), "a.b.wild.example"),
		}},
		{"A6", "names that begin or end like an allowed one", "denied: rules end at dots", []scenario{
			denied(allowlist.NotOnAllowlist, connectTo("xwild.example"+port), "xwild.example"),
			denied(allowlist.NotOnAllowlist, connectTo("allowed.example.evil.test"+port), "allowed.example.evil.test"),
			denied(allowlist.NotOnAllowlist, connectTo("evilallowed.example"+port), "evilallowed.example"),
			denied(allowlist.NotOnAllowlist, connectTo("a.wild.example.evil.test"+port), "a.wild.example.evil.test"),
			denied(allowlist.NotOnAllowlist, connectTo("allowed.exampl"+port), "allowed.exampl"),
			denied(allowlist.DeniedByRule, connectTo("denied.wild.example"+port), "denied.wild.example"),
		}},
		{"A7", "any byte beyond ASCII: full-width letters, other dots, invisible characters, ligatures, look-alikes", "400", targets(malformed,
			slices.Concat(within("\uff4c", "\u3002", "\u00ad", "\u200b", "\ufb01", "\u2460", "\u212a", "\u0430", "\u017f", "\u0130", "\x80", "\xff", "\xc0\xae"),
				[]string{"b\u00fccher.example" + port, "allowed\uff0eexample" + port})...)},
		{"A8", "labels that begin like A-labels (`xn--`), and that decoding and encoding does not reproduce", "400", targets(malformed,
			"xn--allowed-.example"+port, "xn--.example"+port, "xn--a.example"+port, "xn--example-.com"+port, "xn--BCHER-.example"+port, "a.xn--a.wild.example"+port)},
		{"A9", "a valid A-label, in rule and request", "allowed; a rule written with the letters themselves is a policy error that names the A-label", []scenario{
			opens(connectTo("xn--bcher-kva.example"+port), "xn--bcher-kva.example"),
			opens(connectTo("XN--Bcher-KVA.example"+port), "xn--bcher-kva.example"),
			{name: "a rule for b\u00fccher.example", only: noWire, run: func(t *testing.T, _ *gateway) {
				refusesPolicy(t, `{host: "b\u00fccher.example"}`, "xn--bcher-kva.example")
			}},
		}},
		{"A10", "escapes in the host", "400: nothing is unescaped", targets(malformed,
			slices.Concat(within("%6c", "%00", "%2e", "%2E", "%c0%ae", "%"), []string{"allowed%2eexample" + port, "allowed.example%3A443" + port})...)},
		{"A11", "bytes that no host has", "400", slices.Concat(
			targets(malformed, within(`\`, ";", ",", `"`, "<", "|", "^", "`", "{", "}", "*", "~", "!", "$", "&", "'", "(", ")", "=", "+")...),
			targets(allowlist.MalformedRequestLine, within("\t", " ", "\r", "\x00", "\x01", "\x0b", "\x7f")...),
			targets(malformed, "*.wild.example"+port, "**.wild.example"+port, "*"+port))},
		{"A12", "a label of 64 bytes, a name of 254, a label that begins or ends with a hyphen", "400; 63 and 253 pass", slices.Concat(
			targets(malformed, strings.Repeat("a", 64)+".wild.example"+port, name(254)+port, "-a.wild.example"+port, "a-.wild.example"+port, "a.-.wild.example"+port),
			[]scenario{
				opens(connectTo(strings.Repeat("a", 63)+".wild.example"+port), strings.Repeat("a", 63)+".wild.example"),
				opens(connectTo(name(253)+port), name(253)),
				opens(connectTo(name(253)+"."+port), name(253)),
				opens(connectTo("r3---sn-a.wild.example"+port), "r3---sn-a.wild.example"),
			})},
		{"A13", "underscores, as in names of services", "tolerated", []scenario{
			opens(connectTo("_svc._tcp.wild.example"+port), "_svc._tcp.wild.example"),
		}},
		{"A14", "localhost and other names of one label", "denied unless a rule names them; no search list completes a name", []scenario{
			denied(allowlist.NotOnAllowlist, connectTo("localhost"+port), "localhost"),
			denied(allowlist.NotOnAllowlist, connectTo("allowed"+port), "allowed"),
			denied(allowlist.NotOnAllowlist, connectTo("a"+port), "a"),
		}},
		{"A15", "no host at all", "400", targets(malformed, port, "*", "/", ":", "@"+port, "allowed.example")},
		{"A16", "a host of 8 kB or 100 kB", "400 or 431; memory is bounded by the limit of a head", slices.Concat(
			targets(malformed, strings.Repeat("a", 8<<10)+port, strings.Repeat("a.", 4<<10)+"wild.example"+port),
			targets(allowlist.HeadTooLarge, strings.Repeat("a", 100<<10)+port))},
	}
}

// refusesPolicy checks that a policy with the rule is refused, with an error that has the
// text says.
func refusesPolicy(t *testing.T, rule, says string) {
	t.Helper()
	_, err := parsePolicy("version: 1\nidentities:\n  - id: " + id("builder") + "\n    allow:\n      - " + rule + "\n")
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("the policy's error is %v, want it to say %q", err, says)
	}
}
