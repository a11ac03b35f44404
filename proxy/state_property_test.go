package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestOpenTunnelsAreThoseThatMayBeOpenedAnew opens tunnels of every kind and puts random
// policies in force. After each policy, it opens a new tunnel of the kind of each open
// one. If the new one is refused, the old one must have ended. If it opens, the old one
// must still be open, unless its first bytes were not checked and now must be.
func TestOpenTunnelsAreThoseThatMayBeOpenedAnew(t *testing.T) {
	const rounds, most = 40, 10
	seed := rand.Uint64()
	s := &openings{gateway: newGateway(t, options{hello: patience}), Rand: rand.New(rand.NewPCG(seed, 1))}
	s.put(t)
	var open []*opening
	ends, stays := 0, 0
	for round := range rounds {
		for tries := 0; len(open) < most && tries < 4*most; tries++ {
			if o := s.ask(t, s.kind()); o != nil {
				open = append(open, o)
			}
		}
		s.left(t, len(open))
		told := s.put(t)
		var left []*opening
		for _, o := range open {
			again := s.ask(t, o.kind)
			switch goesOn := o.goesOn(); {
			case !goesOn && again != nil && !o.unseen:
				t.Errorf("seed %d, round %d: %s has ended, but a new one opens", seed, round, o.kind)
			case goesOn && again == nil:
				t.Errorf("seed %d, round %d: %s goes on, but a new one is refused", seed, round, o.kind)
			case goesOn:
				left = append(left, o)
				stays++
			default:
				o.close()
				ends++
				told--
			}
			if again != nil {
				again.close()
			}
		}
		if told != 0 {
			t.Errorf("seed %d, round %d: %d more tunnels were closed than have ended", seed, round, told)
		}
		open = left
	}
	if ends < rounds || stays < rounds {
		t.Errorf("seed %d: %d tunnels have ended and %d gone on, too few to show anything", seed, ends, stays)
	}
	for _, o := range open {
		o.close()
	}
	s.emptied(t)
}

// left waits until n tunnels are in the registry. Others have been closed.
func (s *openings) left(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); s.registry.Len() != n; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d are in the registry, want %d", s.registry.Len(), n)
		}
	}
}

// openings opens random tunnels, and puts random policies in force.
type openings struct {
	*gateway
	*rand.Rand

	versions int
	modes    map[string]allowlist.TLSMode // modes of the policy in force, by host
}

// kind describes a tunnel and its first bytes.
type kind struct {
	host, via string // via is "" if there is no alias
	inspect   bool
	sent      string // the first bytes
	name      string // name of the first bytes, for messages
}

func (k kind) String() string {
	return fmt.Sprintf("%s over %q (inspected: %v), %s", k.host, k.via, k.inspect, k.name)
}

func (s *openings) one(of ...string) string { return of[s.IntN(len(of))] }

func (s *openings) kind() kind {
	k := kind{
		host: s.one("a.example", "b.example", "c.example"), via: s.one("", "x.example", "y.example"), inspect: s.IntN(3) == 0,
		name: s.one("a hello", "a hello that hides a name", "in clear", "nothing yet"),
	}
	switch k.name {
	case "a hello":
		k.sent = clientHello(k.host, false, 1<<14)
	case "a hello that hides a name":
		k.sent = clientHello(k.host, true, 1<<14)
	case "in clear":
		k.sent = "SSH-2.0-x\r\n"
	}
	return k
}

// put puts a random policy in force and returns how many tunnels it has closed.
func (s *openings) put(t *testing.T) (told int) {
	t.Helper()
	s.versions++
	s.modes = map[string]allowlist.TLSMode{}
	e := allowlist.Entry{Pattern: only("sidecar")}
	for _, host := range []string{"a.example", "b.example", "c.example", "x.example", "y.example"} {
		if s.IntN(6) == 0 {
			continue
		}
		rule := to(host, s.origin.port)
		rule.TLS = []allowlist.TLSMode{tlsOff, tlsAuto, tlsRequire}[s.IntN(3)]
		if rule.TLS != tlsOff && s.IntN(3) == 0 {
			rule.ECH = echRefuse
		}
		s.modes[host] = rule.TLS
		e.Allow = append(e.Allow, rule)
	}
	if s.IntN(2) == 0 {
		e.Deny = append(e.Deny, with(to(s.one("a.example", "x.example", "y.example", "**.example")), func(r *allowlist.Rule) { r.Addresses = nil }))
		if e.Deny[0].Host.String() == "**.example" && s.IntN(4) > 0 {
			e.Deny = nil
		}
	}
	p, err := allowlist.Compile(allowlist.Spec{Version: fmt.Sprint(s.versions), Entries: []allowlist.Entry{e}})
	if err != nil {
		t.Fatal(err)
	}
	return s.enforcer().put(t.Context(), p).Closed
}

// opening is a tunnel that is open.
type opening struct {
	kind
	*caller
	origin net.Conn
	unseen bool // the first bytes were not checked
}

// ask opens a tunnel and sends the first bytes. It returns nil if either is refused.
func (s *openings) ask(t *testing.T, k kind) *opening {
	t.Helper()
	if s.names.over(k.inspect); k.via != "" {
		s.names.over(k.inspect, k.via)
	}
	o := &opening{kind: k, caller: s.callPlain(t), unseen: s.modes[k.host] == tlsOff}
	if a := o.ask(t, connectTo(s.at(k.host))); a.status != 200 {
		_ = o.Close()
		for len(s.origin.conns) > 0 { // a connection that was dialled before the request was refused
			_ = (<-s.origin.conns).Close()
		}
		return nil
	}
	o.origin = s.origin.next(t)
	if k.sent != "" {
		o.send(t, k.sent)
		go func() {
			if n, _ := o.origin.Read(make([]byte, 1<<14)); n > 0 {
				_, _ = o.origin.Write([]byte("k"))
			}
		}()
	} else if _, err := o.origin.Write([]byte("k")); err != nil {
		t.Fatal(err)
	}
	if !o.hears() {
		o.close()
		return nil
	}
	return o
}

// hears reports whether the caller reads the byte that the origin has sent.
func (o *opening) hears() bool {
	b, err := o.reader.ReadByte()
	return err == nil && b == 'k'
}

// goesOn reports whether the tunnel is still open.
func (o *opening) goesOn() bool {
	_, _ = o.origin.Write([]byte("k")) // fails if the tunnel has already ended
	return o.hears()
}

func (o *opening) close() {
	_ = o.Close()
	_ = o.origin.Close()
}
