package resolve

import (
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/resolve/wire"
)

// The words of package wire that callers of this package use.
type (
	// Question is what is asked: a name and a type.
	Question = wire.Question
	// Filter says what one caller may see of an answer.
	Filter = wire.Filter
	// Reply is what a response takes over from the client's query.
	Reply = wire.Reply
	// Counts says what became of the records of an answer.
	Counts = wire.Counts
)

// Asker is on whose behalf a name is looked up.
type Asker struct {
	Holder allowlist.Holder
	// Wildcard is what the name is counted under, as the decision's Wildcard
	// says; "" is not counted.
	Wildcard string
	// Follow reports whether a name that an alias leads to may be asked for on its
	// behalf, where a server says nothing of it; nil is none.
	Follow func(name allowlist.Host) bool

	alias bool // the question is one of follow: its name is not one that the asker chose
}

// Origin says where an answer comes from.
type Origin uint8

// The origins: a server, asked now; the cache; the cache although its time is
// over, because no server answers; the table of hosts.
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

// Answer is what is known about a question. It is immutable and shared. The
// zero value is no answer.
type Answer struct {
	msg    *wire.Message
	name   allowlist.Host
	at     time.Time // when the server gave it; zero for a local one
	origin Origin
}

// RCode returns NOERROR (0) or NXDOMAIN (3).
func (a Answer) RCode() int { return a.msg.RCode() }

// Origin says where the answer comes from.
func (a Answer) Origin() Origin { return a.origin }

// TTL returns for how long the answer holds from now on.
func (a Answer) TTL(now time.Time) time.Duration {
	if a.origin == OriginStale {
		return wire.StaleTTL * time.Second
	}
	return time.Duration(a.msg.TTL()-min(a.msg.TTL(), a.age(now))) * time.Second
}

// Append appends a complete response: a header with the client's id and bits,
// the question as the client sent it, and the records that the filter lets
// through, aged to now. If the filter leaves none, the response says that there
// is no data, and has no SOA: then Counts.Answers is zero and Counts.Dropped is
// not. The OPT is for the caller to add, as is the bound on the size. It
// allocates nothing but what dst needs to grow.
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
