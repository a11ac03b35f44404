package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// FuzzID checks which texts are read as a SPIFFE ID, and that a read ID is in canonical
// form.
func FuzzID(f *testing.F) {
	for _, seed := range []string{
		callerID, "spiffe://td/a", "spiffe://td", "spiffe://td/", "spiffe://td//a", "spiffe://td/a/", "spiffe://td/./a", "spiffe://td/..",
		"spiffe://TD/a", "SPIFFE://td/a", "spiffe://td:1/a", "spiffe://u@td/a", "spiffe://@td/a", "spiffe://td/a?", "spiffe://td/a#", "spiffe://td/a?b#c",
		"spiffe://td/%2f", "spiffe://td/%61", "spiffe://%74d/a", "spiffe://[::1]/a", "spiffe://t\u00e9/a", "spiffe:td/a", "spiffe:///a", "//td/a", "", "spiffe://td.evil/a",
		"spiffe://td/a\n", "spiffe://td/a b", "spiffe://td\\a", "spiffe://" + strings.Repeat("t", 256) + "/a", "spiffe://td/" + strings.Repeat("a", 2048),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		uri, err := url.Parse(raw)
		if err != nil {
			return // crypto/x509 does not parse such a certificate
		}
		cert := &x509.Certificate{URIs: []*url.URL{uri}, Extensions: []pkix.Extension{sanExtension(raw)}}
		id, err := leafID(cert)
		if err != nil {
			if !id.IsZero() {
				t.Errorf("%q: error %v came with ID %s", raw, err, id)
			}
			if text := err.Error(); len(text) > 2*maxDetail || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q: error is not one short printable line: %q", raw, text)
			}
			return
		}
		if id.String() != raw {
			t.Errorf("%q became %q", raw, id)
		}
		if again, err := spiffeid.FromString(id.String()); err != nil || again != id {
			t.Errorf("%q does not round-trip: %v, %v", raw, again, err)
		}
		if again, err := spiffeid.FromURI(uri); err != nil || again != id {
			t.Errorf("%q: go-spiffe reads %v, %v", raw, again, err)
		}
		if id.TrustDomain().IsZero() || !strings.HasPrefix(id.Path(), "/") || len(raw) > maxIDBytes || raw != "spiffe://"+id.TrustDomain().Name()+id.Path() {
			t.Errorf("%q is not canonical", raw)
		}
	})
}

// FuzzSAN reads whole SAN extensions, and checks that the URIs which are read are those
// that crypto/x509 counts, and never more than one identity.
func FuzzSAN(f *testing.F) {
	f.Add(sanExtension(callerID).Value, 1)
	f.Add(sanExtension(callerID, callerID).Value, 1)
	f.Add(append(sanExtension(callerID).Value, 0), 1)
	f.Add(sanExtension().Value, 0)
	f.Add([]byte{0x30, 0x80, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, value []byte, count int) {
		count = min(max(count, 0), 3)
		cert := &x509.Certificate{Extensions: []pkix.Extension{{Id: sanExtension().Id, Value: value}}}
		for range count {
			cert.URIs = append(cert.URIs, &url.URL{})
		}
		id, err := leafID(cert)
		if err == nil && (count != 1 || !strings.Contains(string(value), id.String())) {
			t.Errorf("%x with %d URIs became %s", value, count, id)
		}
	})
}
