package listen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

const v2Signature = "\r\n\r\n\x00\r\nQUIT\n"

// v2 returns a header of version 2, with rest behind its length.
func v2(command, family byte, rest string) string {
	b := append([]byte(v2Signature), command, family)
	return string(binary.BigEndian.AppendUint16(b, uint16(len(rest)))) + rest
}

const (
	v1Header = "PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\r\n"
	v4Pair   = "\xc6\x33\x64\x07\xc0\x00\x02\x01\x12\x67\x01\xbb"
)

// TestHeaders checks which address each header of the PROXY protocol gives, and which
// headers are errors.
func TestHeaders(t *testing.T) {
	v6Pair := strings.Repeat("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07", 2) + "\x12\x67\x01\xbb"
	for _, row := range []struct{ name, header, want string }{
		{"version 1", v1Header, "198.51.100.7:4711"},
		{"version 1, IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", "[2001:db8::7]:4711"},
		{"version 1, unknown", "PROXY UNKNOWN\r\n", "peer"},
		{"version 1, unknown with addresses", "PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "peer"},
		{"version 2", v2(0x21, 0x11, v4Pair), "198.51.100.7:4711"},
		{"version 2, IPv6", v2(0x21, 0x21, v6Pair), "[2001:db8::7]:4711"},
		{"version 2, mapped IPv4", v2(0x21, 0x21, strings.Repeat("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x07", 2)+"\x12\x67\x01\xbb"), "198.51.100.7:4711"},
		{"version 2 with more", v2(0x21, 0x11, v4Pair+"\x04\x00\x03abc"), "198.51.100.7:4711"},
		{"version 2, local", v2(0x20, 0x00, ""), "peer"},
		{"version 2, unspecified", v2(0x21, 0x00, ""), "peer"},
		{"version 2, unspecified with addresses", v2(0x21, 0x00, v4Pair), "peer"},
		{"version 2, unspecified with more", v2(0x21, 0x00, "\x04\x00\x03abc"), "peer"},
		{"version 2, an unspecified datagram", v2(0x21, 0x02, v4Pair), "error"},
		{"version 2, unspecified, that is cut off", v2(0x21, 0x00, v4Pair)[:20], "error"},
		{"nothing", "", "EOF"},
		{"half of version 1", v1Header[:30], "error"},
		{"half of version 2", v2(0x21, 0x11, v4Pair)[:20], "error"},
		{"a hello instead", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", "error"},
		{"a request instead", "CONNECT a.example:443 HTTP/1.1\r\n\r\n", "error"},
		{"version 1 without an address", "PROXY TCP4\r\n", "error"},
		{"version 1 with a name", "PROXY TCP4 a.example 192.0.2.1 4711 443\r\n", "error"},
		{"version 1 of another family", "PROXY TCP4 2001:db8::7 2001:db8::1 4711 443\r\n", "error"},
		{"version 1 with a bad port", "PROXY TCP4 198.51.100.7 192.0.2.1 65536 443\r\n", "error"},
		{"version 1 that ends with LF alone", "PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\n", "error"},
		{"version 1 that is too long", "PROXY UNKNOWN " + strings.Repeat("x", 107) + "\r\n", "error"},
		{"version 2 with another command", v2(0x22, 0x11, v4Pair), "error"},
		{"version 3", v2(0x31, 0x11, v4Pair), "error"},
		{"version 2 of UDP", v2(0x21, 0x12, v4Pair), "error"},
		{"version 2 of a unix socket", v2(0x21, 0x31, strings.Repeat("s", 216)), "error"},
		{"version 2 that is too short", v2(0x21, 0x11, v4Pair[:8]), "error"},
		{"version 2 that is too long", v2(0x21, 0x11, v4Pair+strings.Repeat("\x00", 5000)), "error"},
	} {
		t.Run(row.name, func(t *testing.T) {
			conn := strings.NewReader(row.header + "hello")
			if row.want == "EOF" || strings.HasPrefix(row.name, "half") || strings.HasSuffix(row.name, "cut off") {
				conn = strings.NewReader(row.header)
			}
			addr, err := readProxyHeader(conn)
			got := addr.String()
			switch {
			case errors.Is(err, io.EOF):
				got = "EOF"
			case err != nil:
				got = "error"
			case !addr.IsValid():
				got = "peer"
			}
			if got != row.want {
				t.Fatalf("got %s (%v), want %s", got, err, row.want)
			}
			if rest, _ := io.ReadAll(conn); err == nil && string(rest) != "hello" {
				t.Errorf("%q is left behind the header", rest)
			}
		})
	}
}

// FuzzHeaders checks that an error comes without an address, and that nothing behind a
// header is read.
func FuzzHeaders(f *testing.F) {
	for _, header := range []string{v1Header, "PROXY UNKNOWN\r\n", v2(0x21, 0x11, v4Pair), v2(0x20, 0, ""), v2(0x21, 0, ""), "GET / HTTP/1.1\r\n"} {
		f.Add([]byte(header))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		conn := bytes.NewReader(b)
		addr, err := readProxyHeader(conn)
		read := len(b) - conn.Len()
		if err != nil && addr.IsValid() || read > proxiedFixed+proxiedMax2 {
			t.Fatalf("%s, %v, %d bytes read", addr, err, read)
		}
		if err != nil {
			return
		}
		again, err := readProxyHeader(bytes.NewReader(b[:read]))
		if again != addr || err != nil {
			t.Fatalf("the header alone is %s, %v, with more behind it %s", again, err, addr)
		}
	})
}

// refusal holds the arguments of a call of Refused.
type refusal struct {
	client netip.AddrPort
	why    allowlist.Reason
	detail string
}

// behind serves a listener whose proxies are the peers in a range.
func behind(t *testing.T, peers string, change func(*rig, *Config)) (*rig, chan refusal) {
	t.Helper()
	refusals := make(chan refusal, 100)
	r := serve(t, func(r *rig, cfg *Config) {
		change(r, cfg)
		cfg.Proxies = []netip.Prefix{netip.MustParsePrefix(peers)}
		cfg.Refused = func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
			refusals <- refusal{client, why, detail}
		}
	})
	return r, refusals
}

// TestCallerHasTheAddressInTheHeader checks that the caller's address is the one in the
// header of a proxy, with and without TLS.
func TestCallerHasTheAddressInTheHeader(t *testing.T) {
	p := newPKI(t)
	for _, header := range []string{v1Header, v2(0x21, 0x11, v4Pair)} {
		r, _ := behind(t, "127.0.0.0/8", func(*rig, *Config) {})
		conn := dialRaw(t, r.Addr())
		send(t, conn, header)
		speak(t, conn)
		if got := (<-r.conns).Caller.Addr.String(); got != "198.51.100.7:4711" {
			t.Errorf("the caller is at %s", got)
		}

		r, _ = behind(t, "127.0.0.1/32", p.withTLS)
		raw := dialRaw(t, r.Addr())
		send(t, raw, header)
		conn = clientOf(t, raw, p)
		speak(t, conn)
		if got := (<-r.conns).Caller.Addr.String(); got != "198.51.100.7:4711" {
			t.Errorf("the caller is at %s", got)
		}
	}
}

// TestALinkLocalProxy checks that a proxy whose address has a zone is found in the
// ranges, which have no zones.
func TestALinkLocalProxy(t *testing.T) {
	l := &Listener{cfg: Config{Proxies: []netip.Prefix{netip.MustParsePrefix("fe80::/64")}}}
	for text, want := range map[string]bool{"fe80::1%eth0": true, "fe80:0:0:1::1%eth0": false} {
		if got := l.behindProxy(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

// TestLocalHeaderKeepsThePeersAddress checks that the caller of a connection with the
// header LOCAL, which a proxy makes for itself, has the proxy's address.
func TestLocalHeaderKeepsThePeersAddress(t *testing.T) {
	r, _ := behind(t, "127.0.0.0/8", func(*rig, *Config) {})
	conn := dialRaw(t, r.Addr())
	send(t, conn, v2(0x20, 0, ""))
	speak(t, conn)
	if got := (<-r.conns).Caller.Addr; got.String() != conn.LocalAddr().String() {
		t.Errorf("the caller is at %s, want %s", got, conn.LocalAddr())
	}
}

// TestHeadersThatAreRefused checks that malformed and missing headers of proxies are
// refused, and that a header of any other peer is no header but makes the handshake
// fail.
func TestHeadersThatAreRefused(t *testing.T) {
	p := newPKI(t)
	for _, row := range []struct {
		name, peers, sent string
		change            func(*rig, *Config)
		handshake         bool // the handshake fails, and no header is refused
	}{
		{"garbage from a proxy", "127.0.0.0/8", strings.Repeat("x", 20), func(*rig, *Config) {}, false},
		{"no header from a proxy", "127.0.0.0/8", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", p.withTLS, false},
		{"two headers", "127.0.0.0/8", v1Header + v1Header, p.withTLS, true},
		{"a header from anybody else", "10.0.0.0/8", v1Header, p.withTLS, true},
		{"a header of version 2 from anybody else", "10.0.0.0/8", v2(0x21, 0x11, v4Pair), p.withTLS, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, refusals := behind(t, row.peers, row.change)
			conn := dialRaw(t, r.Addr())
			send(t, conn, row.sent)
			closed(t, conn)
			if row.handshake {
				if err := <-r.failures; errors.Is(err, io.EOF) {
					t.Errorf("the handshake failed as if nothing had come: %v", err)
				}
				return
			}
			got := <-refusals
			if got.why != allowlist.MalformedHeader || got.client.String() != conn.LocalAddr().String() || !strings.Contains(got.detail, "PROXY") {
				t.Errorf("refused %+v", got)
			}
		})
	}
}

// TestAProxyThatIsSlow checks that a header which does not come in time is refused, and
// that a connection which closes without a byte is not.
func TestAProxyThatIsSlow(t *testing.T) {
	r, refusals := behind(t, "127.0.0.0/8", func(_ *rig, cfg *Config) { cfg.HandshakeTimeout = 50 * time.Millisecond })
	conn := dialRaw(t, r.Addr())
	send(t, conn, v1Header[:20])
	closed(t, conn)
	if got := <-refusals; got.why != allowlist.MalformedHeader {
		t.Errorf("refused %+v", got)
	}
	patient, refused := behind(t, "127.0.0.0/8", func(*rig, *Config) {})
	silent := dialRaw(t, patient.Addr())
	_ = silent.(*net.TCPConn).CloseWrite() // as a port check does
	closed(t, silent)
	if len(refused) != 0 {
		t.Errorf("refused %+v", <-refused)
	}
}

// BenchmarkSizes reads headers with more and more fields behind the addresses. The time
// per byte must not grow with their size.
func BenchmarkSizes(b *testing.B) {
	for size := 256; size <= proxiedMax2; size *= 4 {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			header := v2(0x21, 0x11, v4Pair+strings.Repeat("\x04\x00\x00", (size-len(v4Pair))/3)) // fields that are ignored
			b.SetBytes(int64(len(header)))
			for b.Loop() {
				if _, err := readProxyHeader(strings.NewReader(header)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
