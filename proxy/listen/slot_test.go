package listen

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// cuts counts the calls of Cut by cause.
type cuts struct {
	mu  sync.Mutex
	all map[limit.Cause]int
}

func (c *cuts) add(why limit.Cause) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[limit.Cause]int{}
	}
	c.all[why]++
}

func (c *cuts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.all)
}

// await waits until the counts equal want.
func (c *cuts) await(t *testing.T, want map[limit.Cause]int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); c.String() != fmt.Sprint(want); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("closed for want of a slot: %v, want %v", c, want)
		}
	}
}

// TestSilentHandshakes checks that an address which sends nothing displaces its own
// connections only, the oldest first, and that none of them counts as a failed
// handshake.
func TestSilentHandshakes(t *testing.T) {
	p, told := newPKI(t), &cuts{}
	r, refusals := behind(t, "127.0.0.0/8", func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Slots, cfg.HandshakeTimeout, cfg.Shed = limit.NewSlots(limit.SharesOf(64)), time.Hour, told.add
	})
	before := dialRaw(t, r.Addr())
	send(t, before, strings.Replace(v1Header, "198.51.100.7", "198.51.100.8", 1))
	var silent []net.Conn
	for n := range 20 {
		conn := dialRaw(t, r.Addr())
		send(t, conn, v1Header)
		silent = append(silent, conn)
		if n >= 2 {
			told.await(t, map[limit.Cause]int{limit.CauseSource: n - 1})
		}
	}
	for _, conn := range silent[:18] {
		closed(t, conn)
	}
	if n := r.cfg.Slots.InUse(); n != 3 {
		t.Errorf("%d slots are in use, want two of the silent address and one", n)
	}
	speak(t, clientOf(t, before, p))
	<-r.conns
	if len(refusals)+len(r.failures) > 0 {
		t.Errorf("%d refused, %d handshakes failed", len(refusals), len(r.failures))
	}
}

// TestALoadBalancer checks that a load balancer does not count as a source: it may have
// more connections before their headers than one of its callers may have after them.
func TestALoadBalancer(t *testing.T) {
	told := &cuts{}
	shares := limit.SharesOf(64)
	slots := limit.NewSlots(shares)
	r, _ := behind(t, "127.0.0.0/8", func(_ *rig, cfg *Config) {
		cfg.Slots, cfg.HandshakeTimeout, cfg.Shed = slots, time.Hour, told.add
		cfg.Fixed, cfg.Mapped = nil, func(netip.Addr) (spiffeid.ID, bool) { return spiffeid.ID{}, false }
	})
	var waiting []net.Conn
	for range shares.Unidentified {
		waiting = append(waiting, dialRaw(t, r.Addr()))
	}
	for slots.InUse() < shares.Unidentified {
		runtime.Gosched()
	}
	if told.String() != "map[]" {
		t.Errorf("closed: %v", told)
	}
	for _, conn := range waiting[:shares.PerSource+1] { // all from one caller
		send(t, conn, v1Header)
		<-r.conns
	}
	closed(t, waiting[0])
	told.await(t, map[limit.Cause]int{limit.CauseSource: 1})
}

// TestOwnerOfASlot checks the owner of a slot on each kind of listener.
func TestOwnerOfASlot(t *testing.T) {
	p := newPKI(t)
	own, other := mint(t, p.ca, "spiffe://prod.example/own", 0).TLS(), mint(t, p.ca, "spiffe://prod.example/other", 0).TLS()
	mapped := func(id spiffeid.ID, ok bool) func(*rig, *Config) {
		return func(_ *rig, cfg *Config) {
			cfg.Fixed, cfg.Mapped = nil, func(netip.Addr) (spiffeid.ID, bool) { return id, ok }
		}
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	user := ""
	if runtime.GOOS == "linux" {
		user = fmt.Sprint("user ", os.Getuid())
	} else {
		user = "listener test"
	}
	for _, row := range []struct {
		name   string
		change func(*rig, *Config)
		dial   func(t *testing.T, r *rig) net.Conn
		want   limit.Owner
	}{
		{"a certificate", p.withTLS, func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialTLS(t, r.Addr(), p.client(own)) }, limit.Owner{Share: limit.ShareIdentity, Name: "spiffe://prod.example/own"}},
		{"another certificate", p.withTLS, func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialTLS(t, r.Addr(), p.client(other)) }, limit.Owner{Share: limit.ShareIdentity, Name: "spiffe://prod.example/other"}},
		{"no certificate", p.withTLS, func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialTLS(t, r.Addr(), p.client()) }, limit.Owner{Addr: loopback}},
		{"a listener with a fixed identity", func(*rig, *Config) {}, func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialRaw(t, r.Addr()) }, limit.Owner{Share: limit.ShareLocal, Name: "listener test"}},
		{"an address with an identity", mapped(spiffeid.RequireFromString("spiffe://prod.example/m"), true), func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialRaw(t, r.Addr()) }, limit.Owner{Share: limit.ShareLocal, Addr: loopback, Name: "spiffe://prod.example/m"}},
		{"an address without an identity", mapped(spiffeid.ID{}, false), func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialRaw(t, r.Addr()) }, limit.Owner{Addr: loopback}},
		{"a unix socket", func(_ *rig, cfg *Config) { cfg.Address = "unix:" + filepath.Join(t.TempDir(), "s") }, func(t *testing.T, r *rig) net.Conn { t.Helper(); return dialRaw(t, r.Addr()) }, limit.Owner{Share: limit.ShareLocal, Name: user}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := serve(t, row.change)
			speak(t, row.dial(t, r))
			conn := <-r.conns
			got := conn.unidentifiedOwner()
			if conn.Caller.Reason == allowlist.NoReason {
				got = conn.identifiedOwner()
			}
			if got != row.want {
				t.Errorf("it counts for %+v, want %+v", got, row.want)
			}
			if conn.slot.Move(row.want) != limit.NoCause {
				t.Error("and has no slot there")
			}
		})
	}
}

// TestIdentitiesOfOneNetworkCountApart checks that two identities have a share each if their
// addresses are in the same IPv6 network, as those on one host often are.
func TestIdentitiesOfOneNetworkCountApart(t *testing.T) {
	owner := func(addr, id string) limit.Owner {
		c := Conn{parent: &Listener{cfg: Config{Mapped: func(netip.Addr) (spiffeid.ID, bool) {
			return spiffeid.RequireFromString("spiffe://prod.example/" + id), true
		}}}}
		c.Caller.Addr = netip.AddrPortFrom(netip.MustParseAddr(addr), 1)
		c.Caller.assignIdentity(nil, c.parent.cfg.Mapped)
		return c.identifiedOwner()
	}
	one := owner("2001:db8::1", "one")
	if one == owner("2001:db8::2", "two") {
		t.Error("another identity of the network has the same share")
	}
	if one != owner("2001:db8::3", "one") || one == owner("2001:db8:0:1::1", "one") {
		t.Error("an identity has not one share for each network")
	}
}

// TestARequestKeepsItsConnection checks that a connection with a request is not closed
// to make room, that it may be closed once its request has ended, and that a closed
// connection begins no request.
func TestARequestKeepsItsConnection(t *testing.T) {
	told := &cuts{}
	r := serve(t, func(_ *rig, cfg *Config) { cfg.Slots, cfg.Shed = limit.NewSlots(limit.SharesOf(8)), told.add })
	first := dialRaw(t, r.Addr())
	speak(t, first)
	one := <-r.conns
	second := dialRaw(t, r.Addr()) // as many as one listener's callers may have
	speak(t, second)
	two := <-r.conns
	if !one.Begin() || !two.Begin() {
		t.Fatal("an open connection takes no request")
	}
	third := dialRaw(t, r.Addr())
	speak(t, third)
	if c := <-r.conns; !c.Caller.Busy || !c.Caller.Crowded {
		t.Errorf("the caller of one too many: %+v", c.Caller)
	}
	two.End()
	fourth := dialRaw(t, r.Addr())
	speak(t, fourth)
	if c := <-r.conns; c.Caller.Busy {
		t.Errorf("the caller that another one made room for: %+v", c.Caller)
	}
	closed(t, second)
	if two.Begin() || !two.LostSlot() || one.LostSlot() {
		t.Error("the connection that was closed takes a request")
	}
	told.await(t, map[limit.Cause]int{limit.CauseCaller: 1})
	speak(t, first)
}

// TestALimitedHandshake checks that a failed handshake of a Limited connection is
// recorded with the reason of the limit.
func TestALimitedHandshake(t *testing.T) {
	p := newPKI(t)
	refusals := make(chan refusal, 10)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Sources = limit.NewSources(limit.Config{Connections: 1})
		cfg.Refused = func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
			refusals <- refusal{client, why, detail}
		}
	})
	first := dialTLS(t, r.Addr(), p.client())
	speak(t, first)
	<-r.conns
	limited := dialRaw(t, r.Addr())
	_ = limited.Close()
	if got := <-refusals; got.why != allowlist.RateLimited || !strings.Contains(got.detail, "connections") {
		t.Errorf("refused %+v", got)
	}
	if len(r.failures) > 0 {
		t.Errorf("and the handshake failed: %v", <-r.failures)
	}
}
