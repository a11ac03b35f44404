package proxy_test

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// open opens a tunnel for builder and returns its two ends. It reads the record of the
// decision.
func (g *gateway) open(t *testing.T) (*caller, *net.TCPConn) {
	t.Helper()
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("allowed.example"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	g.next(t, audit.EventDecision)
	return c, g.origin.next(t)
}

// closeWrite closes one direction of a connection.
func closeWrite(t *testing.T, conn any) {
	t.Helper()
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEarlyBytesArriveFirst(t *testing.T) {
	g := newGateway(t, options{})
	for _, early := range []string{"e", "early, ", strings.Repeat("e", 40<<10)} {
		c := g.call(t, "builder")
		a := c.ask(t, connectTo(g.at("allowed.example"), "Content-Length: 3")+early)
		if a.status != 200 {
			t.Fatalf("answered %s", a.phrase)
		}
		origin := g.origin.next(t)
		c.send(t, "late")
		closeWrite(t, c.Conn)
		if got := readAll(t, origin); got != early+"late" {
			t.Errorf("the origin got %.40q (%d bytes), want %.40q and late", got, len(got), early)
		}
		_ = origin.Close()
		c.ended(t)
		g.next(t, audit.EventDecision)
		if r := g.next(t, audit.EventTunnelClose); r.Up != int64(len(early)+4) {
			t.Errorf("%d bytes up, want the early ones among them", r.Up)
		}
	}
}

// TestBytesBehindARefusalAreNoRequest sends a good request behind one that is refused, in the
// same write and right after the answer.
func TestBytesBehindARefusalAreNoRequest(t *testing.T) {
	g := newGateway(t, options{})
	good := connectTo(g.at("allowed.example"))
	for _, row := range []struct {
		name, who, head string
		want            allowlist.Reason
	}{
		{"denied", "builder", connectTo("secret.example:443"), allowlist.NotOnAllowlist},
		{"malformed", "builder", connectTo("allowed.example:0"), allowlist.MalformedPort},
		{"another method", "builder", "connect allowed.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", allowlist.ConnectOnly},
		{"a plain request for no origin", "builder", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", allowlist.MalformedTarget},
		{"a plain request with a body", "builder", plainTo("POST", "http://secret.example/", "Content-Length: 300"), allowlist.NotOnAllowlist},
		{"without an identity", "", good, allowlist.IdentityMissing},
		{"without an identity, HTTP/1.0", "", "CONNECT allowed.example:443 HTTP/1.0\r\n\r\n", allowlist.IdentityMissing},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := g.call(t, row.who)
			a := c.ask(t, row.head+good)
			if a.reason() != row.want.String() || !a.close {
				t.Errorf("answered %s, closing: %v", a.phrase, a.close)
			}
			c.send(t, good)
			c.ended(t)
			if r := g.next(t, audit.EventDecision); r.Reason != row.want.String() {
				t.Errorf("record %+v", r)
			}
		})
	}
	if g.names.lookups.Load() != 0 || g.origin.accepted.Load() != 0 {
		t.Error("bytes behind a refusal were read as a request")
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
}

func TestEveryRequestOfAConnectionIsDecided(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "")
	for range 3 {
		if a := c.ask(t, connectTo(g.at("allowed.example"))); a.status != 407 || a.close {
			t.Fatalf("answered %s, closing: %v", a.phrase, a.close)
		}
		if r := g.next(t, audit.EventDecision); r.Reason != "identity-missing" || r.Host != "allowed.example" {
			t.Errorf("record %+v", r)
		}
	}
	_ = c.Close()
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records of a connection that only ended: %+v", left)
	}
}

// TestPolicyThatComesDuringTheLookUpDecides puts a policy in force while the look-up is
// under way. The earlier decision must not count any more.
func TestPolicyThatComesDuringTheLookUpDecides(t *testing.T) {
	for _, row := range []struct {
		name   string
		change func(g *gateway, spec *allowlist.Spec)
		want   allowlist.Reason
	}{
		{"that allows it too", func(*gateway, *allowlist.Spec) {}, allowlist.NoReason},
		{"without the rule", func(g *gateway, s *allowlist.Spec) {
			s.Entries[0].Allow = []allowlist.Rule{to("allowed.example", g.origin.port)}
		}, allowlist.NotOnAllowlist},
		{"with a deny rule", func(_ *gateway, s *allowlist.Spec) {
			s.Entries[0].Deny = append(s.Entries[0].Deny, with(to("held.example"), func(r *allowlist.Rule) { r.Addresses = nil }))
		}, allowlist.DeniedByRule},
		{"with a quarantine", func(_ *gateway, s *allowlist.Spec) {
			s.Quarantine = append(s.Quarantine, allowlist.Quarantined{Pattern: only("builder")})
		}, allowlist.QuarantinedIdentity},
		{"without the identity", func(_ *gateway, s *allowlist.Spec) { s.Entries = s.Entries[1:] }, allowlist.IdentityUnknown},
		{"that no longer opens the address", func(g *gateway, s *allowlist.Spec) {
			s.Entries[0].Allow = []allowlist.Rule{with(to("held.example"), func(r *allowlist.Rule) { r.Addresses = nil })}
		}, allowlist.ResolvedAddressDenied},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := newGateway(t, options{})
			c := g.call(t, "builder")
			c.send(t, connectTo(g.at("held.example"))+"early")
			<-g.names.asked
			spec := g.policy()
			spec.Version = "two"
			row.change(g, &spec)
			g.swap(t, spec)
			close(g.names.answer)

			a := c.answer(t)
			r := g.next(t, audit.EventDecision)
			origin := g.origin.next(t)
			if r.Generation != 2 || r.Policy != "two" || r.Status != a.status || r.Reason != row.want.String() {
				t.Errorf("record %+v, want %q by generation 2", r, row.want)
			}
			if row.want == allowlist.NoReason {
				if a.status != 200 || r.Verdict != "allow" {
					t.Errorf("answered %s, verdict %s", a.phrase, r.Verdict)
				}
				closeWrite(t, c.Conn)
			} else {
				if a.status != 403 || a.reason() != row.want.String() || r.Verdict != "deny" {
					t.Errorf("answered %s (%s), verdict %s", a.phrase, a.reason(), r.Verdict)
				}
				c.ended(t)
			}
			want := ""
			if row.want == allowlist.NoReason {
				want = "early"
			}
			if got := readAll(t, origin); got != want {
				t.Errorf("the origin got %q, want %q", got, want)
			}
			_ = origin.Close()
			if row.want == allowlist.NoReason {
				c.ended(t)
				g.next(t, audit.EventTunnelClose)
			}
			if n := g.registry.Len(); row.want != allowlist.NoReason && n != 0 {
				t.Errorf("%d tunnels registered", n)
			}
		})
	}
}

func TestRefusedAddressesAreCountedAndNotDialled(t *testing.T) {
	g := newGateway(t, options{})
	c := g.call(t, "builder")
	if a := c.ask(t, connectTo(g.at("mixed.example"))); a.status != 200 {
		t.Fatalf("answered %s", a.phrase)
	}
	r := g.next(t, audit.EventDecision)
	if r.Address != g.at("127.0.0.1") || r.Dropped != 1 || r.AddressClass != "private" {
		t.Errorf("record %+v, want one private address dropped", r)
	}

	// The gateway's own port is refused although the rule allows the address.
	c = g.call(t, "builder")
	_, port, _ := strings.Cut(g.secure.String(), ":")
	if a := c.ask(t, connectTo("self.wild.example:"+port)); a.reason() != "resolved-address-denied" {
		t.Errorf("answered %s", a.phrase)
	}
	if r := g.next(t, audit.EventDecision); r.AddressClass != "own-listener" || r.Verdict != "deny" || r.Dropped != 1 {
		t.Errorf("record %+v, want an own listener", r)
	}
}

func TestDrain(t *testing.T) {
	g := newGateway(t, options{})
	c, origin := g.open(t)
	waiting := g.call(t, "builder")
	g.proxy.Drain()
	a := waiting.ask(t, connectTo(g.at("allowed.example")))
	if a.status != 503 || a.reason() != "draining" || a.header.Get("Retry-After") == "" {
		t.Errorf("answered %s %v", a.phrase, a.header)
	}
	waiting.ended(t)
	if r := g.next(t, audit.EventDecision); r.Reason != "draining" || r.Verdict != "fail" {
		t.Errorf("record %+v", r)
	}
	pingPong(t, c, origin)
	if n := g.registry.Len(); n != 1 {
		t.Errorf("%d tunnels, want the open one", n)
	}
	g.registry.Drain(0)
	c.ended(t) // in order: the caller must not take bytes for missing
	_, _ = io.Copy(io.Discard, origin)
	if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "drain" || r.Up != 1 || r.Down != 1 {
		t.Errorf("record %+v, want drain after a byte each way", r)
	}
}

func TestTunnelRecords(t *testing.T) {
	g := newGateway(t, options{tunnel: tunnel.Config{ProgressBytes: 1000}})
	c, origin := g.open(t)
	chunk := strings.Repeat("u", 600)
	c.send(t, chunk)
	if _, err := io.ReadFull(origin, make([]byte, 600)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(origin, chunk); err != nil {
		t.Fatal(err)
	}
	progress := g.next(t, audit.EventTunnelProgress)
	if progress.Up != 600 || progress.Down != 600 || progress.Host != "allowed.example" || progress.CloseReason != "" {
		t.Errorf("record %+v, want 600 bytes each way", progress)
	}
	if _, err := io.WriteString(origin, "the end"); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, origin)
	if got := readAll(t, c.reader); got != chunk+"the end" {
		t.Errorf("the caller got %d bytes", len(got))
	}
	_ = c.Close()
	r := g.next(t, audit.EventTunnelClose)
	if r.Up != 600 || r.Down != 607 || r.CloseReason != "upstream" || r.ID != progress.ID || r.Identity != id("builder").String() || r.Status != 0 {
		t.Errorf("record %+v, want 600 up, 607 down, upstream", r)
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("records too many: %+v", left)
	}
}

func TestHalfClose(t *testing.T) {
	t.Run("of the caller: the origin's answer still comes", func(t *testing.T) {
		g := newGateway(t, options{})
		c, origin := g.open(t)
		c.send(t, "question")
		closeWrite(t, c.Conn)
		if got := readAll(t, origin); got != "question" {
			t.Errorf("the origin got %q", got)
		}
		if _, err := io.WriteString(origin, "answer"); err != nil {
			t.Fatal(err)
		}
		_ = origin.Close()
		if got := readAll(t, c.reader); got != "answer" {
			t.Errorf("the caller got %q", got)
		}
		if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "client" || r.Up != 8 || r.Down != 6 {
			t.Errorf("record %+v", r)
		}
	})
	t.Run("of the origin: what the caller has to say still goes", func(t *testing.T) {
		g := newGateway(t, options{})
		c, origin := g.open(t)
		if _, err := io.WriteString(origin, "bye"); err != nil {
			t.Fatal(err)
		}
		closeWrite(t, origin)
		if got := readAll(t, c.reader); got != "bye" {
			t.Errorf("the caller got %q", got)
		}
		c.send(t, "last words")
		_ = c.Close()
		if got := readAll(t, origin); got != "last words" {
			t.Errorf("the origin got %q", got)
		}
		if r := g.next(t, audit.EventTunnelClose); r.CloseReason != "upstream" || r.Up != 10 || r.Down != 3 {
			t.Errorf("record %+v", r)
		}
	})
}
