package resolve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// selfSigned returns a certificate for dns.example and 192.0.2.53, and a PEM file with
// it as CA.
func selfSigned(tb testing.TB) (tls.Certificate, string) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other.example"}, DNSNames: []string{"dns.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(tb.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// TestDoT checks the name and the authority of a server over TLS.
func TestDoT(t *testing.T) {
	cert, ca := selfSigned(t)
	_, otherCA := selfSigned(t)
	rows := []struct {
		name   string
		server tls.Config
		asks   Server
		want   string
	}{
		{name: "a server with the right name", asks: Server{Name: "dns.example", CA: ca}, want: "192.0.2.1 from upstream"},
		{name: "a server with TLS 1.2", server: tls.Config{MaxVersion: tls.VersionTLS12}, asks: Server{Name: "dns.example", CA: ca}, want: "192.0.2.1 from upstream"},
		{name: "a server with another name", asks: Server{Name: "ns.example", CA: ca}, want: "resolve-failed"},
		{name: "a name that stands only in the subject", asks: Server{Name: "other.example", CA: ca}, want: "resolve-failed"},
		{name: "an address that the certificate is not for", asks: Server{Name: "127.0.0.1", CA: ca}, want: "resolve-failed"},
		{name: "a server of another authority", asks: Server{Name: "dns.example", CA: otherCA}, want: "resolve-failed"},
		{name: "a server that the system does not trust", asks: Server{Name: "dns.example"}, want: "resolve-failed"},
		{name: "a server with old TLS", server: tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, asks: Server{Name: "dns.example", CA: ca}, want: "resolve-failed"},
	}
	for i := range rows {
		row := &rows[i]
		t.Run(row.name, func(t *testing.T) {
			row.server.Certificates = []tls.Certificate{cert}
			s := newTLSServer(t, &row.server, addresses("192.0.2.1"))
			row.asks.Protocol, row.asks.Addr = DoT, s.addr
			r := newResolver(t, Config{Servers: []Server{row.asks}}).impatient(patience)
			check(t, lookup(t, r, "api.example", dns.TypeA), row.want)
			if row.want == "resolve-failed" {
				s.wasAsked(t)
			} else {
				s.wasAsked(t, "tcp A api.example")
			}
		})
	}
}

// TestValidatedAnswers checks that validated answers count only from an authenticated
// server.
func TestValidatedAnswers(t *testing.T) {
	cert, ca := selfSigned(t)
	script := func(q asked) answer {
		return answer{records: addressRecords(q, "192.0.2.1"), change: func(m *dns.Msg) { m.AuthenticatedData = true }}
	}
	plain := newServer(t, script)
	secure := newTLSServer(t, &tls.Config{Certificates: []tls.Certificate{cert}}, script)
	for _, row := range []struct {
		server Server
		want   bool
	}{
		{Server{Addr: plain.addr}, false},
		{Server{Addr: plain.addr, Protocol: TCP}, false},
		{Server{Addr: secure.addr, Protocol: DoT, Name: "dns.example", CA: ca}, true},
	} {
		r := newResolver(t, Config{Servers: []Server{row.server}})
		q := question(t, "api.example", dns.TypeA)
		a, err := r.Lookup(t.Context(), Asker{}, q)
		if err != nil {
			t.Fatal(err)
		}
		packet, _ := a.Append(nil, Reply{AD: true, Question: []byte("\x03api\x07example\x00\x00\x01\x00\x01")}, time.Now(), everything{})
		if got := packet[3]&0x20 != 0; got != row.want {
			t.Errorf("%s: %v", row.server, got)
		}
	}
}

// TestOneConnectionCarriesAllQuestions checks that one connection carries all questions,
// and the answers in any order.
func TestOneConnectionCarriesAllQuestions(t *testing.T) {
	const n = 50
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer {
		a := answer{records: addressRecords(q, "192.0.2.1")}
		if q.name == "first.example" { // asked first and answered last
			a.wait = release
		}
		return a
	})
	r := newResolver(t, Config{Servers: []Server{{Protocol: TCP, Addr: s.addr}}}).impatient(patience)
	var asking, first sync.WaitGroup
	first.Go(func() { check(t, lookup(t, r, "first.example", dns.TypeA), "192.0.2.1 from upstream") })
	s.await(t, 1)
	for i := range n {
		asking.Go(func() {
			check(t, lookup(t, r, fmt.Sprintf("h%d.example", i), dns.TypeA), "192.0.2.1 from upstream")
		})
	}
	asking.Wait()
	close(release)
	first.Wait()
	if got := s.connections(); got != 1 {
		t.Errorf("%d connections for %d questions", got, n+1)
	}
}

// TestSlowQuestionsLeaveRoomForOthers checks that slow questions, as many as a caller
// may have and more, leave room in the connection for the questions of others.
func TestSlowQuestionsLeaveRoomForOthers(t *testing.T) {
	const n = 512
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer {
		a := answer{records: addressRecords(q, "192.0.2.1")}
		if q.name != "quick.example" {
			a.wait = release
		}
		return a
	})
	r := newResolver(t, Config{Servers: []Server{{Protocol: TCP, Addr: s.addr}}}).impatient(patience)
	answerAll := sync.OnceFunc(func() { close(release) })
	t.Cleanup(answerAll)
	var asking sync.WaitGroup
	for i := range n {
		asking.Go(func() {
			_, _ = r.Lookup(t.Context(), Asker{}, question(t, fmt.Sprintf("slow%d.example", i), dns.TypeA))
		})
	}
	s.await(t, n)
	check(t, lookup(t, r, "quick.example", dns.TypeA), "192.0.2.1 from upstream")
	answerAll()
	asking.Wait()
	if got := s.connections(); got != 1 {
		t.Errorf("%d connections", got)
	}
}

// TestAConnectionThatTheServerCloses checks that a connection which the server closes is
// opened again, and that its question is asked again.
func TestAConnectionThatTheServerCloses(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		return answer{hangup: q.name == "b.example" && q.n == 0, records: addressRecords(q, "192.0.2.1")}
	})
	r := newResolver(t, Config{Servers: []Server{{Protocol: TCP, Addr: s.addr}}}).impatient(patience)
	check(t, lookup(t, r, "a.example", dns.TypeA), "192.0.2.1 from upstream")
	check(t, lookup(t, r, "b.example", dns.TypeA), "192.0.2.1 from upstream")
	s.wasAsked(t, "tcp A a.example", "tcp A b.example", "tcp A b.example")
	s.hangUp()
	check(t, lookup(t, r, "c.example", dns.TypeA), "192.0.2.1 from upstream")
	if got := s.connections(); got != 3 {
		t.Errorf("%d connections, want 3", got)
	}
}

// TestAConnectionWithAWrongAnswer checks that a connection is not used again after a
// wrong answer.
func TestAConnectionWithAWrongAnswer(t *testing.T) {
	s := newServer(t, func(q asked) answer {
		a := answer{records: addressRecords(q, "192.0.2.1")}
		if q.n == 0 {
			a.change = func(m *dns.Msg) { m.Question[0].Name = "evil.example." }
		}
		return a
	})
	r := newResolver(t, Config{Servers: []Server{{Protocol: TCP, Addr: s.addr}}}).impatient(patience)
	check(t, lookup(t, r, "a.example", dns.TypeA), "192.0.2.1 from upstream")
	if got := s.connections(); got != 2 {
		t.Errorf("%d connections, want 2", got)
	}
}

// TestUselessAnswerAffectsOnlyItsQuestion checks that an unusable answer, which the owner
// of a name may send on purpose, affects neither other questions in the connection nor the
// health of the server.
func TestUselessAnswerAffectsOnlyItsQuestion(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(q asked) answer {
		switch q.name {
		case "elsewhere.example":
			return answer{records: []string{"other.example. 60 IN A 192.0.2.66"}}
		case "cut.example":
			return answer{truncated: true}
		case "loop.example":
			return answer{records: []string{"loop.example. 60 IN CNAME loop.example."}}
		}
		return answer{records: addressRecords(q, "192.0.2.1"), wait: release}
	})
	r := newResolver(t, Config{Servers: []Server{{Protocol: TCP, Addr: s.addr}}}).impatient(patience)
	var waiting sync.WaitGroup
	waiting.Go(func() { check(t, lookup(t, r, "slow.example", dns.TypeA), "192.0.2.1 from upstream") })
	s.await(t, 1)
	for _, name := range []string{"elsewhere.example", "cut.example", "loop.example"} {
		check(t, lookup(t, r, name, dns.TypeA), "resolve-failed")
		if !r.upstreams[0].isHealthy(time.Now()) {
			t.Errorf("%s: the server rests", name)
		}
	}
	close(release)
	waiting.Wait()
	if got := s.connections(); got != 1 {
		t.Errorf("%d connections", got)
	}
}

// hasty is a connection whose server has answered and closed it before Write returns.
type hasty struct {
	net.Conn

	stream *stream
}

func (h *hasty) Write(framed []byte) (int, error) {
	packet := slices.Clone(framed[2:])
	packet[2] |= 1 << 7 // makes it an answer
	packet[11] = 0      // removes the OPT
	packet = packet[:len(packet)-11]
	h.stream.waiting[binary.BigEndian.Uint16(packet)] <- packet
	close(h.stream.ended)
	return len(framed), nil
}

// TestAnswerJustBeforeTheConnectionCloses checks that an answer just before the end of the
// connection counts.
func TestAnswerJustBeforeTheConnectionCloses(t *testing.T) {
	for range 50 { // it is random which of the two select sees first
		a, b := net.Pipe()
		st := &stream{waiting: map[uint16]chan []byte{}, ended: make(chan struct{})}
		st.conn = &hasty{a, st}
		if _, err := st.ask(t.Context(), question(t, "api.example", dns.TypeA), wire.NewQuery); err != nil {
			t.Fatal(err)
		}
		_, _ = a.Close(), b.Close()
	}
}

// TestUnansweredConnectionIsNotUsedAgain checks that a connection is not used again
// after a question without an answer, unless other questions in it are answered.
func TestUnansweredConnectionIsNotUsedAgain(t *testing.T) {
	for _, lively := range []bool{false, true} {
		heard := make(chan struct{})
		s := newServer(t, func(q asked) answer {
			if q.name == "silent.example" && q.n == 0 {
				close(heard)
				return answer{silent: true}
			}
			return answer{records: addressRecords(q, "192.0.2.1")}
		})
		r := newResolver(t, Config{Servers: []Server{{Protocol: TCP, Addr: s.addr}}}).impatient(patience)
		check(t, lookup(t, r, "a.example", dns.TypeA), "192.0.2.1 from upstream")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := r.upstreams[0].streams.ask(ctx, question(t, "silent.example", dns.TypeA), wire.NewQuery)
			ended <- err
		}()
		<-heard
		want := 2
		if lively {
			check(t, lookup(t, r, "b.example", dns.TypeA), "192.0.2.1 from upstream")
			want = 1
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		check(t, lookup(t, r, "c.example", dns.TypeA), "192.0.2.1 from upstream")
		if got := s.connections(); got != want {
			t.Errorf("lively %v: %d connections, want %d", lively, got, want)
		}
	}
}

// TestAFullConnection checks that a connection takes no more questions than its bound,
// and none after it has ended.
func TestAFullConnection(t *testing.T) {
	st := &stream{waiting: map[uint16]chan []byte{}}
	q := question(t, "api.example", dns.TypeA)
	for range maxInStream {
		if _, _, err := st.enter(q, wire.NewQuery); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := st.enter(q, wire.NewQuery); !errors.Is(err, errStreamFull) || len(st.waiting) != maxInStream {
		t.Errorf("%d wait: %v", len(st.waiting), err)
	}
	st.waiting = nil
	if _, _, err := st.enter(q, wire.NewQuery); !errors.Is(err, errStreamEnded) {
		t.Error(err)
	}
}

// TestNobodyWaitsForASilentServer checks that a question ends with its context while
// another one is still connecting.
func TestNobodyWaitsForASilentServer(t *testing.T) {
	s := newStreams(nil, nil)
	s.opening <- struct{}{} // another question connects
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ask(ctx, question(t, "api.example", dns.TypeA), wire.NewQuery); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-s.opening
	s.close()
	if _, err := s.ask(t.Context(), question(t, "api.example", dns.TypeA), wire.NewQuery); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}
