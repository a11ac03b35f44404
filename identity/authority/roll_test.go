package authority

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func TestCARollKeepsCertificatesInUseTrusted(t *testing.T) {
	a := newAuthority(t, 0)
	mint := func() *x509.Certificate {
		t.Helper()
		svid, err := a.Mint(Options{ID: workload()})
		if err != nil {
			t.Fatal(err)
		}
		return svid.TLS().Leaf
	}
	trusted := func(leaf *x509.Certificate) bool {
		_, _, err := x509svid.Verify([]*x509.Certificate{leaf}, a.X509Bundle())
		return err == nil
	}
	take := func(step func() error) {
		t.Helper()
		changed := a.Changed()
		if err := step(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		default:
			t.Error("the step did not close the channel of Changed")
		}
	}

	old, ca := mint(), a.X509Bundle().X509Authorities()[0]
	take(a.Prepare)
	if got := a.X509Bundle().X509Authorities(); len(got) != 2 || !got[0].Equal(ca) {
		t.Error("the prepared CA is not in the bundle, after the one that signs")
	}
	if leaf := mint(); !trusted(old) || leaf.CheckSignatureFrom(ca) != nil {
		t.Error("the prepared CA signs already")
	}
	take(a.Activate)
	fresh := mint()
	if !trusted(old) || !trusted(fresh) || fresh.CheckSignatureFrom(ca) == nil {
		t.Error("the old CA and the new one are not both trusted, or the old one signs")
	}
	take(a.Retire)
	if trusted(old) || !trusted(fresh) {
		t.Error("what the old CA signed is trusted, or what the new one signed is not")
	}
	if n := strings.Count(string(a.Bundle()), "BEGIN"); n != 1 {
		t.Errorf("%d certificates in the bundle", n)
	}
}

func TestStepsOfARollOutOfOrderAreErrors(t *testing.T) {
	a := newAuthority(t, 0)
	for _, step := range []struct {
		name string
		take func() error
		want string // text of the error; "" if there is none
	}{
		{"activate nothing", a.Activate, "no new CA"},
		{"retire nothing", a.Retire, "no old CA"},
		{"prepare", a.Prepare, ""},
		{"prepare again", a.Prepare, "prepared already"},
		{"retire before activating", a.Retire, "no old CA"},
		{"activate", a.Activate, ""},
		{"prepare the next one", a.Prepare, ""},
		{"activate it too", a.Activate, ""},
		{"retire both", a.Retire, ""},
		{"retire again", a.Retire, "no old CA"},
	} {
		err := step.take()
		if (err == nil) != (step.want == "") || err != nil && !strings.Contains(err.Error(), step.want) {
			t.Errorf("%s: got %v, want %q", step.name, err, step.want)
		}
	}
}

func TestAnAuthorityInADirectoryDoesNotRoll(t *testing.T) {
	a, err := Open(t.TempDir(), trustDomain())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Prepare(); err == nil || !strings.Contains(err.Error(), "in a directory") {
		t.Errorf("got %v, want an error", err)
	}
}
