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

// TestWhatIsOpenIsWhatANewRequestMay opens tunnels of every kind, puts random policies
// in force, and asks after each of them for everything that is open once more: what a
// new request is refused is open no more, and what it may have goes on, unless its
// first bytes were not looked at and now must be.
func TestWhatIsOpenIsWhatANewRequestMay(t *testing.T) {
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
				t.Errorf("seed %d, round %d: %s has ended, and a new one may be opened", seed, round, o.kind)
			case goesOn && again == nil:
				t.Errorf("seed %d, round %d: %s goes on, and a new one is refused", seed, round, o.kind)
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
			t.Errorf("seed %d, round %d: %d more were told to end than have", seed, round, told)
		}
		open = left
	}
	if ends < rounds || stays < rounds {
		t.Errorf("seed %d: %d have ended and %d gone on: little was shown", seed, ends, stays)
	}
	for _, o := range open {
		o.close()
	}
	s.emptied(t)
}

// left waits until nothing is open but so many: others have been closed.
func (s *openings) left(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); s.registry.Len() != n; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d are in the registry, want %d", s.registry.Len(), n)
		}
	}
}

// openings opens what is random.
type openings struct {
	*gateway
	*rand.Rand

	versions int
	modes    map[string]allowlist.TLSMode // of the policy in force, by host
}

// kind is what is asked for.
type kind struct {
	host, via string // via "" is without an alias
	inspect   bool
	sent      string // the first bytes
	name      string // of the first bytes, for the test's own output
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

// put puts a random policy in force and returns how many it has told to end.
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
	unseen bool // nobody has looked at its first bytes
}

// ask asks for a tunnel and sends the first bytes; nil if either is refused.
func (s *openings) ask(t *testing.T, k kind) *opening {
	t.Helper()
	if s.names.over(k.inspect); k.via != "" {
		s.names.over(k.inspect, k.via)
	}
	o := &opening{kind: k, caller: s.callPlain(t), unseen: s.modes[k.host] == tlsOff}
	if a := o.ask(t, connectTo(s.at(k.host))); a.status != 200 {
		_ = o.Close()
		for len(s.origin.conns) > 0 { // one that was dialled and confirmed no more
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

// hears reports whether what the origin sent is the next that the caller reads.
func (o *opening) hears() bool {
	b, err := o.reader.ReadByte()
	return err == nil && b == 'k'
}

// goesOn reports whether the tunnel is open: else its end is what comes.
func (o *opening) goesOn() bool {
	_, _ = o.origin.Write([]byte("k")) // the end may be quicker
	return o.hears()
}

func (o *opening) close() {
	_ = o.Close()
	_ = o.origin.Close()
}
