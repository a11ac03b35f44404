// Package wire is what DNS looks like on the network: the queries that go to
// upstream servers, the check of what they answer, and a compact stored form
// of a checked answer, from which responses to clients are made.
//
// A query is rebuilt from a canonical name and a type; nothing of a client's
// packet is in it. An answer counts only if it is the answer to that query,
// letter by letter. Of its records those count which the chain of aliases that
// starts at the name leads to, in whatever order they stand. All others are dropped.
// An answer whose aliases lead to a name of which it says nothing is open: whoever
// reads it asks for that name and joins the two answers.
// What a server says of localhost counts for nothing: an alias of it leads to
// 127.0.0.1 and ::1.
//
// It opens no socket and keeps nothing. It is the only user of the DNS library
// below it, whose parsing and packing of single records is all that is used.
package wire

import (
	"errors"
	"iter"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// The types that this package knows by name.
const (
	TypeA     = dns.TypeA
	TypeAAAA  = dns.TypeAAAA
	TypeCNAME = dns.TypeCNAME
	TypeSVCB  = dns.TypeSVCB
	TypeHTTPS = dns.TypeHTTPS
)

// The response codes of the answers that are kept.
const (
	NoError  = dns.RcodeSuccess
	NXDomain = dns.RcodeNameError
)

// Bounds on what an upstream server may answer.
const (
	// MaxHops is how many aliases may lead from the name to its records.
	MaxHops = 16
	// MaxRecords is how many records behind the aliases are kept, of whatever
	// type, and MaxHints how many hints all of them have together: each costs a
	// decision whenever the answer is shown. The first ones count.
	MaxRecords = 64
	MaxHints   = 64
	// MaxTTL bounds every time to live, and MaxNegativeTTL that of an answer
	// that there is nothing (RFC 2308 section 5), in seconds.
	MaxTTL         = 3600
	MaxNegativeTTL = 300
	// StaleTTL is the time to live in an answer that is past its own (RFC 8767
	// section 4), in seconds.
	StaleTTL = 30

	// maxStored leaves room for header, question and OPT in a response of
	// 65,535 bytes.
	maxStored = 65535 - 1024
)

// What may be wrong with an answer. ErrStray, ErrCase and ErrTruncated say
// that the answer to the query is yet to come: from the same socket, or over a
// stream.
var (
	ErrStray     = errors.New("not the answer to this query")
	ErrCase      = errors.New("the question has other letter case")
	ErrTruncated = errors.New("truncated answer")
	ErrMalformed = errors.New("malformed answer")
	ErrChain     = errors.New("aliases do not lead to a name")
	ErrReferral  = errors.New("a referral to other servers, and no answer")
	ErrType      = errors.New("a type that is never asked for")
)

// Answered reports whether an error is about what the answer to the query says:
// its server has taken it in, and answers.
func Answered(err error) bool {
	_, said := errors.AsType[*ServerError](err)
	return said || errors.Is(err, ErrMalformed) || errors.Is(err, ErrChain) || errors.Is(err, ErrReferral) || errors.Is(err, ErrTruncated)
}

// Question is what is asked: a name and a type, of class IN. It is comparable.
type Question struct {
	Name allowlist.Host
	Type uint16
}

// Forwarded reports whether a type is ever asked for: if a policy can allow it.
// Everything else (ANY, transfers, NULL, KEY, WKS, private types) carries what no
// client needs.
func Forwarded(typ uint16) bool { return allowlist.QueryType(typ).Known() }

// Filter says what one caller may see.
type Filter interface {
	// Addr reports whether the caller may see an address: of an A or AAAA
	// record, or a hint. IPv4-mapped addresses come unmapped.
	Addr(addr netip.Addr) bool
	// Hop reports whether the caller may be led to a name: by a CNAME, or as
	// the target of an HTTPS or SVCB record.
	Hop(name allowlist.Host) bool
}

// Reply is what a response takes over from the client's query.
type Reply struct {
	ID     uint16
	RD, CD bool
	// AD says that the client wants to know whether the answer is validated:
	// its query had AD or DO set (RFC 6840 section 5.7).
	AD bool
	// Question is the name, not compressed, type and class as the client sent
	// them. It must be the question of the message but for letter case.
	Question []byte
}

// Counts says what became of the records of an answer.
type Counts struct {
	// Answers is how many records the answer section has, aliases included.
	// None, although there were some, means that the filter refused them all.
	Answers int
	// Dropped is how many addresses and names the filter refused.
	Dropped int
	// Cut is how many records and hints were not kept, because the server gave
	// more than MaxRecords or MaxHints.
	Cut int
}

// Message is a checked answer in stored form. It is immutable; the zero value
// is the answer that the name exists and has no record of the type.
type Message struct {
	rcode     uint8
	authentic bool
	negative  bool
	open      bool             // says nothing of the name that its aliases lead to
	lame      bool             // given by a server that neither recurses nor is authoritative
	cut       uint16           // records and hints that were not kept
	ttl       uint32           // the lowest of all records; 0 without any
	data      []byte           // the records, as record.append writes them
	names     []allowlist.Host // of each alias and each service's target, in order
}

// RCode returns NoError or NXDomain.
func (m *Message) RCode() int { return int(m.rcode) }

// Negative reports whether there is nothing of the type at the name.
func (m *Message) Negative() bool { return m.negative }

// TTL returns for how many seconds the answer holds; zero if it must not be kept. An
// open one is not the whole answer, and does not hold.
func (m *Message) TTL() uint32 {
	if m.open {
		return 0
	}
	return m.ttl
}

// Life returns for how many seconds the message may be kept: the TTL, and for an
// open one that of its aliases.
func (m *Message) Life() uint32 { return m.ttl }

// Lame reports whether the message comes from a server that does not recurse and is
// not authoritative for the name: another one may know better.
func (m *Message) Lame() bool { return m.lame }

// Size returns how much memory the message holds, in bytes and about.
func (m *Message) Size() int {
	size := 96 + cap(m.data)
	for _, n := range m.names {
		size += 48 + len(n.String())
	}
	return size
}

// Unauthenticated returns the message without its claim to be validated, which
// only a server over an authenticated connection can make.
func (m *Message) Unauthenticated() *Message {
	if !m.authentic {
		return m
	}
	other := *m
	other.authentic = false
	return &other
}

// Hops yields the names that the aliases lead to, in order.
func (m *Message) Hops() iter.Seq[allowlist.Host] {
	return func(yield func(allowlist.Host) bool) {
		hops := m.names
		for data := m.data; len(data) > 0 && len(hops) > 0; {
			var r record
			r, data = nextRecord(data)
			if r.typ != TypeCNAME || !yield(hops[0]) {
				return // aliases come first
			}
			hops = hops[1:]
		}
	}
}

// Addrs yields the addresses of A and AAAA records and the hints of HTTPS and
// SVCB records, IPv4-mapped ones unmapped.
func (m *Message) Addrs() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for data := m.data; len(data) > 0; {
			var r record
			r, data = nextRecord(data)
			if addr, ok := r.addr(); ok && !yield(addr) {
				return
			}
			if r.isService() && !eachHint(r.rdata, yield) {
				return
			}
		}
	}
}

// Way is the names over which an answer leads to an address.
type Way struct {
	Aliases []allowlist.Host // in order
	Target  allowlist.Host   // of the service whose hint it is; zero if it is the owner
}

// Seen yields those of Addrs that a caller is shown, and the way to each: what
// the filter lets through, and not the hints of a service whose target it
// refuses, nor what is behind a refused alias.
func (m *Message) Seen(f Filter) iter.Seq2[netip.Addr, Way] {
	return func(yield func(netip.Addr, Way) bool) {
		var way Way
		seen := func(addr netip.Addr) bool { return !f.Addr(addr) || yield(addr, way) }
		names := m.names
		for data := m.data; len(data) > 0; {
			var r record
			r, data = nextRecord(data)
			way.Target = allowlist.Host{}
			if len(names) > 0 && r.isNamed() {
				led := f.Hop(names[0])
				switch {
				case led && r.typ == TypeCNAME:
					way.Aliases = m.names[:len(way.Aliases)+1]
				case led:
					way.Target = names[0]
				case r.typ == TypeCNAME:
					return
				}
				if names = names[1:]; !led {
					continue
				}
			}
			if addr, ok := r.addr(); ok && !seen(addr) {
				return
			}
			if r.isService() && !eachHint(r.rdata, seen) {
				return
			}
		}
	}
}

// Loopback returns the addresses of localhost and of every name below it (RFC 6761
// section 6.3).
func Loopback() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
}

// Local returns an answer that no server gave: the addresses of a host that
// are of the type, or that there are none.
func Local(typ uint16, addrs []netip.Addr, ttl uint32) *Message {
	m := &Message{negative: true}
	for _, addr := range addrs {
		addr = addr.Unmap()
		if typ == TypeA && addr.Is4() || typ == TypeAAAA && addr.Is6() {
			m.data = record{typ: typ, ttl: ttl, rdata: addr.AsSlice()}.append(m.data)
			m.negative, m.ttl = false, ttl
		}
	}
	return m
}
