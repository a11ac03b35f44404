package audit

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

const (
	// summaryEvery is the time between two summaries of the same key.
	summaryEvery = time.Second
	// maxTallies bounds the keys that have a summary of their own.
	maxTallies = 4096
)

// key is who a record is about, for a fair share: the identity, or before there
// is one the source; see allowlist.SourceOf.
type key struct {
	identity string
	addr     netip.Addr
}

func keyOf(rec *Record) key {
	if rec.Identity.IsZero() {
		return key{addr: allowlist.SourceOf(rec.Client.Addr())}
	}
	return key{identity: rec.Identity.String()}
}

// tally counts records of one key, or of all keys beyond the bound.
type tally struct {
	identity spiffeid.ID
	addr     netip.Addr
	merged   Merged
	records  uint64 // less than merged.Count if a record stood for several
}

// add counts a record.
func (t *tally) add(rec *Record) {
	t.records++
	m := Merged{Count: 1, First: rec.Time, Last: rec.Time}
	if rec.Merged != nil {
		m = *rec.Merged
	}
	t.merged.join(m)
	t.count(rec.Verdict, rec.Reason, m.Count)
}

// merge counts what another tally has counted.
func (t *tally) merge(other *tally) {
	t.records += other.records
	t.merged.join(other.merged)
	for _, c := range other.merged.Counts {
		t.count(c.Verdict, c.Reason, c.Count)
	}
}

func (t *tally) count(verdict allowlist.Verdict, reason allowlist.Reason, n uint64) {
	for i := range t.merged.Counts { // a few: one key meets few reasons
		if c := &t.merged.Counts[i]; c.Verdict == verdict && c.Reason == reason {
			c.Count += n
			return
		}
	}
	t.merged.Counts = append(t.merged.Counts, Count{verdict, reason, n})
}

// join adds the count and the times of another.
func (m *Merged) join(other Merged) {
	if m.Count == 0 || other.First.Before(m.First) {
		m.First = other.First
	}
	if m.Count == 0 || other.Last.After(m.Last) {
		m.Last = other.Last
	}
	m.Count += other.Count
}

// record returns the summary.
func (t *tally) record() *Record {
	now := time.Now()
	return &Record{
		Time: now, Event: EventSummary, ID: newID(now),
		Identity: t.identity, Client: netip.AddrPortFrom(t.addr, 0), Merged: &t.merged,
	}
}

// tallies holds the tallies until their summaries are due.
type tallies struct {
	due   time.Time // zero if there are none
	byKey map[key]*tally
	other *tally // nil if there is none
}

// add counts a record that has no line.
func (ts *tallies) add(rec *Record) { ts.of(keyOf(rec), rec.Identity).add(rec) }

// merge counts again what was not written.
func (ts *tallies) merge(t *tally) {
	if t.merged.Other {
		ts.rest().merge(t)
		return
	}
	ts.of(keyOf(&Record{Identity: t.identity, Client: netip.AddrPortFrom(t.addr, 0)}), t.identity).merge(t)
}

// of returns the tally of a key.
func (ts *tallies) of(k key, id spiffeid.ID) *tally {
	t := ts.byKey[k]
	switch {
	case t != nil:
		return t
	case len(ts.byKey) >= maxTallies:
		return ts.rest()
	case ts.byKey == nil:
		ts.byKey = map[key]*tally{}
	}
	ts.begin()
	t = &tally{identity: id, addr: k.addr}
	ts.byKey[k] = t
	return t
}

// rest returns the tally of all keys that have none of their own.
func (ts *tallies) rest() *tally {
	if ts.other == nil {
		ts.begin()
		ts.other = &tally{merged: Merged{Other: true}}
	}
	return ts.other
}

func (ts *tallies) begin() {
	if ts.due.IsZero() {
		ts.due = time.Now().Add(summaryEvery)
	}
}

// take returns the tallies and begins anew if they are due, or in any case if
// now is set.
func (ts *tallies) take(now bool) tallies {
	if ts.due.IsZero() || !now && time.Until(ts.due) > 0 {
		return tallies{}
	}
	taken := *ts
	*ts = tallies{}
	return taken
}

// list returns all tallies.
func (ts *tallies) list() []*tally {
	if ts.due.IsZero() {
		return nil
	}
	all := make([]*tally, 0, len(ts.byKey)+1)
	for _, t := range ts.byKey {
		all = append(all, t)
	}
	if ts.other != nil {
		all = append(all, ts.other)
	}
	return all
}
