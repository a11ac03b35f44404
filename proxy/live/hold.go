package live

import (
	"cmp"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// DefaultAtLeast is what a zero MaxRevoke.AtLeast means.
const DefaultAtLeast = 20

// MaxRevoke says how many identities may lose something that they have open to a
// new policy before that is held. Identities are counted, so that nobody holds back
// the policy that cuts it off by opening more.
type MaxRevoke struct {
	// Share is that of the identities that have something open, up to 1; zero
	// holds nothing.
	Share float64
	// AtLeast is how many identities may lose something whatever share they are;
	// zero means DefaultAtLeast.
	AtLeast int
}

// exceeds reports whether it is too much if so many identities of all lose
// something. A share such as 0.29 is a little less than what it stands for, so that
// 29 of 100 needs grace.
func (m MaxRevoke) exceeds(losing, all int) bool {
	const grace = 1e-6
	return losing > cmp.Or(m.AtLeast, DefaultAtLeast) && float64(losing) > m.Share*float64(all)+grace
}

// Hold is what a policy does not end although it forbids it, because that would be
// more than MaxRevoke allows. The zero value is nothing.
type Hold struct {
	// Entries stay open, connections over which queries come included.
	Entries int
	// Identities would lose a tunnel or exchange that is open, of Of identities
	// that have one.
	Identities, Of int
}

// IsZero reports whether nothing is held.
func (h Hold) IsZero() bool { return h == Hold{} }

// losses counts, over the entries that do not end in any case, who would lose
// something to a policy.
type losses struct {
	entries []*Entry             // those that the policy forbids
	loses   map[spiffeid.ID]bool // identities that have something open; true: and would lose some of it
	losing  int                  // how many of them would
}

// add counts an entry, which belongs to an identity that has something open if it
// is a tunnel or exchange: a connection without one is nothing to lose.
func (l *losses) add(entry *Entry, d *Decided, forbidden bool) {
	if forbidden {
		l.entries = append(l.entries, entry)
	}
	if d.isConnection() || !d.isOpen() {
		return
	}
	if l.loses == nil {
		l.loses = make(map[spiffeid.ID]bool)
	}
	id := d.Request.ID
	if l.loses[id] {
		return
	}
	if l.loses[id] = forbidden; forbidden {
		l.losing++
	}
}

// hold returns what is held by a bound; zero if it is not exceeded.
func (l *losses) hold(bound MaxRevoke) Hold {
	if !bound.exceeds(l.losing, len(l.loses)) {
		return Hold{}
	}
	return Hold{Entries: len(l.entries), Identities: l.losing, Of: len(l.loses)}
}

// mayHold reports whether an entry that the policy in force forbids stays open while
// the end of what it forbids is held. It does if it is open, and not only being
// dialled; if no quarantine forbids it; if what was last enforced whole allows it; and
// if the policy in force forbade it already when it came, so that no date has ended it
// since.
func (j *judge) mayHold(d *Decided, why allowlist.Reason) bool {
	return j.before != nil && d.isOpen() && why != allowlist.QuarantinedIdentity &&
		!j.before.forbidsAt(d, j.now) && j.state.forbidsAt(d, j.since)
}
