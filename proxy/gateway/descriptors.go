package gateway

import (
	"fmt"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// Descriptors bound the file descriptors that callers can make a gateway use; a field
// that is nil sets no bound. The two bounds are separate, so that accepted connections
// leave descriptors for connections to origins, and the other way round: a caller that
// cannot be served still gets an answer.
type Descriptors struct {
	// Accepted bounds the connections of callers.
	Accepted *limit.Descriptors
	// Opened bounds connections to origins, queries to name servers, and pipes. The
	// resolver should use it for its own.
	Opened *limit.Descriptors
}

// DescriptorsFor returns how many descriptors callers can make a gateway use at most,
// from its bounds on connections for requests and for queries; zero means that there is
// no listener for these.
//
// A quarter of the connections for requests may belong to callers without an identity,
// who have no connection to an origin; each of the others may have one. A sixteenth of
// both bounds is for queries to name servers.
func DescriptorsFor(connections, dnsConnections int) (accepted, opened int) {
	accepted = connections + dnsConnections
	opened = connections - connections/4 + (connections+dnsConnections+15)/16
	return accepted, opened
}

// shortageNote returns a message if descriptors were missing a moment ago, and "" if none
// was.
func (d Descriptors) shortageNote(now time.Time) string {
	if !d.Accepted.Short(now) && !d.Opened.Short(now) {
		return ""
	}
	in, out := d.Accepted.Stats(), d.Opened.Stats()
	return fmt.Sprintf("descriptors: short, %d of %d are in use for callers and %d of %d for what they asked for: what needs one more is refused as %s",
		in.Used, in.Most, out.Used, out.Most, allowlist.Busy)
}
