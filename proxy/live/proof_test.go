package live

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// TestEveryProofIsJudged goes through every value that a proof may have, also those
// without a meaning. It checks that an entry stays only if its proof holds, and that an
// expired identity ends it whatever the proof.
func TestEveryProofIsJudged(t *testing.T) {
	chain := []*x509.Certificate{{Raw: []byte("leaf")}}
	const sources = 8 // number of values that a policy can accept
	for source := range allowlist.Proof(sources) {
		accepting := entry("a", to("x.example"))
		accepting.Accept = allowlist.ProofsOf(source)
		for _, certificates := range [][]*x509.Certificate{nil, {}, chain} {
			for _, notAfter := range []time.Time{{}, time.Now().Add(time.Hour), time.Now().Add(-time.Second)} {
				for _, closing := range []bool{false, true} {
					for _, connection := range []bool{false, true} {
						name := fmt.Sprintf("source %d, %d certificates, until %v, closing at expiry %v, connection %v", source, len(certificates), notAfter, closing, connection)
						r := newRig(t, func(cfg *EnforcerConfig) { cfg.CloseAtExpiry = closing })
						f := newFlow("a", "x.example")
						f.Certificates, f.NotAfter, f.Decided.Request.Proof = certificates, notAfter, source
						if connection {
							f.Decided = Decided{Request: allowlist.Request{ID: f.Decided.Request.ID, Proof: source}}
						}
						r.open(f)
						r.put(t.Context(), policy(accepting))
						why := allowlist.NoReason
						proved := source == allowlist.ProofListener || source == allowlist.ProofSourceMap ||
							source == allowlist.ProofX509SVID && len(certificates) > 0
						switch {
						case source == allowlist.NoProof:
							why = allowlist.IdentitySourceNotAccepted
						case !proved:
							why = allowlist.IdentityUntrusted
						case closing && f.expired(time.Now()):
							why = allowlist.IdentityExpired
						}
						want := ending{tunnel.Revoked, why}
						if why == allowlist.NoReason {
							want = ending{}
						}
						if got := f.ended(); got != want {
							t.Errorf("%s: ended by %v, want %v", name, got, want)
						}
					}
				}
			}
		}
	}
}
