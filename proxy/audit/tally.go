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
	// maxTallies bounds the identities that have a summary of their own, and also the
	// sources that have one.
	maxTallies = 2048
	// maxNetworkSources bounds the sources with a summary of their own in one network.
	maxNetworkSources = 16
	// maxNetworks bounds the networks that have a summary for their other sources.
	maxNetworks = 1024
	// maxListeners bounds the listeners that have a summary for all further networks.
	maxListeners = 64
)

// tally counts the records of one key, until they are summarised.
type tally struct {
	key      key
	identity spiffeid.ID // identity of the key; zero for other keys
	merged   Merged
	records  uint64 // number of records; less than merged.Count if one stood for several
	cause    string // why the sink failed; "" if the records only had no room
	id       string // ID of the summary, set when it is first written; another try to write it has the same ID
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

// merge adds the counts of another tally.
func (t *tally) merge(other *tally) {
	t.id = cmp.Or(t.id, other.id)
	t.records += other.records
	t.merged.join(other.merged)
	for _, c := range other.merged.Counts {
		t.count(c.Verdict, c.Reason, c.Count)
	}
}

func (t *tally) count(verdict allowlist.Verdict, reason allowlist.Reason, n uint64) {
	for i := range t.merged.Counts { // few, because one key meets few reasons
		if c := &t.merged.Counts[i]; c.Verdict == verdict && c.Reason == reason {
			c.Count += n
			return
		}
	}
	t.merged.Counts = append(t.merged.Counts, Count{verdict, reason, n})
}

// join adds the count and the times of other.
func (m *Merged) join(other Merged) {
	if m.Count == 0 || other.First.Before(m.First) {
		m.First = other.First
	}
	if m.Count == 0 || other.Last.After(m.Last) {
		m.Last = other.Last
	}
	m.Count += other.Count
}

// record returns the summary as a record. Each call returns the same ID, because a sink
// that failed may have taken the summary all the same.
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

// tallies holds the tallies until their summaries are due. A record whose key has no
// room for a tally is counted with its network, otherwise with its listener, and if
// there is no room for that either with all others.
type tallies struct {
	due   time.Time // when the summaries are due; zero if there are none
	byKey map[key]*tally
	other *tally // counts all others; nil if there are none
	lost  *tally // counts the records that were lost since the sink began to fail; nil if it works

	// The numbers of keys in byKey by kind, and of the sources in each network.
	identities, sources, networks, listeners int
	inNetwork                                map[key]int
}

// add counts a record that is not written by itself.
func (ts *tallies) add(rec *Record) {
	k := keyOf(rec)
	t := ts.byKey[k]
	if t == nil {
		network, listener := networkOf(rec.Client.Addr()), listenerOf(rec)
		network.proof, listener.proof = k.proof, k.proof
		t = ts.tallyOf(rec.Identity, k, network, listener)
	}
	t.add(rec)
}

// sinkFailed notes that the sink failed, and counts the records that it lost. If there is
// nothing else to write, their summary is written to find out whether the sink works
// again.
func (ts *tallies) sinkFailed(n uint64, cause error) {
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

// sinkWorked notes that the sink works.
func (ts *tallies) sinkWorked() {
	if ts.lost == nil {
		return
	}
	if ts.lost = nil; len(ts.byKey) == 0 && ts.other == nil { // then nothing is due
		*ts = tallies{}
	}
}

// merge counts again the records of a summary that was not written.
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
	ts.tallyOf(t.identity, t.key, network).merge(t)
}

// tallyOf returns the tally of the first key that has one or has room for one, and
// otherwise the tally of all others. id is the identity of the first key.
func (ts *tallies) tallyOf(id spiffeid.ID, keys ...key) *tally {
	ts.begin()
	for _, k := range keys {
		if t := ts.byKey[k]; t != nil {
			return t
		}
		if !ts.reserve(k) {
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

// begin makes the maps and sets when the summaries are due, unless that was done before.
func (ts *tallies) begin() {
	if ts.byKey == nil {
		ts.byKey, ts.inNetwork = map[key]*tally{}, map[key]int{}
		ts.due = time.Now().Add(summaryEvery)
	}
}

// reserve reports whether there is room for the tally of a key, and counts the key if so.
func (ts *tallies) reserve(k key) bool {
	switch k.kind {
	case kindOne:
		if k.name != "" {
			return incrementBelow(&ts.identities, maxTallies)
		}
		network := networkOf(k.addr)
		if ts.inNetwork[network] >= maxNetworkSources || !incrementBelow(&ts.sources, maxTallies) {
			return false
		}
		ts.inNetwork[network]++
		return true
	case kindNetwork:
		return k.addr.IsValid() && incrementBelow(&ts.networks, maxNetworks)
	case kindListener:
		return k.name != "" && incrementBelow(&ts.listeners, maxListeners)
	case kindStranger:
	}
	return false
}

// incrementBelow increments n if it is below the limit, and reports whether it was.
func incrementBelow(n *int, limit int) bool {
	if *n >= limit {
		return false
	}
	*n++
	return true
}

// take returns the tallies and starts with empty ones, if they are due or force is set.
// Lost records wait for the next summaries if there are any others.
func (ts *tallies) take(force bool) tallies {
	if ts.due.IsZero() || !force && time.Until(ts.due) > 0 {
		return tallies{}
	}
	taken := *ts
	*ts = tallies{}
	if lost := taken.lost; lost != nil && (force || len(taken.byKey) > 0 || taken.other != nil) {
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
