package listen

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// junk returns a self-signed certificate with a number of empty URI names, and an
// extension of size bytes.
func junk(t *testing.T, names, size int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]asn1.RawValue, names)
	for i := range all {
		all[i] = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6}
	}
	value, err := asn1.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: "junk"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}, {Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, size)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// beside adds another certificate to those that a client presents.
func beside(cert, other tls.Certificate) tls.Certificate {
	cert.Certificate = append(slices.Clip(cert.Certificate), other.Certificate...)
	return cert
}

// TestPresentedCertificatesAreBounded checks that the bytes of a handshake and what they parse to
// are bounded, and that only the verified chain is kept.
func TestPresentedCertificatesAreBounded(t *testing.T) {
	p := newPKI(t)
	r := serve(t, p.withTLS)
	good := mint(t, p.ca, "spiffe://prod.example/builder", 0).TLS()
	for _, row := range []struct {
		name   string
		cert   tls.Certificate
		reason allowlist.Reason
		excess bool
		keeps  int
	}{
		{"an SVID", good, allowlist.NoReason, false, 1},
		{"an SVID beside an unrelated certificate", beside(good, junk(t, 0, 3<<10)), allowlist.NoReason, false, 1},
		{"an SVID beside a certificate of 14 KiB", beside(good, junk(t, 0, 14<<10)), allowlist.NoReason, false, 1},
		{"an SVID beside a certificate that is large when parsed", beside(good, junk(t, 7000, 0)), allowlist.IdentityInvalid, true, 0},
		{"a certificate that is large when parsed", junk(t, 7000, 0), allowlist.IdentityInvalid, true, 0},
		{"a small certificate that is large when parsed", junk(t, 1500, 0), allowlist.IdentityInvalid, true, 0},
		{"a certificate of 15 KiB", junk(t, 1, 15<<10), allowlist.IdentityInvalid, false, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			conn := dialTLS(t, r.Addr(), p.client(row.cert))
			speak(t, conn)
			c := <-r.conns
			if c.Caller.Reason != row.reason || c.Caller.Excess != row.excess || len(c.Certificates) != row.keeps {
				t.Errorf("got %+v with %d certificates", c.Caller, len(c.Certificates))
			}
			if c.Renew(); c.Caller.Reason != row.reason {
				t.Errorf("later %+v", c.Caller)
			}
			c.generation = 0 // as if the trust bundles had changed
			if c.Renew(); c.Caller.Reason != row.reason || c.Caller.Excess != row.excess || len(c.Certificates) != row.keeps {
				t.Errorf("after another look %+v with %d certificates", c.Caller, len(c.Certificates))
			}
			_ = conn.Close()
		})
	}
	hello := "\x01\x00\xf0\x00\x03\x03" + strings.Repeat("\x00", 16384-6) // the start of a ClientHello of 60 KiB
	for name, talk := range map[string]func(net.Conn){
		"30 KB": func(c net.Conn) {
			conn := tls.Client(c, p.client(junk(t, 15_500, 0)))
			if conn.HandshakeContext(t.Context()) == nil {
				_, _ = conn.Read(make([]byte, 1))
			}
		},
		"an SVID and 30 KB": func(c net.Conn) {
			conn := tls.Client(c, p.client(beside(good, junk(t, 15_000, 0))))
			if conn.HandshakeContext(t.Context()) == nil {
				_, _ = conn.Read(make([]byte, 1))
			}
		},
		"a ClientHello of 60 KiB": func(c net.Conn) {
			for i := range 4 {
				text := hello
				if i > 0 {
					text = strings.Repeat("\x00", 16384)
				}
				if _, err := io.WriteString(c, "\x16\x03\x01\x40\x00"+text); err != nil {
					return
				}
			}
		},
	} {
		conn := dialRaw(t, r.Addr())
		talk(conn)
		if err := <-r.failures; !errors.Is(err, tunnel.ErrGreetingTooLong) {
			t.Errorf("%s: HandshakeFailed was told %v", name, err)
		}
		closed(t, conn)
	}
	if len(r.conns) != 0 {
		t.Error("a connection got through")
	}
}

// stall sends as much of a ClientHello as needs a permit, and then nothing.
func stall(t *testing.T, r *rig, header string) net.Conn {
	t.Helper()
	conn := dialRaw(t, r.Addr())
	send(t, conn, header+"\x16\x03\x01\x40\x00\x01\x00\xf0\x00\x03\x03"+strings.Repeat("\x00", freeHandshake))
	return conn
}

// TestPermitsForLongHandshakes checks that an address which keeps all permits does not
// lock out another address.
func TestPermitsForLongHandshakes(t *testing.T) {
	p := newPKI(t)
	r, refusals := behind(t, "127.0.0.0/8", func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Permits, cfg.HandshakeTimeout = limit.NewPermits(3), time.Minute
	})
	for range 5 {
		stall(t, r, v1Header)
	}
	config := p.client(beside(mint(t, p.ca, "spiffe://prod.example/builder", 0).TLS(), junk(t, 0, 8<<10)))
	for displaced := 0; displaced == 0; { // the connections above may be late
		conn := dialRaw(t, r.Addr())
		send(t, conn, strings.Replace(v1Header, "198.51.100.7", "198.51.100.8", 1))
		if err := tls.Client(conn, config).HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c := <-r.conns; c.Caller.Reason != allowlist.NoReason {
			t.Errorf("got %+v", c.Caller)
		}
		_ = conn.Close()
		for len(refusals) > 0 {
			displaced++
			if got := <-refusals; got.why != allowlist.RateLimited || got.client.Addr().String() != "198.51.100.7" || !strings.Contains(got.detail, "long handshakes") {
				t.Errorf("refused %+v", got)
			}
		}
	}
}

// TestHandshakeThatWaitsForAPermit checks that a caller which waits for a permit is refused
// when the time for its handshake is over, that a caller which needs none is served
// meanwhile, and that the permit is given back.
func TestHandshakeThatWaitsForAPermit(t *testing.T) {
	p := newPKI(t)
	permits := limit.NewPermits(1)
	refusals := make(chan refusal, 100)
	patient := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Permits = permits
	})
	hasty := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Permits, cfg.HandshakeTimeout = permits, 50*time.Millisecond
		cfg.Refused = func(_ context.Context, client netip.AddrPort, why allowlist.Reason, detail string) {
			refusals <- refusal{client, why, detail}
		}
	})
	taken, err := permits.Take(t.Context(), nil, func() { t.Error("the only permit of a source is taken away") })
	if err != nil {
		t.Fatal(err)
	}
	good := mint(t, p.ca, "spiffe://prod.example/builder", 0).TLS()
	waiting := stall(t, hasty, "")
	speak(t, dialTLS(t, patient.Addr(), p.client(good)))
	<-patient.conns
	if got := <-refusals; got.why != allowlist.RateLimited || !strings.Contains(got.detail, "long handshakes") {
		t.Errorf("refused %+v", got)
	}
	closed(t, waiting)
	taken.Close()
	for range 3 { // each gives its permit back
		speak(t, dialTLS(t, patient.Addr(), p.client(beside(good, junk(t, 0, 8<<10)))))
		<-patient.conns
	}
}

// TestContextEndsTheWaitForAPermit checks that the end of the context closes connections
// that wait for a permit.
func TestContextEndsTheWaitForAPermit(t *testing.T) {
	p := newPKI(t)
	permits := limit.NewPermits(1)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Permits, cfg.HandshakeTimeout = permits, time.Hour
	})
	if _, err := permits.Take(t.Context(), nil, func() {}); err != nil {
		t.Fatal(err)
	}
	waiting := stall(t, r, "")
	r.cut()
	closed(t, waiting)
	<-r.failures
}

// TestACallerThatWaitsForAPermitCanBeClosed checks that a connection which loses its
// slot to another while it waits gives its descriptor back at once.
func TestACallerThatWaitsForAPermitCanBeClosed(t *testing.T) {
	p := newPKI(t)
	permits, descriptors, cuts := limit.NewPermits(1), limit.NewDescriptors(8), make(chan limit.Cause, 100)
	shares := limit.SharesOf(64)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Permits, cfg.Descriptors, cfg.HandshakeTimeout = permits, descriptors, time.Hour
		cfg.Slots, cfg.Shed = limit.NewSlots(shares), func(cause limit.Cause) { cuts <- cause }
	})
	if _, err := permits.Take(t.Context(), nil, func() {}); err != nil {
		t.Fatal(err)
	}
	for range 5 * shares.PerSource {
		_ = stall(t, r, "").Close()
	}
	for range 4 * shares.PerSource {
		if got := <-cuts; got != limit.CauseSource {
			t.Errorf("cut for %v", got)
		}
	}
	for end := time.Now().Add(30 * time.Second); descriptors.Stats().Used > shares.PerSource; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are taken, want %d at most", descriptors.Stats().Used, shares.PerSource)
		}
	}
}

// TestUnverifiedCertificatesSpendABudget checks that certificates which do not verify
// spend a budget of their source address, also those that the cache knows, while
// verified callers and other addresses are served.
func TestUnverifiedCertificatesSpendABudget(t *testing.T) {
	p := newPKI(t)
	r, refusals := behind(t, "127.0.0.0/8", func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Sources = limit.NewSources(limit.Config{Strangers: 500 * time.Microsecond, Handshakes: 1 << 20})
	})
	there, here := v1Header, strings.Replace(v1Header, "198.51.100.7", "198.51.100.8", 1)
	ask := func(header string, cert tls.Certificate) bool {
		t.Helper()
		raw := dialRaw(t, r.Addr())
		send(t, raw, header)
		conn := tls.Client(raw, p.client(cert))
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "x"); err == nil {
			if _, err = conn.Read(make([]byte, 1)); err == nil {
				_ = conn.Close()
				return true
			}
		}
		return false
	}
	known, unknown := mint(t, p.ca, "spiffe://prod.example/builder", 0).TLS(), mint(t, p.ca, "spiffe://prod.example/other", 0).TLS()
	if !ask(there, known) {
		t.Fatal("a good caller is refused")
	}
	stranger := mint(t, newAuthority(t, "prod.example"), "spiffe://prod.example/builder", 0).TLS()
	served := 0
	for ask(there, stranger) {
		if served++; served > 10_000 {
			t.Fatal("a stranger may go on for ever")
		}
	}
	if got := <-refusals; got.why != allowlist.RateLimited || got.client.Addr().String() != "198.51.100.7" || !strings.Contains(got.detail, "do not verify") {
		t.Errorf("refused %+v", got)
	}
	if served == 0 {
		t.Error("no stranger is answered")
	}
	for range 20 {
		if !ask(there, known) {
			t.Error("a caller that is known pays for strangers")
		}
	}
	if !ask(here, unknown) || !ask(here, stranger) {
		t.Error("another address pays for it")
	}
}

// TestMemoryOfIdleCallers measures the memory of idle connections whose callers have
// presented certificates that expand when they are parsed.
func TestMemoryOfIdleCallers(t *testing.T) {
	// Both ends of each connection are in this process, and crypto/tls keeps the
	// buffers that a long flight has grown: two of 16 KiB at the server.
	const count, most = 100, 128 << 10
	p := newPKI(t)
	r := serve(t, func(r *rig, cfg *Config) {
		p.withTLS(r, cfg)
		cfg.Sources = limit.NewSources(limit.Config{Handshakes: 2 * count, Strangers: time.Minute})
	})
	good := mint(t, p.ca, "spiffe://prod.example/builder", 0).TLS()
	for name, cert := range map[string]tls.Certificate{
		"an SVID": good, "an SVID beside 7,000 names": beside(good, junk(t, 7000, 0)), "7,000 names": junk(t, 7000, 0),
	} {
		config := p.client(cert)
		before := heap()
		var all []net.Conn
		for range count {
			conn := dialTLS(t, r.Addr(), config)
			all = append(all, conn)
			<-r.conns
		}
		each := (int64(heap()) - int64(before)) / count
		t.Logf("%s: %d bytes a connection, both ends", name, each)
		if each > most {
			t.Errorf("%s: %d bytes a connection, at most %d are fine", name, each, most)
		}
		for _, conn := range all {
			_ = conn.Close()
		}
		for r.handling.Load() > 0 {
			runtime.Gosched()
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // frees what the first run has found unreachable
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
