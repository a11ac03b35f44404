// Package limit counts what callers use, and says when it is too much.
//
//   - [Sources] are the budgets of source addresses, before there is an identity,
//     and [Budgets] those of identities.
//   - [Slots] divide the connections that may be open among callers.
//   - [Places] are for the few handshakes that may be long at a time.
//   - [Descriptors] count the files and sockets that callers make the process open.
//
// All live as long as the process, whatever policy comes into force, and are
// bounded: who is quiet is forgotten, and when there are too many to tell apart
// the rest share one budget. Nothing here looks up, records or closes anything:
// who has to give way is told so by a function of its own.
package limit

import (
	"cmp"
	"time"

	"golang.org/x/time/rate"

	"github.com/exeat-dev/exeat/allowlist"
)

// The defaults: what a zero field of Config means, and of the limits in it.
const (
	DefaultConnections       = 4096 // open from one source
	DefaultHandshakes        = 1000 // from one source, per second
	DefaultStrangers         = 100 * time.Millisecond
	DefaultRequests          = 1000      // of one identity, per second
	DefaultTunnels           = 4096      // open of one identity
	DefaultConnectsPerSecond = 200       // new tunnels of one identity
	DefaultDNSPerSecond      = 1000      // queries of one identity
	DefaultUploadPerHour     = 100 << 30 // bytes of one identity
)

// Config is what each may use.
type Config struct {
	// Connections is how many a source address may have open, Handshakes how
	// many it may begin per second.
	Connections, Handshakes int
	// Strangers is the processor time per second that a source may cost by
	// certificates that do not verify.
	Strangers time.Duration
	// Requests is how many requests an identity may make per second, denied
	// ones included.
	Requests int
	// Identity is for identities to which the policy gives no limits of their
	// own, key by key.
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
	// maxKeys bounds the sources, and the identities, that are told apart.
	maxKeys = 16384
	// sweepEvery bounds how often the quiet ones are looked for.
	sweepEvery = time.Second
)

// perSecond allows n events a second, all of them at once after a quiet second.
func perSecond(n int) *rate.Limiter { return rate.NewLimiter(rate.Limit(n), n) }

// full reports whether a limiter is as it was when it was new; nil always is.
func full(l *rate.Limiter, now time.Time) bool {
	return l == nil || l.TokensAt(now) >= float64(l.Burst())
}

// spend takes one from a limiter and reports whether it had one; nil always
// has.
func spend(l *rate.Limiter, now time.Time) bool { return l == nil || l.AllowN(now, 1) }

// has reports whether a limiter has one left; nil always has.
func has(l *rate.Limiter, now time.Time) bool { return l == nil || l.TokensAt(now) >= 1 }
