package resolve

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// How long the resolver waits for servers, and how often it tries each.
const (
	tryTimeout    = 2 * time.Second // for one try of one server
	lookupTimeout = 5 * time.Second // for all tries together, for a name and for the targets of its aliases
	rounds        = 2               // most tries of each server
)

// group is the servers for the names below some suffixes.
type group struct {
	servers []*upstream
}

// errLame is the error of a lame answer, which does not count while another server may
// have a better one.
var errLame = errors.New("an answer of a server that does not recurse")

// upstream is one server with its health.
type upstream struct {
	health

	server     Server
	streams    *streams // for TCP and DoT, and for answers that are truncated over UDP
	tryTimeout time.Duration

	descriptors *limit.Descriptors
}

// ask asks the group's servers in turn until one has answered: first those that are
// healthy, in the order of the configuration, then the others, each at most twice. The
// error contains the failure of each. An answer of a server that neither recurses nor
// is authoritative for the name counts only if none of the other healthy servers
// has another answer.
func (g *group) ask(ctx context.Context, q Question) (*wire.Message, error) {
	order := g.order(time.Now())
	failed := &AskError{}
	var lame *wire.Message
	for i := range rounds * len(order) {
		u := order[i%len(order)]
		if lame != nil && (i >= len(order) || !u.isHealthy(time.Now())) {
			break
		}
		msg, err := u.ask(ctx, q, len(order) > 1, failed)
		switch {
		case err == nil && !msg.Lame(), err == nil && len(order) == 1:
			return msg, nil
		case err == nil && lame == nil:
			lame = msg
		}
		if ctx.Err() != nil {
			break
		}
	}
	if lame != nil {
		return lame, nil
	}
	return nil, failed
}

// order returns the servers in the order in which they are asked.
func (g *group) order(now time.Time) []*upstream {
	order := make([]*upstream, 0, len(g.servers))
	var unhealthy []*upstream
	for _, u := range g.servers {
		if u.isHealthy(now) {
			order = append(order, u)
		} else {
			unhealthy = append(unhealthy, u)
		}
	}
	return append(order, unhealthy...)
}

// ask asks one server, for at most two seconds, and adds its failure to failed. If
// there are other servers, a lame answer counts as an error of the server.
func (u *upstream) ask(ctx context.Context, q Question, others bool, failed *AskError) (*wire.Message, error) {
	tryCtx, cancel := context.WithTimeout(ctx, u.tryTimeout)
	defer cancel()
	msg, protocol, err := u.exchange(tryCtx, q)
	wrong := err
	if err == nil && others && msg.Lame() {
		wrong = errLame
	}
	cause, text := Cause(0), ""
	if wrong != nil {
		cause, text = causeOf(wrong)
	}
	if err != nil {
		failed.add(u.server.textOver(protocol), text, err)
	}
	if ctx.Err() == nil || err == nil { // otherwise the caller did not wait for the server long enough
		u.note(ctx, wrong, cause, text)
	}
	return msg, err
}

// exchange asks the server, and once more without EDNS if the server does not
// understand EDNS. It returns the protocol of the last try.
func (u *upstream) exchange(ctx context.Context, q Question) (msg *wire.Message, protocol Protocol, err error) {
	msg, protocol, err = u.exchangeOnce(ctx, q, wire.NewQuery)
	if wire.WithoutEDNS(err) {
		msg, protocol, err = u.exchangeOnce(ctx, q, plainQuery)
	}
	return msg, protocol, err
}

// newQuery makes the query for a question.
type newQuery func(q Question, mixed bool) (*wire.Query, error)

// plainQuery makes a query without EDNS.
func plainQuery(q Question, mixed bool) (*wire.Query, error) {
	query, err := wire.NewQuery(q, mixed)
	if err != nil {
		return nil, err
	}
	return query.WithoutEDNS(), nil
}

func (u *upstream) exchangeOnce(ctx context.Context, q Question, query newQuery) (msg *wire.Message, protocol Protocol, err error) {
	protocol = u.server.Protocol
	if protocol == UDP {
		msg, err := u.askUDP(ctx, q, query)
		if !errors.Is(err, wire.ErrTruncated) && !errors.Is(err, wire.ErrCase) {
			return msg, UDP, err
		}
		protocol = TCP
	}
	msg, err = u.streams.ask(ctx, q, query)
	if err == nil && protocol != DoT {
		msg = msg.Unauthenticated()
	}
	return msg, protocol, err
}

// groups holds the servers for each name.
type groups struct {
	bySuffix     map[string]*group
	defaultGroup *group
	all          []*upstream // the servers of all groups
}

func newGroups(cfg *Config) (groups, error) {
	g := groups{bySuffix: map[string]*group{}}
	var err error
	if g.defaultGroup, err = g.add(cfg, cfg.Servers); err != nil {
		return g, err
	}
	for _, own := range cfg.Groups {
		servers, err := g.add(cfg, own.Servers)
		if err != nil {
			return g, err
		}
		for _, suffix := range own.Suffixes {
			if suffix.IsZero() || suffix.IsAddr() {
				return g, fmt.Errorf("%q is no suffix of names", suffix)
			}
			if suffix.IsLocalhost() {
				return g, fmt.Errorf("no server is asked for %s", suffix)
			}
			if g.bySuffix[suffix.String()] != nil {
				return g, fmt.Errorf("two groups have the suffix %s", suffix)
			}
			g.bySuffix[suffix.String()] = servers
		}
	}
	return g, nil
}

// add adds a group of servers.
func (g *groups) add(cfg *Config, servers []Server) (*group, error) {
	if len(servers) == 0 {
		return nil, errors.New("a group has no servers")
	}
	added := new(group)
	for _, s := range servers {
		if err := s.check(); err != nil {
			return nil, err
		}
		dial, err := s.dialer()
		if err != nil {
			return nil, err
		}
		u := &upstream{server: s, streams: newStreams(dial, cfg.Descriptors), tryTimeout: tryTimeout, descriptors: cfg.Descriptors}
		u.name, u.log = s.String(), cfg.Log
		added.servers = append(added.servers, u)
	}
	g.all = append(g.all, added.servers...)
	return added, nil
}

// find returns the group with the longest suffix that a name has, or defaultGroup.
func (g *groups) find(name allowlist.Host) *group {
	for suffix := name.String(); ; {
		if found := g.bySuffix[suffix]; found != nil {
			return found
		}
		_, above, below := strings.Cut(suffix, ".")
		if !below {
			return g.defaultGroup
		}
		suffix = above
	}
}
