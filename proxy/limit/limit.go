// Package limit counts what callers use, and reports when they exceed a limit.
//
//   - [Sources] are the budgets of source addresses, before an identity is known, and
//     [Budgets] are those of identities.
//   - [Slots] divide the connections that may be open among callers.
//   - [Permits] bound the long handshakes that may run at the same time.
//   - [Descriptors] count the files and sockets that callers make the process open.
//
// All of them live as long as the process, across changes of policy, and are bounded:
// idle callers are forgotten, and callers in excess of the bound share one budget. The
// package decides, records and closes nothing itself: if a slot or permit has to be given
// up, it calls the function that came with that slot or permit.
package limit

import (
	"cmp"
	"time"

	"golang.org/x/time/rate"

	"github.com/exeat-dev/exeat/allowlist"
)

// Defaults for the zero fields of Config and of its limits.
const (
	DefaultConnections       = 4096 // open connections of one source
	DefaultHandshakes        = 1000 // handshakes of one source, per second
	DefaultStrangers         = 100 * time.Millisecond
	DefaultRequests          = 1000      // requests of one identity, per second
	DefaultTunnels           = 4096      // open tunnels of one identity
	DefaultConnectsPerSecond = 200       // new tunnels of one identity, per second
	DefaultDNSPerSecond      = 1000      // queries of one identity, per second
	DefaultUploadPerHour     = 100 << 30 // bytes of one identity, per hour
)

// Config says how much each source address and each identity may use.
type Config struct {
	// Connections is how many connections a source address may have open, and
	// Handshakes how many handshakes it may begin per second.
	Connections, Handshakes int
	// Strangers is the processor time per second that a source may use up with
	// certificates that do not verify.
	Strangers time.Duration
	// Requests is how many requests an identity may make per second, including denied
	// ones.
	Requests int
	// Identity holds the limits of an identity. Each applies where the policy does not
	// set the same limit.
	Identity allowlist.Limits
}

func (c Config) withDefaults() Config {
	c.Connections = cmp.Or(c.Connections, DefaultConnections)
	c.Handshakes = cmp.Or(c.Handshakes, DefaultHandshakes)
	c.Strangers = cmp.Or(c.Strangers, DefaultStrangers)
	c.Requests = cmp.Or(c.Requests, DefaultRequests)
	c.Identity = c.Identity.Or(allowlist.Limits{
		Tunnels: DefaultTunnels, ConnectsPerSecond: DefaultConnectsPerSecond,
		DNSPerSecond: DefaultDNSPerSecond, UploadPerHour: DefaultUploadPerHour,
	})
	return c
}

const (
	// maxKeys bounds the number of sources, and of identities, that have a budget each.
	maxKeys = 16384
	// sweepEvery is the shortest time between two searches for idle sources or
	// identities.
	sweepEvery = time.Second
)

// perSecond returns a limiter of n events per second, which may all come at once.
func perSecond(n int) *rate.Limiter { return rate.NewLimiter(rate.Limit(n), n) }

// full reports whether nothing of a limiter is spent; true for nil.
func full(l *rate.Limiter, now time.Time) bool {
	return l == nil || l.TokensAt(now) >= float64(l.Burst())
}

// spend spends one event of a limiter, and reports whether the limiter had one left; true
// for nil.
func spend(l *rate.Limiter, now time.Time) bool { return l == nil || l.AllowN(now, 1) }

// hasToken reports whether a limiter has an event left; true for nil.
func hasToken(l *rate.Limiter, now time.Time) bool { return l == nil || l.TokensAt(now) >= 1 }
