package authority

import (
	"crypto/x509"
	"errors"
)

// Prepare makes a new CA and adds it to the bundle. The new CA does not sign yet. It is
// an error if another new CA has not been activated yet, or if [Open] made the authority,
// since a directory has one CA only.
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

// Activate makes the prepared CA the one that signs. The old CA stays in the bundle, so
// that the certificates that it signed stay trusted.
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

// Retire removes every old CA from the bundle. The certificates that they signed are not
// trusted any more.
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

// Changed returns a channel that is closed at the next step of a roll. Call it before the
// methods whose results a roll changes, so that no step is missed.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// announce closes the channel of Changed. The caller holds mu.
func (a *Authority) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// authorities returns the certificates in the bundle, in a new slice.
func (a *Authority) authorities() []*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := []*x509.Certificate{a.signing.ca}
	if a.next != nil {
		all = append(all, a.next.ca)
	}
	return append(all, a.old...)
}
