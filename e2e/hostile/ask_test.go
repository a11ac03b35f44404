package hostile

import (
	"cmp"
	"crypto/tls"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// ask is a request, and the expected outcome.
type ask struct {
	name   string                                         // name of the case; "" means the first line of head
	who    string                                         // the workload; "" means builder
	shows  func(t *testing.T, g *gateway) tls.Certificate // returns the certificate to use instead of who's
	head   string                                         // raw bytes; PORT stands for the origin's port
	reason allowlist.Reason                               // NoReason means that a tunnel opens
	host   string                                         // host in the record, or anyHost
	class  allowlist.Class                                // class of the address that was refused
	drops  int                                            // number of addresses that were not dialled

	lookups, dials int64
}

// anyHost means that the host in the record is not checked. A request that is refused
// before policy may be refused before its host is parsed, or after.
const anyHost = "?"

// refused returns the cases of a head that is refused before policy: alone on a
// connection, behind a request without an identity, and behind a request that was
// allowed.
func refused(reason allowlist.Reason, head string) []scenario {
	return refusedAs("", reason, head)
}

func refusedAs(name string, reason allowlist.Reason, head string) []scenario {
	a := ask{name: name, head: head, reason: reason, host: anyHost}
	return []scenario{a.scenario(), a.second(), a.behindAllowed()}
}

// denied returns the case of a head that policy refuses without a lookup.
func denied(reason allowlist.Reason, head, host string) scenario {
	return ask{head: head, reason: reason, host: host}.scenario()
}

// opens returns the case of a head that opens a tunnel to the origin.
func opens(head, host string) scenario {
	return ask{head: head, host: host, lookups: 1, dials: 1}.scenario()
}

func (a ask) scenario() scenario {
	return scenario{name: a.title(), only: wireOf(a.head, a.reason), run: a.run}
}

func (a ask) title() string {
	if a.name != "" {
		return a.name
	}
	return brief(a.head)
}

// second returns the case of the request behind one that was answered 407 and kept its
// connection open.
func (a ask) second() scenario {
	return scenario{name: a.title() + ", behind a 407", only: wireOf(a.head, a.reason), run: func(t *testing.T, g *gateway) {
		c := g.callAlone(t, nobody)
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

// on sends the request on a connection, and checks what comes of it.
func (a ask) on(t *testing.T, g *gateway, c *caller) {
	t.Helper()
	before := g.counts()
	a.check(t, g, c, c.ask(t, g.fill(a.head)), before)
}

// check checks the answer to the request, its record, and the numbers of lookups and dials
// since before.
func (a ask) check(t *testing.T, g *gateway, c *caller, got answer, before counts) {
	t.Helper()
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
		t.Errorf("the answer names the decision %q, the record %q", got.header.Get("X-Exeat-Decision"), r.ID)
	}
	if r.Wire != string(cmp.Or(g.wire, h1)) {
		t.Errorf("recorded as a request over %s", r.Wire)
	}
	a.checkAddress(t, r)
	if got.status == 200 {
		g.finish(t, c, a.dialled(g))
	} else {
		a.checkRefusal(t, g, got, r)
		switch {
		case g.wire == h2:
			c.ended(t)
		case got.close:
			c.gone(t)
		}
		_ = c.Close()
	}
	if n := g.counts(); n.lookups-before.lookups != a.lookups || n.dials-before.dials != a.dials {
		t.Errorf("%d lookups and %d dials, want %d and %d", n.lookups-before.lookups, n.dials-before.dials, a.lookups, a.dials)
	}
}

// checkAddress checks the fields of the record about addresses.
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

// checkRefusal checks the verdict in the record, and that the answer closes the
// connection if it must.
func (a ask) checkRefusal(t *testing.T, g *gateway, got answer, r record) {
	t.Helper()
	verdict := "deny"
	switch got.status {
	case 500, 502, 504:
		verdict = "fail"
	}
	if r.Verdict != verdict {
		t.Errorf("recorded as %s, want %s", r.Verdict, verdict)
	}
	if g.wire == h2 { // the answer ends its stream only
		return
	}
	switch got.status {
	case 407, 500, 502, 504:
	case 403, 429: // may stay open behind a plain request whose end is known
		if !got.close && strings.HasPrefix(a.head, "CONNECT ") {
			t.Error("the answer does not close the connection")
		}
	default:
		if !got.close {
			t.Error("the answer does not close the connection")
		}
	}
}

// dialled returns the origin that the request must have reached.
func (a ask) dialled(g *gateway) *origin {
	if a.host == "::1" {
		return g.six
	}
	return g.origin
}

// finish ends a tunnel that carried no bytes, and reads the record of its end.
func (g *gateway) finish(t *testing.T, c *caller, o *origin) {
	t.Helper()
	conn := o.next(t)
	_ = c.Close()
	_ = conn.Close()
	g.next(t, audit.EventTunnelClose)
}
