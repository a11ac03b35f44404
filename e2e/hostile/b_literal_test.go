package hostile

import (
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
)

// literal returns the case of a target with an address as host that is denied.
func literal(who, target, host string, reason allowlist.Reason, class allowlist.Class) scenario {
	return ask{name: target + " by " + who, who: who, head: connectTo(target), host: host, reason: reason, class: class}.scenario()
}

// reaches returns the case of a target with an address as host that a rule allows.
func reaches(who, target, host string) scenario {
	return ask{name: target + " by " + who, who: who, head: connectTo(target), host: host, dials: 1}.scenario()
}

func literalRows() []row {
	const (
		malformed = allowlist.MalformedTarget
		unlisted  = allowlist.IPNotOnAllowlist
		special   = allowlist.ResolvedAddressDenied
	)
	return []row{
		{"B1", "numbers that some resolver reads as an IPv4 address: one number, hexadecimal, octal, fewer or more parts, leading zeros, a final dot", "400: where the last label is a number, only four plain decimals are a host", targets(malformed,
			"2130706433"+port, "0x7f000001"+port, "0X7F000001"+port, "0x7f.1"+port, "0177.0.0.1"+port, "127.1"+port, "127.0.1"+port, "127.0.0.01"+port,
			"127.0.0.1."+port, "1.2.3.4.5"+port, "256.1.1.1"+port, "127.0.0.0x1"+port, "0"+port, "0x"+port, "a.0x"+port, "allowed.example.1"+port, "1.2.3"+port, "00.0.0.0"+port)},
		{"B2", "an IPv4-mapped IPv6 address", "it is the IPv4 address", []scenario{
			literal("builder", "[::ffff:127.0.0.1]:443", "127.0.0.1", unlisted, allowlist.Invalid),
			literal("wide", "[::ffff:127.0.0.1]:443", "127.0.0.1", special, allowlist.Loopback),
			literal("wide", "[::ffff:7f00:1]:443", "127.0.0.1", special, allowlist.Loopback),
			literal("wide", "[0:0:0:0:0:FFFF:7F00:0001]:443", "127.0.0.1", special, allowlist.Loopback),
			literal("wide", "[::ffff:a9fe:a9fe]:80", "169.254.169.254", special, allowlist.Metadata),
		}},
		{"B3", "the loopback and unspecified addresses of IPv6, and an IPv4-compatible one", "denied", []scenario{
			literal("builder", "[::1]:443", "::1", unlisted, allowlist.Invalid),
			literal("wide", "[::1]:443", "::1", special, allowlist.Loopback),
			literal("wide", "[0:0:0:0:0:0:0:1]:443", "::1", special, allowlist.Loopback),
			literal("wide", "[::]:443", "::", special, allowlist.Unspecified),
			literal("wide", "[::127.0.0.1]:443", "::7f00:1", special, allowlist.Transition),
			literal("wide", "127.0.0.1:443", "127.0.0.1", special, allowlist.Loopback),
		}},
		{"B4", "an address with a zone", "400, always", targets(malformed,
			"[fe80::1%25eth0]"+port, "[fe80::1%eth0]"+port, "[::1%lo]"+port, "[::1%25lo]"+port, "[::1%]"+port, "127.0.0.1%lo"+port)},
		{"B5", "an IPv6 address without brackets", "400", targets(malformed, "::1:443", "2001:db8::1:443", "::ffff:127.0.0.1:443", "::1", "fe80::1")},
		{"B6", "an IPv6 address that a range names", "allowed, as an IPv4 address would be", []scenario{
			reaches("exact", "[::1]:PORT", "::1"),
			reaches("exact", "127.0.0.1:PORT", "127.0.0.1"),
		}},
		{"B7", "a mapped address in the request, or in the rule", "both mean the IPv4 address", []scenario{
			reaches("exact", "[::ffff:127.0.0.1]:PORT", "127.0.0.1"),
			reaches("mapped", "127.0.0.1:PORT", "127.0.0.1"),
			reaches("mapped", "[::ffff:7f00:1]:PORT", "127.0.0.1"),
		}},
		{"B8", "an address, where the rules name only hosts, or where it is outside the range of a rule", "denied", []scenario{
			literal("builder", "127.0.0.1:PORT", "127.0.0.1", unlisted, allowlist.Invalid),
			literal("builder", "8.8.8.8:443", "8.8.8.8", unlisted, allowlist.Invalid),
			literal("exact", "127.0.0.2:PORT", "127.0.0.2", unlisted, allowlist.Invalid),
			literal("exact", "[::2]:PORT", "::2", unlisted, allowlist.Invalid),
			literal("exact", "127.0.0.1:443", "127.0.0.1", allowlist.PortNotAllowed, allowlist.Invalid),
		}},
		{"B9", "another spelling of the address in the Host field", "400", slices.Concat(
			refusedAs("the IPv4 address behind a mapped one", allowlist.AuthorityMismatch, "CONNECT [::ffff:127.0.0.1]:PORT HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"),
			refusedAs("a mapped one behind the IPv4 address", allowlist.AuthorityMismatch, "CONNECT 127.0.0.1:PORT HTTP/1.1\r\nHost: [::ffff:127.0.0.1]:PORT\r\n\r\n"),
			refusedAs("a longer one", allowlist.AuthorityMismatch, "CONNECT [::1]:PORT HTTP/1.1\r\nHost: [0::1]:PORT\r\n\r\n"))},
	}
}
