package allowlist

import (
	"net/netip"
	"testing"
)

// TestClassOfAnAddress checks the class of addresses at the edges of every range.
func TestClassOfAnAddress(t *testing.T) {
	c := NewClassifier(Local{
		Addresses: []netip.Addr{netip.MustParseAddr("203.0.114.7"), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2606:4700::7"), netip.MustParseAddr("127.0.0.1")},
		NAT64:     []netip.Prefix{netip.MustParsePrefix("2606:4700:64::/96"), netip.MustParsePrefix("2606:4700:65::/48"), netip.MustParsePrefix("2606:4800::/33")},
	})
	for class, addrs := range map[Class][]string{
		Public:        {"8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "223.255.255.255", "168.63.129.17", "2606:4700:4700::1111", "2a00::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700:64::808:808", "2606:4700:65:808:8:800::"},
		Unspecified:   {"0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "64:ff9b::"},
		Loopback:      {"127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1"},
		Private:       {"10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1", "64:ff9b::a00:1", "2606:4700:64::c0a8:1", "2606:4700:65:a00:0:100::"},
		LinkLocal:     {"169.254.0.1", "fe80::1", "febf::1", "64:ff9b::a9fe:1"},
		Metadata:      {"169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "100.96.0.96", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fe80::a9fe:a9fe", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2606:4700:64::a9fe:a9fe"},
		SharedSpace:   {"100.64.0.0", "100.127.255.255"},
		Documentation: {"192.0.2.1", "198.51.100.1", "203.0.113.255", "2001:db8::1", "3fff::1", "3fff:fff::1"},
		Benchmarking:  {"198.18.0.0", "198.19.255.255", "2001:2::1"},
		ProtocolUse:   {"192.0.0.1", "192.0.0.170", "100::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "5f00::1"},
		Multicast:     {"224.0.0.1", "239.255.255.255", "ff00::", "ff02::1"},
		Broadcast:     {"255.255.255.255"},
		Reserved:      {"240.0.0.1", "255.255.255.254", "4000::1", "8000::1", "fe00::1", "64:ff9b:2::1", "1::1", "::1:0:0:1"},
		Transition:    {"192.88.99.1", "::7f00:1", "::127.0.0.1", "::ffff:0:7f00:1", "2002:7f00:1::", "2001::1", "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:8.8.8.8", "fe80::5efe:8.8.8.8"},
		LocalNAT64:    {"64:ff9b:1::1", "64:ff9b:1:ffff::1", "2606:4800::808:808"},
		SiteLocal:     {"fec0::1", "feff::1"},
		OwnAddress:    {"203.0.114.7", "10.1.2.3", "2606:4700::7", "::ffff:203.0.114.7", "64:ff9b::cb00:7207"},
		Invalid:       {"fe80::1%eth0"},
	} {
		for _, text := range addrs {
			addr := netip.MustParseAddr(text)
			if got, prefix := c.Classify(addr); got != class || got != Invalid && !prefix.Contains(addr.Unmap()) {
				t.Errorf("Classify(%s) = %s, %s, want %s", text, got, prefix, class)
			}
		}
	}
	if got, prefix := c.Classify(netip.Addr{}); got != Invalid || prefix.IsValid() {
		t.Errorf("Classify of no address = %s, %s, want invalid", got, prefix)
	}
}

// TestNAT64Prefixes checks the examples of RFC 6052 section 2.4.
func TestNAT64Prefixes(t *testing.T) {
	const inner = "192.0.2.33"
	for _, row := range []struct{ prefix, addr, around string }{
		{"2001:db8::/32", "2001:db8:c000:221::", "2001:db8:c000:200::/56"},
		{"2001:db8:100::/40", "2001:db8:1c0:2:21::", "2001:db8:1c0:2::/64"},
		{"2001:db8:122::/48", "2001:db8:122:c000:2:2100::", "2001:db8:122:c000:2::/80"},
		{"2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::", "2001:db8:122:3c0:0:200::/88"},
		{"2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::", "2001:db8:122:344:c0:2::/96"},
		{"2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33", "2001:db8:122:344::c000:200/120"},
	} {
		prefix := netip.MustParsePrefix(row.prefix)
		c := NewClassifier(Local{NAT64: []netip.Prefix{prefix}, Listeners: []netip.AddrPort{netip.MustParseAddrPort(inner + ":3128")}})
		addr := netip.MustParseAddr(row.addr)
		if got, ok := c.embedded(addr); got.String() != inner || !ok || !IsNAT64(prefix) {
			t.Errorf("%s below %s embeds %s, %t, want %s", addr, prefix, got, ok, inner)
		}
		if class, around := c.Classify(addr); class != Documentation || around.String() != row.around {
			t.Errorf("%s below %s is %s in %s, want documentation in %s", addr, prefix, class, around, row.around)
		}
		if !c.IsListener(netip.AddrPortFrom(addr, 3128)) {
			t.Errorf("%s below %s is not the listener on %s", addr, prefix, inner)
		}
	}
	for _, text := range []string{"2001:db8::/33", "2001:db8::/128", "::/0", "10.0.0.0/32", "::ffff:0:0/96"} {
		if IsNAT64(netip.MustParsePrefix(text)) {
			t.Errorf("%s is a prefix for NAT64", text)
		}
	}
}

// TestClassesHaveWords checks that every class has a word of its own.
func TestClassesHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for c := Invalid; c <= NotDestination; c++ {
		if w := c.String(); w == "" || seen[w] {
			t.Errorf("class %d is %q, which is empty or the word of another class", c, w)
		}
		seen[c.String()] = true
	}
	if (NotDestination + 1).String() != "invalid" {
		t.Error("a value outside the classes is not invalid")
	}
}

// TestAddressesOfListeners checks under which addresses a listener can be reached, and
// that no rule opens them.
func TestAddressesOfListeners(t *testing.T) {
	for _, row := range []struct {
		why, listener, addr string
		want                bool
	}{
		{"its own address and port", "192.0.2.1:3128", "192.0.2.1:3128", true},
		{"another port", "192.0.2.1:3128", "192.0.2.1:3129", false},
		{"another address", "192.0.2.1:3128", "192.0.2.2:3128", false},
		{"its mapped form", "192.0.2.1:3128", "[::ffff:192.0.2.1]:3128", true},
		{"its NAT64 form", "192.0.2.1:3128", "[64:ff9b::c000:201]:3128", true},
		{"a listener written in mapped form", "[::ffff:192.0.2.1]:3128", "192.0.2.1:3128", true},
		{"a wildcard on loopback", "0.0.0.0:3128", "127.0.0.1:3128", true},
		{"a wildcard on all of loopback", "0.0.0.0:3128", "127.9.9.9:3128", true},
		{"a wildcard on an own address", "0.0.0.0:3128", "203.0.114.7:3128", true},
		{"a wildcard on an own IPv6 address", "[::]:3128", "[2606:4700::7]:3128", true},
		{"an IPv6 wildcard takes IPv4 too", "[::]:3128", "203.0.114.7:3128", true},
		{"an IPv6 wildcard on ::1", "[::]:3128", "[::1]:3128", true},
		{"a wildcard on an own address through NAT64", "0.0.0.0:3128", "[64:ff9b::cb00:7207]:3128", true},
		{"a wildcard on the unspecified address", "0.0.0.0:3128", "0.0.0.0:3128", true},
		{"a wildcard on the other unspecified address", "0.0.0.0:3128", "[::]:3128", true},
		{"a loopback listener behind 0.0.0.0", "127.0.0.1:3128", "0.0.0.0:3128", true},
		{"a loopback listener behind ::", "[::1]:3128", "[::]:3128", true},
		{"a wildcard on another port", "0.0.0.0:3128", "127.0.0.1:3129", false},
		{"a wildcard on somebody else's address", "0.0.0.0:3128", "8.8.8.8:3128", false},
	} {
		c := NewClassifier(Local{
			Listeners: []netip.AddrPort{netip.MustParseAddrPort(row.listener)},
			Addresses: []netip.Addr{netip.MustParseAddr("203.0.114.7"), netip.MustParseAddr("2606:4700::7")},
		})
		if got := c.IsListener(netip.MustParseAddrPort(row.addr)); got != row.want {
			t.Errorf("%s: listener %s, dialled %s: %t, want %t", row.why, row.listener, row.addr, got, row.want)
		}
		single := netip.PrefixFrom(netip.MustParseAddrPort(row.addr).Addr(), netip.MustParseAddrPort(row.addr).Addr().BitLen())
		p := policyOf(t, entryOf(checkout, allow(rule("api.example port 3128", addresses(single.String()))))).WithClassifier(c)
		d := p.Decide(tunnel(checkout, "api.example:3128"))
		err := d.CheckAddr(netip.AddrPortFrom(netip.MustParseAddrPort(row.addr).Addr(), 3128))
		if refused := classOf(err) == OwnListener; row.want && !refused {
			t.Errorf("%s: a rule for %s opens it: %v", row.why, single, err)
		}
	}
}

// FuzzClassify compares Classify with a linear search in the table of classes.
func FuzzClassify(f *testing.F) {
	for _, a := range []string{"127.0.0.1", "::1", "64:ff9b::a00:1", "fe80::5efe:1.2.3.4", "2002::1", "100.100.100.200", "2001:1ff::1", "::ffff:10.0.0.1"} {
		addr := netip.MustParseAddr(a)
		b := addr.As16()
		f.Add(b[:], uint64(0xdeadbeef))
	}
	c := NewClassifier(Local{})
	f.Fuzz(func(t *testing.T, raw []byte, noise uint64) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		class, prefix := c.Classify(addr)
		unmapped, unmappedPrefix := c.Classify(addr.Unmap())
		if class != unmapped || prefix != unmappedPrefix {
			t.Fatalf("%s is %s and %s unmapped", addr, class, unmapped)
		}
		addr = addr.Unmap()
		if class == Invalid || !prefix.Contains(addr) || prefix != prefix.Masked() {
			t.Fatalf("Classify(%s) = %s, %s", addr, class, prefix)
		}
		if addr.Is4() {
			if want := tableClass(addr); class != want {
				t.Fatalf("Classify(%s) = %s, the table says %s", addr, class, want)
			}
			nat64 := netip.MustParsePrefix("64:ff9b::/96").Addr().As16()
			b := addr.As4()
			copy(nat64[12:], b[:])
			if got, p := c.Classify(netip.AddrFrom16(nat64)); got != class || p.Bits() != 96+prefix.Bits() {
				t.Fatalf("%s is %s, and with NAT64 it is %s (%s)", addr, class, got, p)
			}
		}
		other := within(prefix, noise)
		if got, p := c.Classify(other); got != class && p.Bits() <= prefix.Bits() {
			t.Fatalf("%s is %s by %s, yet %s is %s by %s", addr, class, prefix, other, got, p)
		}
	})
}

func tableClass(addr netip.Addr) Class {
	class, bits := Invalid, -1
	for _, r := range classRanges() {
		if p := netip.MustParsePrefix(r.prefix); p.Contains(addr) && p.Bits() > bits {
			class, bits = r.class, p.Bits()
		}
	}
	return class
}

// within returns an address inside the prefix, with host bits from noise.
func within(prefix netip.Prefix, noise uint64) netip.Addr {
	b := prefix.Addr().AsSlice()
	for i := prefix.Bits(); i < 8*len(b); i++ {
		if noise>>(i&63)&1 == 1 {
			b[i/8] ^= 0x80 >> (i & 7)
		}
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

func TestSourceIsAnIPv4AddressOrAnIPv6Network(t *testing.T) {
	for _, row := range []struct {
		a, b string
		want bool
	}{
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:db8::2", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
	} {
		if got := SourceOf(netip.MustParseAddr(row.a)) == SourceOf(netip.MustParseAddr(row.b)); got != row.want {
			t.Errorf("%s and %s: %t", row.a, row.b, got)
		}
	}
}
