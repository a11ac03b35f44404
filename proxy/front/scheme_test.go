package front

import (
	"testing"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/h2"
)

// TestSchemeHoldsNoAuthority checks that :scheme cannot name another origin than :authority.
func TestSchemeHoldsNoAuthority(t *testing.T) {
	for _, scheme := range []string{"http://a.example/?", "http://a.example/", "http:", "http:/", "http?", "http#"} {
		r := parseStream(h2.Head{End: true, Fields: []h2.Field{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: scheme}, {Name: ":authority", Value: "b.example"}, {Name: ":path", Value: "/"},
		}}, nil)
		if r.Reason != allowlist.MalformedTarget {
			t.Errorf(":scheme %q is refused for %q", scheme, r.Reason)
		}
	}
}
