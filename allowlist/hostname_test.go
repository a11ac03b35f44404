package allowlist

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// wireName returns the wire form of a name whose labels contain no dots or escapes.
func wireName(text string) []byte {
	var wire []byte
	for label := range strings.SplitSeq(text, ".") {
		wire = append(append(wire, byte(len(label))), label...)
	}
	return append(wire, 0)
}

// TestHostOfName checks that HostOfName returns the same as ParseHost for the name of a
// host, and for every other name a text whose dots separate labels.
func TestHostOfName(t *testing.T) {
	for _, text := range []string{"api.example", "API.Example", "_sip._tcp.a-1.example", "localhost", "xn--bcher-kva.example"} {
		got, err := HostOfName(wireName(text))
		if want := must(ParseHost(text)); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for wire, want := range map[string]string{
		"\x011\x040/25\x012\x07Example\x00": `1.0\04725.2.example`,
		"\x0bfoo.example\x03com\x00":        `foo\046example.com`,
		"\x01\\\x01\x00\x00":                `\092.\000`,
		"\x04\\046\x01x\x00":                `\092046.x`,
		"\x03192\x010\x012\x011\x00":        "192.0.2.1",
		"\x03-a-\x04xn--\x00":               "-a-.xn--",
		"\x02\xff\xc3\x00":                  `\255\195`,
	} {
		got, err := HostOfName([]byte(wire))
		if err != nil || got.String() != want || got.IsAddr() {
			t.Errorf("%q: %v, %v; want %s", wire, got, err, want)
		}
	}
	for _, wire := range []string{"", "\x00", "\x01a", "\x01a\x00\x00", "\x02a\x00", "\x40" + strings.Repeat("a", 64) + "\x00", "\xc0\x0c", strings.Repeat("\x01a", 128) + "\x00"} {
		if got, err := HostOfName([]byte(wire)); !errors.Is(err, ErrHost) || !got.IsZero() {
			t.Errorf("%q: %v, %v", wire, got, err)
		}
	}
}

// FuzzHostOfName checks that two names have the same host if and only if they are equal
// but for the case of letters.
func FuzzHostOfName(f *testing.F) {
	f.Add([]byte("\x03a.b\x00"), []byte("\x01a\x01b\x00"))
	f.Add([]byte("\x04\\046\x00"), []byte("\x01.\x00"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		one, err1 := HostOfName(a)
		two, err2 := HostOfName(b)
		if err1 != nil || err2 != nil {
			return
		}
		if same := slices.Equal(lower(a), lower(b)); same != (one == two) {
			t.Errorf("%q is %s, %q is %s", a, one, b, two)
		}
	})
}

func lower(name []byte) []byte {
	out := slices.Clone(name)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return out
}

// TestAliasesThatMayBeLookedUp checks that an alias to a special name is followed only if the name
// is allowed by itself, and that rules for a suffix decide about an alias to a name that
// no host can have.
func TestAliasesThatMayBeLookedUp(t *testing.T) {
	p := policyOf(t, entryOf(checkout, allow(rule("api.example"), rule("printer.local")), deny(rule("**.evil.example"))))
	tunnel := p.Decide(tunnel(checkout, "api.example:443"))
	name := p.DecideName(NameRequest{ID: tunnel.ID, Proof: tunnel.Proof, Host: tunnel.Dest.Host, Type: TypeA, Time: tunnel.Time})
	for text, want := range map[string]Reason{
		"cdn.example": NoReason, "printer.local": NoReason, "a/b.example": NoReason,
		"a/b.evil.example": DeniedByRule, "x.y z.evil.example": DeniedByRule,
	} {
		hop := must(HostOfName(wireName(text)))
		if one, two := tunnel.CheckFollow(hop, false), name.CheckFollow(hop, false); one != want || two != want {
			t.Errorf("%s: %q for a tunnel, %q for a query; want %q", text, one, two, want)
		}
	}
	for _, text := range []string{"other.local", "single", "x.onion", "1.2.0.192.in-addr.arpa"} {
		hop := must(HostOfName(wireName(text)))
		if tunnel.CheckFollow(hop, false) == NoReason || name.CheckFollow(hop, false) == NoReason || tunnel.CheckHop(hop, false) != NoReason {
			t.Errorf("%s would be asked for", text)
		}
	}
}
