// Package wire implements the messages of DNS: queries to upstream servers, the check
// of their answers, and a compact stored form of a checked answer, from which responses
// to clients are written.
//
// A query is written from a canonical name and a type; it contains nothing of a
// client's packet. An answer counts only if its question equals that of the query,
// letter by letter. Of its records, only those count that belong to the chain of
// aliases which starts at the name, in any order; all others are dropped. An answer is
// open if the last alias leads to a name about which the answer says nothing: its
// reader looks up that name and joins the two answers. What a server says about
// localhost does not count: an alias to localhost leads to 127.0.0.1 and ::1.
//
// The package opens no socket and keeps no state. It is the only package of the gateway
// that uses the DNS library, and uses that only to parse and pack single records.
package wire

import (
	"errors"
	"iter"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/exeat-dev/exeat/allowlist"
)

// Types that this package knows by name.
const (
	TypeA     = dns.TypeA
	TypeAAAA  = dns.TypeAAAA
	TypeCNAME = dns.TypeCNAME
	TypeSVCB  = dns.TypeSVCB
	TypeHTTPS = dns.TypeHTTPS
)

// Response codes of answers that are kept.
const (
	NoError  = dns.RcodeSuccess
	NXDomain = dns.RcodeNameError
)

// Bounds on the answers of upstream servers.
const (
	// MaxHops is how many aliases may lead from the name to its records.
	MaxHops = 16
	// MaxRecords is how many records after the aliases are kept, of any type, and
	// MaxHints is how many hints they may have together: each of them costs a decision
	// whenever the answer is sent. The first ones are kept.
	MaxRecords = 64
	MaxHints   = 64
	// MaxTTL bounds every time to live, and MaxNegativeTTL bounds that of a negative
	// answer (RFC 2308 section 5), in seconds.
	MaxTTL         = 3600
	MaxNegativeTTL = 300
	// StaleTTL is the time to live in a response with an expired answer (RFC 8767
	// section 4), in seconds.
	StaleTTL = 30

	// maxStored leaves room for the header, the question and an OPT in a response of
	// 65,535 bytes.
	maxStored = 65535 - 1024
)

// Errors of an answer. ErrStray, ErrCase and ErrTruncated mean that the answer to the
// query is still to come: from the same socket, or over a stream.
var (
	ErrStray     = errors.New("not the answer to this query")
	ErrCase      = errors.New("the question has other letter case")
	ErrTruncated = errors.New("truncated answer")
	ErrMalformed = errors.New("malformed answer")
	ErrChain     = errors.New("aliases do not lead to a name")
	ErrReferral  = errors.New("a referral to other servers, and no answer")
	ErrType      = errors.New("a type that is never asked for")
)

// Answered reports whether an error is about the content of an answer: the server has
// received the query and answers.
func Answered(err error) bool {
	_, said := errors.AsType[*ServerError](err)
	return said || errors.Is(err, ErrMalformed) || errors.Is(err, ErrChain) || errors.Is(err, ErrReferral) || errors.Is(err, ErrTruncated)
}

// Question is a name and a type, of class IN. It is comparable.
type Question struct {
	Name allowlist.Host
	Type uint16
}

// Forwarded reports whether questions of a type are sent to servers: those of a type
// that a policy can allow. All other types (ANY, transfers, NULL, KEY, WKS, private
// types) carry nothing that clients need.
func Forwarded(typ uint16) bool { return allowlist.QueryType(typ).Known() }

// Filter says what one caller may see of an answer.
type Filter interface {
	// Addr reports whether the caller may see an address, of an A or AAAA record or a
	// hint. IPv4-mapped addresses are passed unmapped.
	Addr(addr netip.Addr) bool
	// Hop reports whether a CNAME, or an HTTPS or SVCB record, may lead the caller to
	// its target.
	Hop(name allowlist.Host) bool
}

// Reply is what a response takes from the client's query.
type Reply struct {
	ID     uint16
	RD, CD bool
	// AD says that the client wants to know whether the answer is validated: its query
	// had AD or DO set (RFC 6840 section 5.7).
	AD bool
	// Question is the uncompressed name, the type and the class as the client sent
	// them. It must equal the question of the message except for letter case.
	Question []byte
}

// Counts says how many records of an answer were sent and how many were not.
type Counts struct {
	// Answers is the number of records in the answer section, including aliases. It is
	// zero although the message has records if the filter refused them all.
	Answers int
	// Dropped is the number of addresses and names that the filter refused.
	Dropped int
	// Cut is the number of records and hints that were not kept, because the server
	// sent more than MaxRecords or MaxHints.
	Cut int
}

// Message is a checked answer in stored form. It is immutable. The zero value is the
// answer that the name exists and has no records of the type.
type Message struct {
	rcode     uint8
	authentic bool
	negative  bool
	open      bool             // says that there is nothing about the target of the last alias
	lame      bool             // says that the server neither recurses nor is authoritative
	cut       uint16           // number of records and hints that were not kept
	ttl       uint32           // the lowest of all records; 0 without records
	data      []byte           // the records in the form of record.append
	names     []allowlist.Host // targets of the aliases and of the services, in order
}

// RCode returns NoError or NXDomain.
func (m *Message) RCode() int { return int(m.rcode) }

// Negative reports whether the name has no records of the type.
func (m *Message) Negative() bool { return m.negative }

// TTL returns for how many seconds the answer may be used; zero if it must not be kept.
// It is zero for an open message, which is not a complete answer.
func (m *Message) TTL() uint32 {
	if m.open {
		return 0
	}
	return m.ttl
}

// Life returns for how many seconds the message may be kept: the TTL, or the lowest
// time to live of the aliases of an open message.
func (m *Message) Life() uint32 { return m.ttl }

// Lame reports whether the message comes from a server that neither recurses nor is
// authoritative for the name: another server may have a better answer.
func (m *Message) Lame() bool { return m.lame }

// Size returns the approximate memory use of the message in bytes.
func (m *Message) Size() int {
	size := 96 + cap(m.data)
	for _, n := range m.names {
		size += 48 + len(n.String())
	}
	return size
}

// Unauthenticated returns the message without its claim to be validated, which only a
// server on an authenticated connection can make.
func (m *Message) Unauthenticated() *Message {
	if !m.authentic {
		return m
	}
	other := *m
	other.authentic = false
	return &other
}

// Hops yields the targets of the aliases, in order.
func (m *Message) Hops() iter.Seq[allowlist.Host] {
	return func(yield func(allowlist.Host) bool) {
		hops := m.names
		for data := m.data; len(data) > 0 && len(hops) > 0; {
			var r record
			r, data = nextRecord(data)
			if r.typ != TypeCNAME || !yield(hops[0]) {
				return // aliases come before other records
			}
			hops = hops[1:]
		}
	}
}

// Addrs yields the addresses of A and AAAA records and the hints of HTTPS and SVCB
// records. IPv4-mapped addresses are unmapped.
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

// Way is the names on the way from a question to an address.
type Way struct {
	Aliases []allowlist.Host // in order
	Target  allowlist.Host   // target of the service that has the address as a hint; zero if that is the owner
}

// Seen yields those addresses of Addrs that a caller sees, each with the way to it:
// addresses that the filter allows, without the hints of a service whose target it
// refuses, and without anything after a refused alias.
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

// Local returns an answer without a server: the addresses of the type, or a negative
// answer if there are none.
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
