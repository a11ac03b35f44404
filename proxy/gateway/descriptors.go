package gateway

import (
	"fmt"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// Descriptors are the file descriptors that callers can make a gateway use; a field
// that is nil is any number. The two are apart, so that connections that are accepted
// leave some for those to origins, and the other way round: who cannot be served can
// be told.
type Descriptors struct {
	// Accepted are for the connections of callers.
	Accepted *limit.Descriptors
	// Opened are for connections to origins, questions to name servers, and pipes.
	// The resolver should take its own from here.
	Opened *limit.Descriptors
}

// DescriptorsFor returns how many descriptors callers can make a gateway use at
// most, by its bounds on connections for requests and on those for queries; zero is
// no listener for these.
//
// A quarter of the connections for requests is open to callers who are not
// identified, who have no connection to an origin; each of the others may have one.
// A sixteenth of both bounds is for questions to name servers.
func DescriptorsFor(connections, dnsConnections int) (accepted, opened int) {
	accepted = connections + dnsConnections
	opened = connections - connections/4 + (connections+dnsConnections+15)/16
	return accepted, opened
}

// short says that descriptors were missing a moment ago; "" if none was.
func (d Descriptors) short(now time.Time) string {
	if !d.Accepted.Short(now) && !d.Opened.Short(now) {
		return ""
	}
	in, out := d.Accepted.Stats(), d.Opened.Stats()
	return fmt.Sprintf("descriptors: short, %d of %d are in use for callers and %d of %d for what they asked for: what needs one more is refused as %s",
		in.Used, in.Most, out.Used, out.Most, allowlist.Busy)
}
