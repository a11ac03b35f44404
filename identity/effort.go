package identity

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"time"
)

// Budget bounds the processor time for peers whose certificates do not verify. A nil
// Budget has no bound.
type Budget interface {
	// Left reports whether some of the budget is left.
	Left() bool
	// Spend subtracts the time that was used, which may be more than was left.
	Spend(used time.Duration)
}

// effort is the processor time of the signature checks of one verification. It is
// computed from the kinds of the keys and not measured, so that it does not depend on
// how busy the machine is.
type effort struct {
	checks int
	time   time.Duration
}

// check adds one signature check with a key.
func (e *effort) check(public any) {
	e.checks++
	e.time += costOf(public)
}

// costOf returns the processor time of one signature check with a key, rounded up. The
// values were measured with Go 1.26 on a processor of 2.5 GHz.
func costOf(public any) time.Duration {
	switch key := public.(type) {
	case *rsa.PublicKey:
		const unit = 70 * time.Microsecond // with 2,048 bits; twice as many bits cost four times as much
		parts := time.Duration(key.N.BitLen()+1023) / 1024
		return unit * parts * parts / 4
	case *ecdsa.PublicKey:
		switch bits := key.Curve.Params().BitSize; {
		case bits <= 256:
			return 80 * time.Microsecond
		case bits <= 384:
			return 800 * time.Microsecond
		}
		return 2500 * time.Microsecond
	}
	return 80 * time.Microsecond
}

// costOfHandshake returns the processor time that a peer has cost before its chain is
// verified: the check of its signature over the handshake, and the parsing of its
// certificates, which takes at most about 100 ns a byte.
func costOfHandshake(certs []*x509.Certificate) time.Duration {
	if certs[0].PublicKey == nil {
		return 0
	}
	size := 0
	for _, cert := range certs {
		size += len(cert.Raw)
	}
	if size == 0 {
		size = maxBytes // the bytes are no longer there; assume the most
	}
	return costOf(certs[0].PublicKey) + time.Duration(size)*100*time.Nanosecond
}
