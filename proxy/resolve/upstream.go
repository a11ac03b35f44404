package resolve

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// How long servers are waited for: each try of one of them, and all tries
// together; and how often each is tried.
const (
	tryTimeout    = 2 * time.Second
	lookupTimeout = 5 * time.Second
	rounds        = 2
)

// How long a server that did not answer is asked after the others, the first
// time and at most.
const (
	firstRest = time.Second
	longRest  = time.Minute
)

// group is the servers for the names below some suffixes.
type group struct {
	servers []*upstream
}

// upstream is one server and what is known of its health.
type upstream struct {
	server  Server
	streams *streams // for TCP and DoT, and for what is truncated over UDP
	try     time.Duration

	descriptors *limit.Descriptors

	mu    sync.Mutex
	rest  time.Duration // after the next failure
	until time.Time     // when it is asked in its turn again
}

// ask asks the group's servers in turn until one has answered: first those that
// are well, in the order of the configuration, then the others; each twice at
// most. What the last of them did is the error.
func (g *group) ask(ctx context.Context, q Question) (*wire.Message, error) {
	order := g.order(time.Now())
	var err error
	for i := range rounds * len(order) {
		var msg *wire.Message
		if msg, err = order[i%len(order)].ask(ctx, q); err == nil {
			return msg, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func (g *group) order(now time.Time) []*upstream {
	order := make([]*upstream, 0, len(g.servers))
	var resting []*upstream
	for _, u := range g.servers {
		if u.well(now) {
			order = append(order, u)
		} else {
			resting = append(resting, u)
		}
	}
	return append(order, resting...)
}

// ask asks one server, for at most two seconds.
func (u *upstream) ask(ctx context.Context, q Question) (*wire.Message, error) {
	tryCtx, cancel := context.WithTimeout(ctx, u.try)
	defer cancel()
	msg, err := u.exchange(tryCtx, q)
	if err != nil {
		err = fmt.Errorf("asking %s: %w", u.server, err)
	}
	if ctx.Err() == nil || err == nil { // else nobody waited for it long enough
		u.judge(err, time.Now())
	}
	return msg, err
}

func (u *upstream) exchange(ctx context.Context, q Question) (*wire.Message, error) {
	if u.server.Protocol == UDP {
		msg, err := u.askUDP(ctx, q)
		if !errors.Is(err, wire.ErrTruncated) && !errors.Is(err, wire.ErrCase) {
			return msg, err
		}
	}
	msg, err := u.streams.ask(ctx, q)
	if err == nil && u.server.Protocol != DoT {
		msg = msg.Unauthenticated()
	}
	return msg, err
}

func (u *upstream) well(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !now.Before(u.until)
}

// judge lets a server rest that does not answer, each time for twice as long.
// One that answers is well, whatever it says: that depends on the name. That we
// could not ask it is no fault of the server's.
func (u *upstream) judge(err error, now time.Time) {
	if unasked(err) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil || wire.Answered(err) {
		u.rest, u.until = 0, time.Time{}
		return
	}
	if now.Before(u.until) { // others that were with it at the same time said so
		return
	}
	u.rest = min(max(2*u.rest, firstRest), longRest)
	u.until = now.Add(u.rest)
}

// groups finds the servers for a name.
type groups struct {
	bySuffix map[string]*group
	others   *group
}

// of returns the group of the longest suffix that a name is or is below.
func (g *groups) of(name allowlist.Host) *group {
	for suffix := name.String(); ; {
		if found := g.bySuffix[suffix]; found != nil {
			return found
		}
		_, above, below := strings.Cut(suffix, ".")
		if !below {
			return g.others
		}
		suffix = above
	}
}
