package allowlist

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// TestAHostHasOneCanonicalSpelling checks that every accepted spelling of a host becomes
// the same canonical text.
func TestAHostHasOneCanonicalSpelling(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
	for _, row := range []struct{ why, in, want string }{
		{"lower case is itself", "allowed.example", "allowed.example"},
		{"ASCII case is folded", "ALLOWED.Example", "allowed.example"},
		{"one final dot is stripped", "allowed.example.", "allowed.example"},
		{"an underscore is tolerated", "_svc._tcp.wild.example", "_svc._tcp.wild.example"},
		{"digits may begin a label", "3com.example", "3com.example"},
		{"two hyphens inside a label are ordinary", "r3---sn-abc.example", "r3---sn-abc.example"},
		{"a single label is a name", "localhost", "localhost"},
		{"a valid A-label stays", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"an A-label folds its case", "XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{"a label of 63 bytes", label63 + ".example", label63 + ".example"},
		{"a name of 253 bytes", name253, name253},
		{"a name of 253 bytes and a final dot", name253 + ".", name253},
		{"a dotted quad", "192.0.2.1", "192.0.2.1"},
		{"IPv6 in its long form", "2001:0DB8:0:0:0:0:0:1", "2001:db8::1"},
		{"IPv4-mapped is unmapped", "::ffff:127.0.0.1", "127.0.0.1"},
		{"IPv4-mapped in hex is unmapped", "::ffff:7f00:1", "127.0.0.1"},
		{"a number that is not the last label", "1.2.3.4.example", "1.2.3.4.example"},
	} {
		t.Run(row.why, func(t *testing.T) {
			host, err := ParseHost(row.in)
			if err != nil || host.String() != row.want {
				t.Errorf("ParseHost(%q) = %q, %v, want %q", row.in, host, err, row.want)
			}
			if again := must(ParseHost(host.String())); again != host {
				t.Errorf("ParseHost(%q) is another value", host)
			}
		})
	}
}

// badHosts returns spellings that no door may accept as a host, by class.
func badHosts() map[string][]string {
	return map[string][]string{
		"dots":          {"", ".", "..", "allowed.example..", ".allowed.example", "a..wild.example"},
		"brackets":      {"[allowed.example]", "[127.0.0.1]", "[::1", "::1]", "[[x]]"},
		"not ASCII":     {"ａllowed.example", "allowed。example", "al\u00adlowed.example", "al\u200blowed.example", "ﬁle.example", "①.example", "\u212aelvin.example", "аllowed.example", "bücher.example", "allowed.example\xff"},
		"A-labels":      {"xn--allowed-.example", "xn--.example", "xn--a.example", "xn--0.example", "xn--99zzzz.example", "allowed.xn--a"},
		"escapes":       {"allowed%2eexample", "allowed.example%00", "%61llowed.example"},
		"lengths":       {strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 126) + "bc", strings.Repeat("a.", 4<<10), strings.Repeat("a", 100<<10), strings.Repeat("1.", 50<<10)},
		"hyphens":       {"-allowed.example", "allowed-.example", "allowed.-example", "allowed.example-"},
		"numbers":       {"2130706433", "0x7f000001", "0X7F000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.01", "127.0.0.1.", "1.2.3.4.5", "256.1.1.1", "0x", "a.0x", "a.0xfe", "allowed.123", "allowed.123.", "127.0.0.0x1", "1.2.3.4..", "00.0.0.0"},
		"zones":         {"fe80::1%eth0", "fe80::1%25eth0", "::ffff:1.2.3.4%1", "1.2.3.4%1"},
		"broken colons": {"::1::", "1:2", ":", "1:2:3:4:5:6:7:8:9", "::ffff:1.2.3.04"},
	}
}

func TestBadSpellingsOfAHostAreRefused(t *testing.T) {
	for class, hosts := range badHosts() {
		for _, in := range hosts {
			if host, err := ParseHost(in); !errors.Is(err, ErrHost) || host != (Host{}) {
				t.Errorf("%s: ParseHost(%.80q) = %q, %v, want the zero value and ErrHost", class, in, host, err)
			}
			if dest, err := ParseDestination(in + ":443"); err == nil {
				t.Errorf("%s: ParseDestination(%.80q) = %q, want an error", class, in+":443", dest)
			}
		}
	}
}

// TestEveryByteInAHost checks that of all bytes only letters, digits, hyphen and
// underscore are accepted in a label, and a colon only in an address.
func TestEveryByteInAHost(t *testing.T) {
	for c := range 256 {
		name := "a" + string([]byte{byte(c)}) + "b.example"
		_, err := ParseHost(name)
		want := strings.IndexByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", byte(c)) >= 0
		if (err == nil) != want {
			t.Errorf("ParseHost(%q): %v, want accepted: %t", name, err, want)
		}
	}
}

func TestADestinationHasAHostAndAPort(t *testing.T) {
	for _, row := range []struct {
		why, in, want string
		err           error
	}{
		{"a name and a port", "Allowed.example.:443", "allowed.example:443", nil},
		{"an IPv4 address", "192.0.2.1:80", "192.0.2.1:80", nil},
		{"an IPv6 address in brackets", "[2606:4700:4700::1111]:443", "[2606:4700:4700::1111]:443", nil},
		{"a mapped address is an IPv4 address", "[::ffff:8.8.8.8]:443", "8.8.8.8:443", nil},
		{"the first port", "a.example:1", "a.example:1", nil},
		{"the last port", "a.example:65535", "a.example:65535", nil},

		{"no port", "allowed.example", "", ErrTarget},
		{"an empty target", "", "", ErrTarget},
		{"a star", "*", "", ErrTarget},
		{"a slash", "/", "", ErrTarget},
		{"an empty host", ":443", "", ErrHost},
		{"two ports", "a.example:443:22", "", ErrTarget},
		{"an unbracketed address", "::1:443", "", ErrTarget},
		{"a longer unbracketed address", "2001:db8::1:443", "", ErrTarget},
		{"a name in brackets", "[allowed.example]:443", "", ErrHost},
		{"an IPv4 address in brackets", "[127.0.0.1]:443", "", ErrHost},
		{"two pairs of brackets", "[[::1]]:443", "", ErrHost},
		{"text behind the bracket", "[::1]x:443", "", ErrTarget},
		{"text before the bracket", "x[::1]:443", "", ErrTarget},
		{"no closing bracket", "[::1:443", "", ErrTarget},
		{"no port behind the bracket", "[::1]", "", ErrTarget},
		{"a zone", "[fe80::1%eth0]:443", "", ErrHost},
		{"an escaped zone", "[fe80::1%25eth0]:443", "", ErrHost},
		{"a scheme", "https://allowed.example:443", "", ErrTarget},
		{"a path", "allowed.example:443/", "", ErrTarget},
		{"userinfo", "me@allowed.example:443", "", ErrTarget},
		{"a name that is not ASCII", "ａllowed.example:443", "", ErrHost},
		{"an empty port", "a.example:", "", ErrPort},
		{"port 0", "a.example:0", "", ErrPort},
		{"a signed port", "a.example:+443", "", ErrPort},
		{"a negative port", "a.example:-1", "", ErrPort},
		{"leading zeros", "a.example:00443", "", ErrPort},
		{"65536", "a.example:65536", "", ErrPort},
		{"65979, which is 443 in 16 bits", "a.example:65979", "", ErrPort},
		{"a service name", "a.example:https", "", ErrPort},
		{"a hex port", "a.example:0x1bb", "", ErrPort},
		{"a port of full-width digits", "a.example:４４３", "", ErrPort},
		{"a long port", "a.example:" + strings.Repeat("1", 1<<16), "", ErrPort},
		{"two ports behind a bracket", "[::1]:443:22", "", ErrPort},
	} {
		t.Run(row.why, func(t *testing.T) {
			dest, err := ParseDestination(row.in)
			if !errors.Is(err, row.err) || row.err == nil && (err != nil || dest.String() != row.want) {
				t.Errorf("ParseDestination(%.60q) = %q, %v, want %q, %v", row.in, dest, err, row.want, row.err)
			}
			if err != nil && dest != (Destination{}) {
				t.Errorf("ParseDestination(%.60q) returned %q with an error", row.in, dest)
			}
		})
	}
}

func TestHostOfEqualsTheParser(t *testing.T) {
	for _, text := range []string{"127.0.0.1", "::ffff:127.0.0.1", "2001:db8::1"} {
		if got, want := HostOf(netip.MustParseAddr(text)), must(ParseHost(text)); got != want {
			t.Errorf("HostOf(%s) = %v, want %v", text, got, want)
		}
	}
	if got, want := HostOf(netip.MustParseAddr("fe80::1%eth0")), must(ParseHost("fe80::1")); got != want {
		t.Errorf("HostOf with a zone = %v, want %v", got, want)
	}
	if h := HostOf(netip.Addr{}); !h.IsZero() || h.IsAddr() {
		t.Errorf("the host of no address = %v, want the zero value", h)
	}
}

func FuzzParseHost(f *testing.F) {
	for _, hosts := range badHosts() {
		for _, h := range hosts {
			f.Add(h)
		}
	}
	for _, h := range []string{"allowed.example.", "XN--BCHER-KVA.example", "::ffff:1.2.3.4", "1.2.3.4", "_a.b-c"} {
		f.Add(h)
	}
	f.Fuzz(func(t *testing.T, in string) {
		host, err := ParseHost(in)
		if err != nil {
			if host != (Host{}) {
				t.Fatalf("got %q with error %v", host, err)
			}
			return
		}
		checkHost(t, host)
		if !host.IsAddr() && !strings.EqualFold(strings.TrimSuffix(in, "."), host.String()) {
			t.Fatalf("ParseHost(%q) = %q: more than case and a dot has changed", in, host)
		}
	})
}

// checkHost checks the invariants of every host that a parser returns.
func checkHost(t *testing.T, host Host) {
	t.Helper()
	text := host.String()
	if again, err := ParseHost(text); err != nil || again != host {
		t.Fatalf("ParseHost(%q) = %v, %v: not the host itself", text, again, err)
	}
	if host.IsZero() || text == "" || len(text) > maxName {
		t.Fatalf("%q is no host", text)
	}
	if host.IsAddr() {
		if host.Addr().Is4In6() || host.Addr().Zone() != "" {
			t.Fatalf("%q is not canonical", text)
		}
		return
	}
	if strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		t.Fatalf("%q has bytes that no name has", text)
	}
	last := text[strings.LastIndexByte(text, '.')+1:]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") && strings.Trim(last[2:], "0123456789abcdef") == "" {
		t.Fatalf("%q ends in a number and is not an address", text)
	}
	if _, err := netip.ParseAddr(text); err == nil {
		t.Fatalf("%q is an address and was parsed as a name", text)
	}
}

func FuzzParseDestination(f *testing.F) {
	for _, in := range []string{"Allowed.example.:443", "[::ffff:8.8.8.8]:443", "[::1]:443:22", "::1:443", "x[::1]:1", ":1", "a:", "[fe80::1%25eth0]:443"} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		dest, err := ParseDestination(in)
		if err != nil {
			if dest != (Destination{}) {
				t.Fatalf("got %q with error %v", dest, err)
			}
			if !errors.Is(err, ErrHost) && !errors.Is(err, ErrTarget) && !errors.Is(err, ErrPort) {
				t.Fatalf("the error wraps none of the package's errors: %v", err)
			}
			return
		}
		checkHost(t, dest.Host)
		if dest.Port == 0 {
			t.Fatalf("ParseDestination(%q) has port 0", in)
		}
		if again, err := ParseDestination(dest.String()); err != nil || again != dest {
			t.Fatalf("ParseDestination(%q) = %v, %v: not the destination itself", dest, again, err)
		}
	})
}
