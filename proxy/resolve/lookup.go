package resolve

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

var (
	errNoName    = errors.New("the question has no name")
	errNames     = errors.New("too many distinct names below the wildcard within a minute")
	errQuestions = errors.New("too many questions below wildcards within a minute")
	errKnown     = errors.New("the answer has come meanwhile")
	errNoHost    = errors.New("the name does not exist")
	errHop       = errors.New("an alias leads to a name that is not allowed")
	errSpecial   = errors.New("an alias leads to a special name, which no rule allows")
)

// Cached returns the answer to a question if no server need be asked: for localhost,
// from the table of hosts, or from the cache if it has not expired. It allocates
// nothing.
func (r *Resolver) Cached(q Question, now time.Time) (Answer, bool) {
	if byType := r.local.find(q.Name); byType != nil {
		msg := byType[q.Type]
		if msg == nil {
			msg = byType[anyType]
		}
		return Answer{msg: msg, name: q.Name, origin: OriginLocal}, true
	}
	if e := r.cache.get(q); e != nil && e.fresh(now) && !e.msg.Open() {
		return e.answer(OriginCache), true
	}
	return Answer{}, false
}

// cachedOrOpen does what Cached does, but also returns an open answer.
func (r *Resolver) cachedOrOpen(q Question, now time.Time) (Answer, bool) {
	if answer, ok := r.Cached(q, now); ok {
		return answer, true
	}
	if e := r.cache.get(q); e != nil && e.fresh(now) {
		return e.answer(OriginCache), true
	}
	return Answer{}, false
}

// Lookup answers a question as Cached does, or by asking servers, or with an expired
// answer. If a server gives an alias without records of its target, and the asker may
// follow it, the target is looked up, too. Only questions that are sent to servers for
// the asker are counted below a wildcard rule: nothing else leaves the gateway. Every
// error is an *allowlist.ReasonError: resolve-failed, resolve-timeout, name-budget, or
// busy if the gateway lacked the means to ask a server. When ctx ends, the question
// stays with the servers, for other callers and for the cache.
func (r *Resolver) Lookup(ctx context.Context, a Asker, q Question) (Answer, error) {
	now := time.Now()
	if answer, ok := r.Cached(q, now); ok {
		return answer, nil
	}
	generation := r.cache.generation(q.Name)
	answer, err := r.lookupOne(ctx, a, q)
	if err != nil || !answer.msg.Open() {
		return answer, err
	}
	ctx, cancel := context.WithDeadline(ctx, now.Add(r.flights.life))
	defer cancel()
	return r.follow(ctx, a, q, generation, answer)
}

// lookupOne answers a question as Lookup does, but follows no alias.
func (r *Resolver) lookupOne(ctx context.Context, a Asker, q Question) (Answer, error) {
	now := time.Now()
	if answer, ok := r.cachedOrOpen(q, now); ok {
		return answer, nil
	}
	switch {
	case q.Name.IsZero() || q.Name.IsAddr():
		return Answer{}, &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: errNoName}
	case !wire.Forwarded(q.Type):
		return Answer{}, &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: fmt.Errorf("%w: %d", wire.ErrType, q.Type)}
	}
	old := r.cache.get(q)
	if old != nil && !r.cache.usable(old, now) {
		old = nil
	}
	if old != nil && now.UnixNano() < old.retry.Load() {
		return old.answer(OriginStale), nil
	}
	if err := r.failures.get(q, now); err != nil && old == nil {
		return Answer{}, failure(err)
	}
	return r.askOrStale(ctx, a, q, old)
}

// askOrStale asks servers. If there is an old answer, it waits for a shorter time, and
// returns the old answer if the servers fail. An asker without budget does not get the old answer
// either, because then it could not see that its budget is spent.
func (r *Resolver) askOrStale(ctx context.Context, a Asker, q Question, old *entry) (Answer, error) {
	var known Answer
	fl, err := r.flights.join(ctx, q, func() error {
		now := time.Now()
		if answer, ok := r.cachedOrOpen(q, now); ok { // a flight has landed since lookupOne looked
			known = answer
			return errKnown
		}
		return r.budgets.spend(a, q.Name.String(), now)
	})
	switch {
	case errors.Is(err, errKnown):
		return known, nil
	case allowlist.ReasonOf(err) == allowlist.NameBudget:
		return Answer{}, err
	case err == nil:
		var early <-chan time.Time
		if old != nil {
			timer := time.NewTimer(r.staleAfter)
			defer timer.Stop()
			early = timer.C
		}
		switch {
		case fl.wait(ctx, early):
			if fl.err == nil {
				return fl.answer, nil
			}
			err = fl.err
		case ctx.Err() != nil:
			err = ctx.Err()
		}
	}
	if old != nil {
		return old.answer(OriginStale), nil
	}
	return Answer{}, failure(err)
}

// ask asks servers, in a flight.
func (r *Resolver) ask(ctx context.Context, q Question) (Answer, error) {
	generation := r.cache.generation(q.Name)
	msg, err := r.groups.find(q.Name).ask(ctx, q)
	now := time.Now()
	switch {
	case isShortage(err):
		r.descriptors.Missing(err)
		return Answer{}, err
	case err != nil:
		r.failures.put(q, err, now)
		if old := r.cache.get(q); old != nil {
			old.retry.Store(now.Add(staleRetry).UnixNano())
		}
		return Answer{}, err
	}
	if end := msg.End(); msg.Negative() && !end.IsZero() && (r.local.find(end) != nil || r.groups.find(end) != r.groups.find(q.Name)) {
		msg = msg.OnlyAliases() // a server's statement about a name that belongs to other servers does not count
	}
	r.cache.put(q, msg, now, generation)
	return Answer{msg: msg, name: q.Name, at: now, origin: OriginUpstream}, nil
}

func (e *entry) answer(origin Origin) Answer {
	return Answer{msg: e.msg, name: e.question.Name, at: e.at, origin: origin}
}

// failure returns an error with its reason.
func failure(err error) error {
	if _, ok := errors.AsType[*allowlist.ReasonError](err); ok {
		return err
	}
	why := allowlist.ResolveFailed
	switch {
	case isShortage(err):
		why = allowlist.Busy
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		why = allowlist.ResolveTimeout
	}
	return &allowlist.ReasonError{Reason: why, Err: err}
}

// isShortage reports whether an error means that no server could be asked because the
// gateway lacks the means. It says nothing about the servers or the name.
func isShortage(err error) bool {
	return errors.Is(err, errBusy) || errors.Is(err, errStreamFull) || limit.NoDescriptor(err)
}

// Resolve returns the addresses of the destination in an allowed decision, each with the
// way to it. The decision allows the ways; the caller checks the addresses. Resolve looks
// up both families at the same time. A literal address is its own answer. If Resolve
// returns no address and no error, the name exists without addresses. Every error is an
// *allowlist.ReasonError: one of Lookup, or the reason why an alias must not be followed.
func (r *Resolver) Resolve(ctx context.Context, dec *allowlist.Decision) ([]allowlist.Resolved, error) {
	host := dec.Dest.Host
	switch {
	case !dec.Allowed():
		return nil, &allowlist.ReasonError{Reason: allowlist.InternalError, Err: errors.New("the decision does not allow")}
	case host.IsAddr():
		return []allowlist.Resolved{{Addr: host.Addr()}}, nil
	}
	return r.families(ctx, dec)
}

// families looks up the IPv4 and the IPv6 addresses of a destination, and returns them
// together.
func (r *Resolver) families(ctx context.Context, dec *allowlist.Decision) ([]allowlist.Resolved, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan family)
	asker := Asker{
		Holder: dec.Holder(), Wildcard: dec.Wildcard(),
		Follow: func(hop allowlist.Host) bool { return dec.CheckFollow(hop, r.inspect) == allowlist.NoReason },
	}
	for _, typ := range []uint16{wire.TypeAAAA, wire.TypeA} {
		go func() { results <- r.family(ctx, dec, asker, typ) }()
	}
	first := <-results
	if len(first.addrs) > 0 { // the other family gets little more time
		timer := time.AfterFunc(r.familyDelay, cancel)
		defer timer.Stop()
	}
	second := <-results
	if cause := errors.Join(first.panicked, second.panicked); cause != nil {
		panic(cause)
	}
	addrs := append(first.addrs, second.addrs...)
	if len(addrs) > 0 {
		return addrs, nil
	}
	if first.err == nil {
		return nil, second.err
	}
	return nil, first.err
}

// family is the result for one of the two families.
type family struct {
	addrs    []allowlist.Resolved
	err      error
	panicked error
}

// family looks up the addresses of one family. It passes a panic, which would end the
// process, to the goroutine that waits.
func (r *Resolver) family(ctx context.Context, dec *allowlist.Decision, asker Asker, typ uint16) (f family) {
	defer func() {
		if cause := recover(); cause != nil {
			f.panicked = fmt.Errorf("%v\n\n%s", cause, debug.Stack())
		}
	}()
	answer, err := r.Lookup(ctx, asker, Question{Name: dec.Dest.Host, Type: typ})
	if err != nil {
		return family{err: err}
	}
	if answer.RCode() == wire.NXDomain {
		return family{err: &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: errNoHost}}
	}
	way := allowlist.Way{Via: slices.Collect(answer.msg.Hops()), Inspect: r.inspect}
	if why := dec.CheckWay(way); why != allowlist.NoReason {
		return family{err: &allowlist.ReasonError{Reason: why, Err: fmt.Errorf("%w: %s", errHop, way.Via)}}
	}
	if answer.msg.Open() { // nobody may be asked for the rest
		return family{err: &allowlist.ReasonError{Reason: allowlist.ResolveFailed, Err: fmt.Errorf("%w: %s", errSpecial, answer.msg.End())}}
	}
	for addr := range answer.msg.Addrs() {
		f.addrs = append(f.addrs, allowlist.Resolved{Addr: addr, Way: way})
	}
	return f
}
