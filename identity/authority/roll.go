package authority

import (
	"crypto/x509"
	"errors"
)

// Prepare makes a new CA and adds it to the bundle; it does not sign yet. It is
// an error while another one waits to be activated, and for an authority made
// by [Open], whose directory holds one CA.
func (a *Authority) Prepare() error {
	if a.lifetime == 0 {
		return errors.New("an authority in a directory has one CA; remove its files to make a new one")
	}
	next, err := newIssuer(a.trustDomain, a.lifetime)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next != nil {
		return errors.New("a new CA is prepared already; activate it first")
	}
	a.next = &next
	a.announce()
	return nil
}

// Activate lets the prepared CA sign. The old one stays in the bundle, so that
// what it signed stays good.
func (a *Authority) Activate() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next == nil {
		return errors.New("no new CA is prepared")
	}
	a.old = append(a.old, a.signing.ca)
	a.signing, a.next = *a.next, nil
	a.announce()
	return nil
}

// Retire takes every old CA out of the bundle, which ends what they signed.
func (a *Authority) Retire() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.old) == 0 {
		return errors.New("there is no old CA to retire; activate a new one first")
	}
	a.old = nil
	a.announce()
	return nil
}

// Changed returns a channel that is closed at the next step of a roll. Take it
// before reading what may change.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// announce is called with mu held.
func (a *Authority) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// authorities returns the certificates in the bundle, in a slice of its own.
func (a *Authority) authorities() []*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := []*x509.Certificate{a.signing.ca}
	if a.next != nil {
		all = append(all, a.next.ca)
	}
	return append(all, a.old...)
}
