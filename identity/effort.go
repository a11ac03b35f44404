package identity

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"time"
)

// Budget is the processor time that peers may cost whose certificates do not
// verify, until it is used up. A nil Budget has no end.
type Budget interface {
	// Left reports whether anything is left.
	Left() bool
	// Spend takes what was used, which may be more than was left.
	Spend(used time.Duration)
}

// effort is what the signatures of one verification cost. It is counted by kind
// of key and not measured, so that it is the same on a busy machine.
type effort struct {
	checks int
	time   time.Duration
}

// check counts one check of a signature with a key.
func (e *effort) check(public any) {
	e.checks++
	e.time += costOf(public)
}

// costOf is the processor time of one check of a signature, rounded up, as
// measured with Go 1.26 on a processor of 2.5 GHz.
func costOf(public any) time.Duration {
	switch key := public.(type) {
	case *rsa.PublicKey:
		const unit = 70 * time.Microsecond // of 2,048 bits; four times that with twice as many
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

// costOfHandshake is what a peer has cost before its chain is looked at: that it
// signed the handshake, and that what it presented was parsed, at its worst about
// 100 ns a byte.
func costOfHandshake(certs []*x509.Certificate) time.Duration {
	if certs[0].PublicKey == nil {
		return 0
	}
	size := 0
	for _, cert := range certs {
		size += len(cert.Raw)
	}
	if size == 0 {
		size = maxBytes // they were let go
	}
	return costOf(certs[0].PublicKey) + time.Duration(size)*100*time.Nanosecond
}
