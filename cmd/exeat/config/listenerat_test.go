package config

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/exeat-dev/exeat/proxy/gateway"
)

func listenerAt(name, address string) Listener {
	return Listener{Listener: gateway.Listener{Name: name, Address: address}}
}

// TestOwnFindsTheListenerOfAnAddress checks which listener of the gateway, if any, is
// reached at an address.
func TestOwnFindsTheListenerOfAnAddress(t *testing.T) {
	c := Config{Gateway: gateway.Config{Admin: gateway.Admin{Address: "127.0.0.1:9464"}}, Listeners: []Listener{
		listenerAt("one", "127.0.0.1:3128"),
		listenerAt("six", "[::1]:3129"),
		listenerAt("four", "0.0.0.0:8443"),
		listenerAt("all", "[::]:8444"),
		listenerAt("mapped", "[::ffff:0.0.0.0]:8445"),
		listenerAt("free", "127.0.0.1:0"),
		listenerAt("socket", "unix:/run/exeat.sock"),
	}}
	for at, want := range map[string]string{
		"127.0.0.1:3128":          "one",
		"[::ffff:127.0.0.1]:3128": "one",
		"0.0.0.0:3128":            "one", // dialling 0.0.0.0 reaches this host
		"[::]:3128":               "one",
		"127.0.0.2:3128":          "",
		"[::1]:3128":              "",
		"127.0.0.1:3129":          "",
		"[::1]:3129":              "six",
		"127.0.0.1:8443":          "four",
		"127.1.2.3:8443":          "four",
		"0.0.0.0:8443":            "four",
		"[::]:8443":               "four",
		"[::1]:8443":              "",
		"192.0.2.1:8443":          "",
		"127.0.0.1:8444":          "all",
		"[::1]:8444":              "all",
		"[2001:db8::1]:8444":      "",
		"127.0.0.1:8445":          "mapped",
		"[::1]:8445":              "",
		"127.0.0.1:9464":          "admin",
		"127.0.0.1:0":             "",
		"127.0.0.1:1":             "",
	} {
		if got := c.ListenerAt(netip.MustParseAddrPort(at)); got != want {
			t.Errorf("%s is listener %q, want %q", at, got, want)
		}
		if at := netip.MustParseAddrPort(at); want != "" && !c.HasListenerPort(at.Port()) {
			t.Errorf("no listener has the port of %s", at)
		}
	}
	if c.HasListenerPort(0) || c.HasListenerPort(1) {
		t.Error("a listener has a port that none has")
	}
}

// TestOwnAtAnAddressOfTheHost checks that a listener at every address is found at each
// address of this host.
func TestOwnAtAnAddressOfTheHost(t *testing.T) {
	c := Config{Listeners: []Listener{listenerAt("all", "[::]:8444")}}
	addrs, err := HostAddresses()
	if err != nil || len(addrs) == 0 {
		t.Fatalf("this host has %v, %v", addrs, err)
	}
	for _, addr := range addrs {
		if got := c.ListenerAt(netip.AddrPortFrom(addr, 8444)); got != "all" {
			t.Errorf("%s is listener %q, want all", addr, got)
		}
	}
}

// TestOwnSocket checks that a listener on a unix socket is found by the path of the
// socket, also by a relative one.
func TestOwnSocket(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := filepath.Abs("exeat.sock")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Listeners: []Listener{listenerAt("tcp", "127.0.0.1:1"), listenerAt("socket", "unix:dir/../exeat.sock")}}
	for path, want := range map[string]string{here: "socket", "exeat.sock": "socket", "/exeat.sock": "", "127.0.0.1:1": ""} {
		if got := c.ListenerOnSocket(path); got != want {
			t.Errorf("%s is listener %q, want %q", path, got, want)
		}
	}
}
