package enforce

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/exeat-dev/exeat/e2e/site"
)

// aliased is the destination whose name is an alias of aliasName. The policy does not
// mention aliasName until aliasDenied denies it.
const aliased = 7

const aliasName = "edge." + trustDomain

// aliasDenied denies the name to which the alias of a destination leads.
func (w *world) aliasDenied() scenario {
	return scenario{
		name: "an alias is denied", reason: "denied-by-rule",
		victim: func(_, destination int) bool { return destination == aliased },
		forbid: func(context.Context) (time.Time, error) {
			return w.Replace("policy.yaml", strings.ReplaceAll(w.policy(everything), "    allow:\n", "    deny: [{host: "+aliasName+"}]\n    allow:\n"))
		},
		restore: func() (time.Time, error) { return w.Replace("policy.yaml", w.policy(everything)) },
	}
}

// edges answers every name with an alias of aliasName, and that with the origin's
// address.
func edges(name dnsmessage.Name) []dnsmessage.Resource {
	edge := dnsmessage.MustNewName(aliasName + ".")
	return []dnsmessage.Resource{site.Alias(name, edge), site.IPv4(edge, [4]byte{127, 0, 0, 1})}
}

// resolver returns the configuration of the name server that knows the alias.
func (w *world) resolver() string {
	return fmt.Sprintf("  servers: [{udp: %q}]\n", w.names.Address)
}
