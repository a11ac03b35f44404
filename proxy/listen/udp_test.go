package listen

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

func udpAt(address string) UDPConfig {
	return UDPConfig{
		Name: "main", Address: netip.MustParseAddrPort(address),
		Fixed: func() spiffeid.ID { return spiffeid.RequireFromString("spiffe://prod.example/fixed") },
	}
}

func listenUDPAt(t *testing.T, cfg UDPConfig) *UDP {
	t.Helper()
	u, err := OpenUDP(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u
}

// TestUDPConfigurationsThatCannotServe checks the error for each configuration that
// ListenUDP refuses.
func TestUDPConfigurationsThatCannotServe(t *testing.T) {
	taken := listenUDPAt(t, udpAt("127.0.0.1:0")).Addr().String()
	nobody := UDPConfig{Name: "main", Address: netip.MustParseAddrPort("127.0.0.1:0")}
	two := udpAt("127.0.0.1:0")
	two.Mapped = new(AddressMap).Find
	for name, row := range map[string]struct {
		cfg  UDPConfig
		says string
	}{
		"nothing gives an identity":  {nobody, "either a fixed identity or a map of addresses"},
		"two parts give an identity": {two, "either a fixed identity or a map of addresses"},
		"no address":                 {UDPConfig{Name: "main", Fixed: two.Fixed}, "no single address"},
		"every IPv4 address":         {udpAt("0.0.0.0:0"), "no single address"},
		"every address":              {udpAt("[::]:0"), "no single address"},
		"a taken port":               {udpAt(taken), taken + " is taken by another process: stop it or choose another address"},
		"another host's address":     {udpAt("192.0.2.1:5353"), "192.0.2.1:5353 is no address of this host"},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := OpenUDP(t.Context(), row.cfg)
			if err == nil {
				_ = u.Close()
			}
			wantError(t, err, "listener main: ", row.says)
		})
	}
}

// listenUDPLoops returns a listener that is read by a number of loops, and a client of
// it.
func listenUDPLoops(t *testing.T, loops int) (*UDP, *net.UDPConn) {
	t.Helper()
	cfg := udpAt("127.0.0.1:0")
	cfg.Loops = loops
	u := listenUDPAt(t, cfg)
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return u, client
}

// TestUDPLoops checks that serve is called once for each loop, that each call can still
// answer from the listener's address when reading has ended, and that Serve returns
// after the last.
func TestUDPLoops(t *testing.T) {
	const loops = 3
	u, client := listenUDPLoops(t, loops)
	to := client.LocalAddr().(*net.UDPAddr).AddrPort()

	begun, ended, served := make(chan struct{}, loops), make(chan error, loops), make(chan error, 1)
	go func() {
		served <- u.Serve(func(socket *net.UDPConn) {
			begun <- struct{}{}
			_, _, err := socket.ReadFromUDPAddrPort(make([]byte, 1))
			if _, failed := socket.WriteToUDPAddrPort([]byte("late"), to); failed != nil {
				t.Error(failed)
			}
			ended <- err
		})
	}()
	for range loops {
		<-begun
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := client.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range loops {
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading ended with %v", err)
		}
		if _, err := client.Read(make([]byte, 8)); err != nil {
			t.Error(err)
		}
	}
	if err := u.Serve(func(*net.UDPConn) { t.Error("a closed listener is served") }); err != nil {
		t.Error(err)
	}
}

// TestEveryLoopReads checks that a datagram is read by any loop that is free, and does
// not wait for a busy one.
func TestEveryLoopReads(t *testing.T) {
	const loops = 3
	u, client := listenUDPLoops(t, loops)
	read, served := make(chan *net.UDPConn), make(chan error, 1)
	busy := make(chan struct{})
	go func() {
		served <- u.Serve(func(socket *net.UDPConn) {
			if _, _, err := socket.ReadFromUDPAddrPort(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			read <- socket
			<-busy // keeps what it has read, and reads no more
		})
	}()
	seen := map[*net.UDPConn]bool{}
	for range loops {
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		seen[<-read] = true
	}
	close(busy)
	if err := <-served; err != nil || len(seen) != loops {
		t.Errorf("%d of %d handles have read a datagram: %v", len(seen), loops, err)
	}
}

// TestUDPCallers checks that the caller of a datagram depends on the listener's
// configuration only.
func TestUDPCallers(t *testing.T) {
	mapped := udpAt("127.0.0.1:0")
	mapped.Fixed, mapped.Mapped = nil, batch().Find
	for _, row := range []struct {
		cfg    UDPConfig
		peer   string
		id     string
		source allowlist.Proof
		reason allowlist.Reason
	}{
		{udpAt("127.0.0.1:0"), "192.0.2.1:53", "spiffe://prod.example/fixed", allowlist.ProofListener, allowlist.NoReason},
		{mapped, "[::ffff:10.1.2.3]:53", "spiffe://prod.example/batch", allowlist.ProofSourceMap, allowlist.NoReason},
		{mapped, "192.0.2.1:53", "", 0, allowlist.IdentityMissing},
	} {
		c := listenUDPAt(t, row.cfg).Caller(netip.MustParseAddrPort(row.peer))
		if c.ID.String() != row.id || c.Proof != row.source || c.Reason != row.reason || c.Addr.Addr().Is4In6() {
			t.Errorf("%s: %+v", row.peer, c)
		}
	}
}

// batch returns a map with a range of addresses, one of which has another identity.
func batch() *AddressMap {
	return NewAddressMap(map[netip.Prefix]spiffeid.ID{
		netip.MustParsePrefix("10.1.0.0/16"):   spiffeid.RequireFromString("spiffe://prod.example/batch"),
		netip.MustParsePrefix("10.1.7.7/32"):   spiffeid.RequireFromString("spiffe://prod.example/reports"),
		netip.MustParsePrefix("2001:db8::/32"): spiffeid.RequireFromString("spiffe://prod.example/six"),
	})
}

// TestAddressMap checks that the most specific range of an address decides its identity.
func TestAddressMap(t *testing.T) {
	for addr, want := range map[string]string{
		"10.1.2.3":         "spiffe://prod.example/batch",
		"::ffff:10.1.2.3":  "spiffe://prod.example/batch",
		"10.1.7.7":         "spiffe://prod.example/reports",
		"2001:db8::1%eth0": "spiffe://prod.example/six",
		"10.2.0.1":         "",
	} {
		if id, ok := batch().Find(netip.MustParseAddr(addr)); id.String() != want || ok != (want != "") {
			t.Errorf("%s stands for %q (%t), want %q", addr, id, ok, want)
		}
	}
	if _, ok := new(AddressMap).Find(netip.MustParseAddr("10.1.2.3")); ok {
		t.Error("the zero value knows somebody")
	}
}
