package dns_test

import (
	"context"
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve"
)

// TestAliasForbiddenDuringTheLookUpIsFiltered checks a name that is allowed by the state
// before and after its look-up: its alias is filtered by the state in force, and no
// address behind a forbidden alias is bound.
func TestAliasForbiddenDuringTheLookUpIsFiltered(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	g := newGateway(t, options{lookup: func(resolver lookup) lookup {
		return func(ctx context.Context, a resolve.Asker, q resolve.Question) (resolve.Answer, error) {
			answer, err := resolver(ctx, a, q)
			held <- struct{}{}
			<-release
			return answer, err
		}
	}})
	c := g.dial(t, "udp", "").(udpClient)
	if _, err := c.Write(must(question("alias.example").Pack())); err != nil {
		t.Fatal(err)
	}
	<-held
	spec := policy()
	spec.Entries[0].Deny = append(spec.Entries[0].Deny, to("cdn.elsewhere.example"))
	g.swap(t, spec)
	close(release)
	raw, err := c.read(patience)
	if err != nil || raw[6] != 0 || raw[7] != 0 {
		t.Errorf("% x, %v: want no answers", raw, err)
	}
	if r := g.next(t); r.Verdict != "deny" || r.Reason != allowlist.DeniedByRule.String() || r.Generation != 2 {
		t.Errorf("record %+v", r)
	}
}
