package hostile

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// ask is one request on a connection of its own, and what must come of it.
type ask struct {
	name   string                                         // of the case; "" is the first line of head
	who    string                                         // a workload; "" is builder
	shows  func(t *testing.T, g *gateway) tls.Certificate // instead of who's
	head   string                                         // raw bytes; PORT is the origin's
	reason allowlist.Reason                               // NoReason: a tunnel opens
	host   string                                         // as recorded, or anyHost
	class  allowlist.Class                                // of the address that was refused
	drops  int                                            // addresses that were not dialled

	lookups, dials int64
}

// anyHost stands for what a record says of a request that was refused before
// policy, which may have failed before the host was read or after.
const anyHost = "?"

// refused is a head that is refused before policy: alone on a connection, behind
// a request without an identity, and behind one that was allowed.
func refused(reason allowlist.Reason, head string) []scenario {
	return refusedAs("", reason, head)
}

func refusedAs(name string, reason allowlist.Reason, head string) []scenario {
	a := ask{name: name, head: head, reason: reason, host: anyHost}
	return []scenario{a.scenario(), a.second(), a.behindAllowed()}
}

// denied is a head that policy refuses without a lookup.
func denied(reason allowlist.Reason, head, host string) scenario {
	return ask{head: head, reason: reason, host: host}.scenario()
}

// opens is a head that opens a tunnel to a name at the origin.
func opens(head, host string) scenario {
	return ask{head: head, host: host, lookups: 1, dials: 1}.scenario()
}

func (a ask) scenario() scenario { return scenario{a.title(), a.run} }

func (a ask) title() string {
	if a.name != "" {
		return a.name
	}
	return brief(a.head)
}

// second makes the request on a connection that was kept open behind a first
// one.
func (a ask) second() scenario {
	return scenario{a.title() + ", behind a 407", func(t *testing.T, g *gateway) {
		c := g.call(t, nobody)
		if first := c.ask(t, connectTo(g.at("allowed.example"))); first.status != 407 || first.close {
			t.Fatalf("the first request is answered %s, closing: %v", first.phrase, first.close)
		}
		g.next(t, audit.EventDecision)
		a.on(t, g, c)
	}}
}

func (a ask) run(t *testing.T, g *gateway) {
	t.Helper()
	switch {
	case a.shows != nil:
		a.on(t, g, g.callWith(t, a.shows(t, g)))
	case a.who == "":
		a.on(t, g, g.call(t, "builder"))
	default:
		a.on(t, g, g.call(t, a.who))
	}
}

// on makes the request on a connection and looks at everything that it left.
func (a ask) on(t *testing.T, g *gateway, c *caller) {
	t.Helper()
	before := g.counts()
	got := c.ask(t, g.fill(a.head))
	r := g.next(t, audit.EventDecision)
	want := a.reason.Info()
	if a.reason == allowlist.NoReason {
		want.Status = 200
	}
	if got.status != want.Status || got.reason() != want.Token {
		t.Errorf("answered %s (%s), want %d %s", got.phrase, got.reason(), want.Status, want.Token)
	}
	if r.Reason != want.Token || r.Status != want.Status || a.host != anyHost && r.Host != a.host {
		t.Errorf("record %+v, want %s %d for %q", r, want.Token, want.Status, a.host)
	}
	if got.status != 200 && r.ID != got.header.Get("X-Exeat-Decision") {
		t.Errorf("the caller is told of %q, recorded is %q", got.header.Get("X-Exeat-Decision"), r.ID)
	}
	a.checkAddress(t, r)
	if got.status == 200 {
		g.finish(t, c, a.dialled(g))
	} else {
		a.checkRefusal(t, got, r)
		if got.close {
			c.gone(t)
		}
		_ = c.Close()
	}
	if n := g.counts(); n.lookups-before.lookups != a.lookups || n.dials-before.dials != a.dials {
		t.Errorf("%d lookups and %d dials, want %d and %d", n.lookups-before.lookups, n.dials-before.dials, a.lookups, a.dials)
	}
}

// checkAddress checks what the record says of addresses.
func (a ask) checkAddress(t *testing.T, r record) {
	t.Helper()
	class := ""
	if a.class != allowlist.Invalid {
		class = a.class.String()
	}
	if r.AddressClass != class || r.Dropped != a.drops {
		t.Errorf("record of class %q with %d addresses dropped, want %q and %d", r.AddressClass, r.Dropped, class, a.drops)
	}
	if a.dials == 0 && r.Address != "" {
		t.Errorf("recorded as dialled: %s", r.Address)
	}
}

// checkRefusal checks what every refusal has.
func (a ask) checkRefusal(t *testing.T, got answer, r record) {
	t.Helper()
	verdict := "deny"
	switch got.status {
	case 500, 502, 504:
		verdict = "fail"
	case 407:
	case 403, 429: // of a plain request whose end is known
		if !got.close && strings.HasPrefix(a.head, "CONNECT ") {
			t.Error("the connection is to be kept")
		}
	default:
		if !got.close {
			t.Error("the connection is to be kept")
		}
	}
	if r.Verdict != verdict {
		t.Errorf("recorded as %s, want %s", r.Verdict, verdict)
	}
}

// dialled is the origin that the case must have reached.
func (a ask) dialled(g *gateway) *origin {
	if a.host == "::1" {
		return g.six
	}
	return g.origin
}

// finish ends a tunnel that nothing went through and takes its last record.
func (g *gateway) finish(t *testing.T, c *caller, o *origin) {
	t.Helper()
	conn := o.next(t)
	_ = c.Close()
	_ = conn.Close()
	g.next(t, audit.EventTunnelClose)
}
