package wire

import (
	"fmt"
	"slices"

	"github.com/exeat-dev/exeat/allowlist"
)

// Open reports whether the message has aliases but says nothing about their last
// target: End must still be looked up.
func (m *Message) Open() bool { return m.open }

// End returns the target of the last alias; zero without an alias.
func (m *Message) End() allowlist.Host {
	end := allowlist.Host{}
	for hop := range m.Hops() {
		end = hop
	}
	return end
}

// OnlyAliases returns the message with its aliases only. It is open, whatever its
// server says about the target of the last alias.
func (m *Message) OnlyAliases() *Message {
	out := &Message{authentic: m.authentic, negative: true, open: true, lame: m.lame, ttl: MaxTTL}
	rest := m.data
	for len(rest) > 0 {
		r, behind := nextRecord(rest)
		if r.typ != TypeCNAME {
			break
		}
		out.ttl, rest = min(out.ttl, r.ttl), behind
	}
	size := len(m.data) - len(rest)
	out.data, out.names = m.data[:size:size], slices.Collect(m.Hops())
	return out
}

// Join returns an open message joined with the answer for its End. age and nextAge say
// for how many seconds the two have been kept; the times to live of the result count
// from now. name is the name in the question of the open message.
func (m *Message) Join(age uint32, next *Message, nextAge uint32, name allowlist.Host) (*Message, error) {
	chain := append([]allowlist.Host{name}, m.names...)
	hops := len(m.names)
	for hop := range next.Hops() {
		if slices.Contains(chain, hop) {
			return nil, fmt.Errorf("%w: back to %s", ErrChain, hop)
		}
		if chain = append(chain, hop); len(chain) > MaxHops+1 {
			return nil, fmt.Errorf("%w: more than %d", ErrChain, MaxHops)
		}
	}
	out := &Message{
		rcode: next.rcode, authentic: m.authentic && next.authentic, negative: next.negative, open: next.open,
		cut: m.cut + next.cut, names: slices.Concat(m.names, next.names),
		ttl: min(m.ttl-min(m.ttl, age), next.ttl-min(next.ttl, nextAge)),
	}
	out.data = appendAged(make([]byte, 0, len(m.data)+len(next.data)), m.data, age, 0)
	out.data = appendAged(out.data, next.data, nextAge, hops)
	if len(out.data) > maxStored {
		return nil, fmt.Errorf("%w: too large without compression", ErrMalformed)
	}
	return out, nil
}

// appendAged appends stored records that have been kept for age seconds, after a number
// of aliases.
func appendAged(dst, data []byte, age uint32, hops int) []byte {
	for len(data) > 0 {
		var r record
		r, data = nextRecord(data)
		r.ttl -= min(r.ttl, age)
		r.hop += uint8(hops) //nolint:gosec // G115: at most MaxHops
		dst = r.append(dst)
	}
	return dst
}
