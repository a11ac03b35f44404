package soak

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

// What callers do with untrusted certificates, and what that may cost the gateway and
// another caller's tunnel.
const (
	exploding    = 310              // connections with a certificate of thousands of names, which then wait
	perExploding = 256 << 10        // resident bytes of each, with garbage that is not collected yet; the certificate parses to 1.2 MB
	expensive    = 2000             // handshakes with false authorities
	atMost       = 10 * time.Second // processor time of the gateway for all of them
	echoWithin   = 10 * time.Second // for an exchange in the other tunnel meanwhile
)

// strangers lets callers without an identity use as much memory, and then as much
// processor time, as their certificates can.
func strangers(ctx context.Context, w *world, _ options, out io.Writer) (faults []string, err error) {
	g, err := w.serve(ctx, "timeouts: {handshake: 20s, head: 60s, drain_delay: 0s, drain_timeout: 0s}\n")
	if err != nil {
		return nil, err
	}
	defer g.Stop()
	quiet := w.caller(g, "quiet", "127.0.0.1")
	before, err := g.leastUsage(ctx, quiet)
	if err != nil {
		return nil, err
	}
	tunnel, err := quiet.Open(ctx, quiet.target)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tunnel.Close() }()
	for _, part := range []func(context.Context, *world, *gateway, net.Conn, io.Writer) ([]string, error){explode, exhaust} {
		found, err := part(ctx, w, g, tunnel, out)
		if err != nil {
			return nil, err
		}
		faults = append(faults, found...)
	}
	_ = tunnel.Close()
	after, err := g.returns(ctx, before, quiet)
	return append(faults, stays(before, after)...), err
}

// unharmed checks that a tunnel which was open before still carries bytes.
func unharmed(tunnel net.Conn) error {
	if err := tunnel.SetDeadline(time.Now().Add(echoWithin)); err != nil {
		return err
	}
	if err := load.Echo(tunnel, make([]byte, 1<<10)); err != nil {
		return fmt.Errorf("another identity's tunnel is harmed: %w", err)
	}
	return nil
}

// explode keeps connections open that have shown 7,000 names in 15 KB.
func explode(ctx context.Context, w *world, g *gateway, tunnel net.Conn, out io.Writer) (faults []string, err error) {
	names, err := manyNames(7000)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := falseCertificate(&x509.Certificate{ExtraExtensions: []pkix.Extension{names}}, nil, key.Public())
	if err != nil {
		return nil, err
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	resident, err := g.Resident()
	if err != nil {
		return nil, err
	}
	all, err := hold(ctx, exploding, func(ctx context.Context, i int) (net.Conn, error) {
		return w.showing(g, cert, fmt.Sprintf("127.0.2.%d", 1+i%31)).Dial(ctx) // one address alone would exceed its budget
	})
	if err == nil {
		err = g.holds(ctx, exploding*99/100)
	}
	if err == nil {
		err = unharmed(tunnel)
	}
	most, residentErr := g.Resident()
	for _, conn := range all {
		_ = conn.Close()
	}
	if err := errors.Join(err, residentErr); err != nil {
		return nil, err
	}
	each := (most - resident) / exploding
	_, _ = fmt.Fprintf(out, "%d connections that have shown a certificate of 7,000 names: %.1f KiB each, resident; another's tunnel is unharmed\n",
		exploding, float64(each)/1024)
	if each > perExploding {
		faults = append(faults, fmt.Sprintf("a certificate of 7,000 names holds %d KiB, at most %d are fine", each>>10, perExploding>>10))
	}
	return faults, nil
}

// exhaust makes handshakes with false authorities that have the name of the real one and
// keys that are expensive to verify with.
func exhaust(ctx context.Context, w *world, g *gateway, tunnel net.Conn, out io.Writer) (faults []string, err error) {
	before, err := g.CPU()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	err = load.Each(ctx, expensive, 8, func(ctx context.Context, i int) error {
		chain, err := w.falseChain(int64(i))
		if err != nil {
			return err
		}
		// The request is answered, or the connection closed for its source's budget.
		conn, err := w.showing(g, chain, "127.0.0.5").Dial(ctx)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(conn, load.Connect(w.target()))
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		return nil
	})
	if err == nil {
		err = unharmed(tunnel)
	}
	if err != nil {
		return nil, err
	}
	after, err := g.CPU()
	if err != nil {
		return nil, err
	}
	used := after - before
	_, _ = fmt.Fprintf(out, "%d handshakes with false authorities in %.1f s: %.2f ms of processor time each; another's tunnel is unharmed\n",
		expensive, time.Since(began).Seconds(), used.Seconds()*1000/expensive)
	if used > atMost {
		faults = append(faults, fmt.Sprintf("%d handshakes of strangers took %s of processor time, at most %s are fine", expensive, used, atMost))
	}
	return faults, nil
}

// manyNames returns a subjectAltName of n empty URIs.
func manyNames(n int) (pkix.Extension, error) {
	all := make([]asn1.RawValue, n)
	for i := range all {
		all[i] = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6}
	}
	value, err := asn1.Marshal(all)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}, err
}

// showing returns a caller that sends a certificate whatever authorities the gateway
// names.
func (w *world) showing(g *gateway, cert tls.Certificate, from string) *caller {
	c := w.caller(g, "", from)
	c.TLS = c.TLS.Clone()
	c.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return c
}

// falseCertificate returns a certificate that names an issuer that has not signed it.
func falseCertificate(template *x509.Certificate, issuer []byte, public crypto.PublicKey) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	return x509.CreateCertificate(rand.Reader, template, &x509.Certificate{RawSubject: issuer}, public, key)
}

// falseChain returns an SVID that is valid but for its signature, with four false
// authorities that have the name of the real one.
func (w *world) falseChain(i int64) (chain tls.Certificate, err error) {
	const bits = 4096
	root := w.Authority.X509Bundle().X509Authorities()[0].RawSubject
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return chain, err
	}
	add := func(template *x509.Certificate, public crypto.PublicKey) {
		if err != nil {
			return
		}
		var der []byte
		der, err = falseCertificate(template, root, public)
		chain.Certificate = append(chain.Certificate, der)
	}
	id, err := url.Parse("spiffe://" + trustDomain + "/hostile")
	if err != nil {
		return chain, err
	}
	add(&x509.Certificate{URIs: []*url.URL{id}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key.Public())
	for j := range int64(4) {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		n.Add(n, big.NewInt(2*(4*i+j)+1))
		add(&x509.Certificate{RawSubject: root, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, &rsa.PublicKey{N: n, E: 65537})
	}
	chain.PrivateKey = key
	return chain, err
}
