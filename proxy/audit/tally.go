package audit

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
)

const (
	// summaryEvery is the time between two summaries of the same key.
	summaryEvery = time.Second
	// maxTallies bounds the identities, and also the sources, that have a summary
	// of their own.
	maxTallies = 2048
	// maxNetworkSources bounds those of them that are in one network.
	maxNetworkSources = 16
	// maxNetworks bounds the networks that have a summary for all others.
	maxNetworks = 1024
	// maxListeners bounds the listeners that have one for all networks beyond that.
	maxListeners = 64
)

// tally counts records of one key; its zero value those of all keys beyond the
// bounds.
type tally struct {
	key      key
	identity spiffeid.ID // what the key is of
	merged   Merged
	records  uint64 // less than merged.Count if a record stood for several
	cause    string // why the sink failed; "" if the records only had no room
	id       string // of the summary, once it was tried; the next try has it, too
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
	t.id = cmp.Or(t.id, other.id)
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

// record returns the summary. It has the same id each time, since a sink that failed
// may have taken it all the same.
func (t *tally) record() *Record {
	now := time.Now()
	if t.id == "" {
		t.id = newID(now)
	}
	rec := t.key.proof.mark(&Record{
		Time: now, Event: EventSummary, ID: t.id,
		Identity: t.identity, Client: netip.AddrPortFrom(t.key.addr, 0), Merged: &t.merged,
	})
	if t.key.kind == kindListener {
		rec.Listener = t.key.name
	}
	if t.cause != "" {
		rec.Detail = "the sink failed: " + t.cause
	}
	return rec
}

// tallies holds the tallies until their summaries are due. What has no room for a
// tally of its own is counted with its network, else with its listener, and only
// then with all others.
type tallies struct {
	due   time.Time // zero if there are none
	byKey map[key]*tally
	other *tally // nil if there is none
	lost  *tally // counts what was lost since the sink failed; nil if it did not

	// How many keys in byKey are of each kind, and of the sources how many are in
	// each network.
	identities, sources, networks, listeners int
	inNetwork                                map[key]int
}

// add counts a record that has no line.
func (ts *tallies) add(rec *Record) {
	k := keyOf(rec)
	t := ts.byKey[k]
	if t == nil {
		network, listener := networkOf(rec.Client.Addr()), listenerOf(rec)
		network.proof, listener.proof = k.proof, k.proof
		t = ts.first(rec.Identity, k, network, listener)
	}
	t.add(rec)
}

// lose notes that the sink failed, and counts the records that it lost. When nothing
// else is to be written, their summary is, to find out whether the sink works again.
func (ts *tallies) lose(n uint64, cause error) {
	ts.begin()
	now := time.Now()
	if ts.lost == nil {
		ts.lost = &tally{merged: Merged{First: now}}
	}
	t := ts.lost
	t.cause = bounded(cause.Error(), maxDetail)
	t.merged.Count += n
	t.merged.Last = now
	t.count(allowlist.Fail, allowlist.AuditUnavailable, n)
}

// works notes that the sink works again, or still.
func (ts *tallies) works() {
	if ts.lost == nil {
		return
	}
	if ts.lost = nil; len(ts.byKey) == 0 && ts.other == nil { // so that nothing is due
		*ts = tallies{}
	}
}

// merge counts again what was not written.
func (ts *tallies) merge(t *tally) {
	if t.cause != "" {
		ts.begin()
		if later := ts.lost; later != nil {
			t.merge(later)
			t.cause = later.cause
		}
		ts.lost = t
		return
	}
	network := networkOf(t.key.addr)
	network.proof = t.key.proof
	ts.first(t.identity, t.key, network).merge(t)
}

// first returns the tally of the first of some keys that has one or gets one, and
// else the one for all others. The identity is that of the first key.
func (ts *tallies) first(id spiffeid.ID, keys ...key) *tally {
	ts.begin()
	for _, k := range keys {
		if t := ts.byKey[k]; t != nil {
			return t
		}
		if !ts.room(k) {
			continue
		}
		t := &tally{key: k}
		if k.kind == kindOne {
			t.identity = id
		} else {
			t.merged.Other = true
		}
		ts.byKey[k] = t
		return t
	}
	if ts.other == nil {
		ts.other = &tally{key: key{kind: kindStranger}, merged: Merged{Other: true}}
	}
	return ts.other
}

// begin makes the first summaries due in a while.
func (ts *tallies) begin() {
	if ts.byKey == nil {
		ts.byKey, ts.inNetwork = map[key]*tally{}, map[key]int{}
		ts.due = time.Now().Add(summaryEvery)
	}
}

// room reports whether there is room for a tally of a key, and takes it.
func (ts *tallies) room(k key) bool {
	switch k.kind {
	case kindOne:
		if k.name != "" {
			return below(&ts.identities, maxTallies)
		}
		network := networkOf(k.addr)
		if ts.inNetwork[network] >= maxNetworkSources || !below(&ts.sources, maxTallies) {
			return false
		}
		ts.inNetwork[network]++
		return true
	case kindNetwork:
		return k.addr.IsValid() && below(&ts.networks, maxNetworks)
	case kindListener:
		return k.name != "" && below(&ts.listeners, maxListeners)
	case kindStranger:
	}
	return false
}

// below counts one more unless there are as many as there may be.
func below(n *int, limit int) bool {
	if *n >= limit {
		return false
	}
	*n++
	return true
}

// take returns the tallies and begins anew if they are due, or in any case if now is
// set. What was lost is left for later if there is anything else.
func (ts *tallies) take(now bool) tallies {
	if ts.due.IsZero() || !now && time.Until(ts.due) > 0 {
		return tallies{}
	}
	taken := *ts
	*ts = tallies{}
	if lost := taken.lost; lost != nil && (now || len(taken.byKey) > 0 || taken.other != nil) {
		taken.lost = nil
		ts.merge(lost)
	}
	return taken
}

// list returns all tallies.
func (ts *tallies) list() []*tally {
	if ts.due.IsZero() {
		return nil
	}
	all := make([]*tally, 0, len(ts.byKey)+2)
	for _, t := range ts.byKey {
		all = append(all, t)
	}
	if ts.other != nil {
		all = append(all, ts.other)
	}
	if ts.lost != nil {
		all = append(all, ts.lost)
	}
	return all
}
