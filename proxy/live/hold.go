package live

import (
	"cmp"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

// DefaultAtLeast is used for a zero MaxRevoke.AtLeast.
const DefaultAtLeast = 20

// MaxRevoke says from how many identities a new policy may take something that they
// have open. If it would take something from more, the end of all of it is held. It
// counts identities and not tunnels, so that no identity can have its own end held by
// opening more tunnels.
type MaxRevoke struct {
	// Share is a share of the identities that have something open, from 0 to 1. Zero
	// means that nothing is held.
	Share float64
	// AtLeast is a number of identities that may always lose something, whatever
	// share they are. Zero means DefaultAtLeast.
	AtLeast int
}

// exceeds reports whether losing of all identities is a larger number than may lose
// something. The binary value of a share such as 0.29 is a little below that share, so that
// 29 of 100 needs some grace.
func (m MaxRevoke) exceeds(losing, all int) bool {
	const grace = 1e-6
	return losing > cmp.Or(m.AtLeast, DefaultAtLeast) && float64(losing) > m.Share*float64(all)+grace
}

// Hold counts what stays open although the policy in force forbids it, because its end
// would exceed MaxRevoke. The zero value means that nothing is held.
type Hold struct {
	// Entries is how many entries stay open, including connections over which queries
	// come.
	Entries int
	// Identities is how many identities would lose an open tunnel or exchange;
	// OfIdentities is how many identities have one.
	Identities, OfIdentities int
}

// IsZero reports whether nothing is held.
func (h Hold) IsZero() bool { return h == Hold{} }

// losses counts the identities that would lose something to a policy, among the entries
// whose end may be held.
type losses struct {
	entries    []*Entry             // entries that the policy forbids
	byIdentity map[spiffeid.ID]bool // identities that have something open; the value says whether they would lose some of it
	losing     int                  // number of identities that would lose something
}

// add counts an entry. Only a tunnel or exchange is something to lose; a connection
// without a request is not.
func (l *losses) add(entry *Entry, d *Decided, forbidden bool) {
	if forbidden {
		l.entries = append(l.entries, entry)
	}
	if d.isConnection() || !d.isOpen() {
		return
	}
	if l.byIdentity == nil {
		l.byIdentity = make(map[spiffeid.ID]bool)
	}
	id := d.Request.ID
	if l.byIdentity[id] {
		return
	}
	if l.byIdentity[id] = forbidden; forbidden {
		l.losing++
	}
}

// hold returns the counts of what is held if the bound is exceeded, and the zero value
// otherwise.
func (l *losses) hold(bound MaxRevoke) Hold {
	if !bound.exceeds(l.losing, len(l.byIdentity)) {
		return Hold{}
	}
	return Hold{Entries: len(l.entries), Identities: l.losing, OfIdentities: len(l.byIdentity)}
}

// mayHold reports whether the end of an entry that the policy in force forbids may be
// held. This is so if the entry is open and not still being dialled, if its identity is
// not in quarantine, if the last policy that was enforced completely allows it, and if
// the policy in force forbade it already when that policy was loaded. In the last case no
// date has ended the entry.
func (j *judge) mayHold(d *Decided, why allowlist.Reason) bool {
	return j.lastEnforced != nil && d.isOpen() && why != allowlist.QuarantinedIdentity &&
		!j.lastEnforced.forbidsAt(d, j.now) && j.state.forbidsAt(d, j.since)
}
