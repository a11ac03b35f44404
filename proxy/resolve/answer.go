package resolve

import (
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// Types of package wire that callers of this package use.
type (
	// Question is a name and a type.
	Question = wire.Question
	// Filter says what one caller may see of an answer.
	Filter = wire.Filter
	// Reply is what a response takes from the client's query.
	Reply = wire.Reply
	// Counts says how many records of an answer were sent and how many were not.
	Counts = wire.Counts
)

// Asker is the caller for whom a name is looked up.
type Asker struct {
	Holder allowlist.Holder
	// Wildcard is the rule for which the name is counted, as the decision's method
	// Wildcard returns it; a name with "" is not counted.
	Wildcard string
	// Follow reports whether the target of an alias may be looked up for this caller,
	// if a server returns no records of the target; nil means that none may.
	Follow func(name allowlist.Host) bool

	alias bool // says that the question is for the target of an alias, which the asker has not chosen
}

// Origin says where an answer came from.
type Origin uint8

// The origins: a server that was asked for it; the cache; the cache after the answer
// expired, because no server answers; the table of hosts or localhost.
const (
	OriginUpstream Origin = iota
	OriginCache
	OriginStale
	OriginLocal
)

// String returns the word for records.
func (o Origin) String() string {
	switch o {
	case OriginUpstream:
		return "upstream"
	case OriginCache:
		return "cache"
	case OriginStale:
		return "stale"
	case OriginLocal:
		return "local"
	}
	return "invalid"
}

// Answer is an answer to a question. It is immutable and shared. The zero value is not
// an answer.
type Answer struct {
	msg    *wire.Message
	name   allowlist.Host
	at     time.Time // when the server gave it; zero for a local answer
	origin Origin
}

// RCode returns NOERROR (0) or NXDOMAIN (3).
func (a Answer) RCode() int { return a.msg.RCode() }

// Origin says where the answer came from.
func (a Answer) Origin() Origin { return a.origin }

// TTL returns the remaining time to live.
func (a Answer) TTL(now time.Time) time.Duration {
	if a.origin == OriginStale {
		return wire.StaleTTL * time.Second
	}
	return time.Duration(a.msg.TTL()-min(a.msg.TTL(), a.age(now))) * time.Second
}

// Append appends a complete response: a header with the client's id and bits, the
// question as the client sent it, and the records that the filter allows, aged to now.
// If the filter allows none, the response has no data and no SOA: Counts.Answers is
// zero then and Counts.Dropped is not. The caller adds the OPT, and bounds the size.
// Append allocates only what dst needs to grow.
func (a Answer) Append(dst []byte, reply Reply, now time.Time, f Filter) ([]byte, Counts) {
	return a.msg.Append(dst, reply, a.age(now), a.origin == OriginStale, f)
}

// age returns for how many whole seconds the answer has been kept.
func (a Answer) age(now time.Time) uint32 {
	if a.at.IsZero() {
		return 0
	}
	return uint32(max(0, min(now.Sub(a.at)/time.Second, 1<<30)))
}
