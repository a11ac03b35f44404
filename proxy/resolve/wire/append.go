package wire

import (
	"encoding/binary"
	"slices"
)

// Append appends a complete response without an OPT: the header, the client's question,
// and the records that the filter allows. The times to live are reduced by age seconds,
// or are StaleTTL if stale is set.
//
// If the filter refuses an alias, or every record after the aliases, the response has
// no records and the code NoError, which means no data. Append allocates only what dst
// needs to grow.
func (m *Message) Append(dst []byte, reply Reply, age uint32, stale bool, f Filter) ([]byte, Counts) {
	w := writer{dst: slices.Grow(dst, headLen+len(reply.Question)+len(m.data)), start: len(dst), filter: f, age: age, stale: stale}
	w.counts.Cut = int(m.cut)
	w.head(reply)
	w.records(m)
	flags := uint16(flagQR | flagRA)
	if reply.RD {
		flags |= flagRD
	}
	if reply.CD {
		flags |= flagCD
	}
	if m.authentic && reply.AD && !stale && w.counts.Dropped == 0 {
		flags |= flagAD
	}
	if !w.emptied {
		flags |= uint16(m.rcode)
	}
	head := w.dst[w.start:]
	binary.BigEndian.PutUint16(head[2:], flags)
	binary.BigEndian.PutUint16(head[6:], uint16(w.counts.Answers)) //nolint:gosec // G115: a message of 64 KiB has fewer
	head[9] = w.authorities
	return w.dst, w.counts
}

// writer is a response that is being written.
type writer struct {
	dst    []byte
	start  int // offset of the message in dst
	filter Filter
	age    uint32
	stale  bool

	owners      [MaxHops + 1]uint16 // offsets of the question's name and of each alias's target
	hops        int
	counts      Counts
	authorities byte
	emptied     bool // says that the filter left nothing
}

func (w *writer) head(reply Reply) {
	w.dst = binary.BigEndian.AppendUint16(w.dst, reply.ID)
	w.dst = append(w.dst, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	w.dst = append(w.dst, reply.Question...)
	w.owners[0] = headLen
}

func (w *writer) records(m *Message) {
	body := len(w.dst)
	final := 0
	names := m.names
	for data := m.data; len(data) > 0; {
		var r record
		r, data = nextRecord(data)
		named := len(names) > 0 && r.isNamed()
		if named {
			if !w.filter.Hop(names[0]) {
				w.counts.Dropped++
				if r.typ == TypeCNAME { // the records after it are not sent either
					final = 0
					break
				}
				names = names[1:]
				continue
			}
			names = names[1:]
		}
		switch {
		case r.typ == TypeCNAME:
			w.alias(&r)
		case w.record(&r) && !r.authority:
			final++
		}
	}
	if w.counts.Dropped > 0 && final == 0 {
		w.dst, w.counts.Answers, w.authorities, w.emptied = w.dst[:body], 0, 0, true
	}
}

// alias writes a CNAME and remembers the offset of its target.
func (w *writer) alias(r *record) {
	w.hops++
	w.rr(r)
	w.owners[w.hops] = uint16(len(w.dst) - w.start - len(r.rdata)) //nolint:gosec // G115: at most 17 names from the start
	w.counts.Answers++
}

// record writes a record other than an alias, and reports whether the filter allowed
// it.
func (w *writer) record(r *record) bool {
	if addr, ok := r.addr(); ok && !w.filter.Addr(addr) {
		w.counts.Dropped++
		return false
	}
	begin := len(w.dst)
	w.rr(r)
	if r.isService() {
		rdata := len(w.dst) - len(r.rdata)
		kept, dropped := filterService(w.dst[rdata:], w.filter)
		w.counts.Dropped += dropped
		if kept == 0 {
			w.dst = w.dst[:begin]
			return false
		}
		w.dst = w.dst[:rdata+kept]
		binary.BigEndian.PutUint16(w.dst[rdata-2:], uint16(kept)) //nolint:gosec // G115: no longer than it was
	}
	if r.authority {
		w.authorities++
	} else {
		w.counts.Answers++
	}
	return true
}

// rr writes a record as it is stored, after a pointer to its owner.
func (w *writer) rr(r *record) {
	ttl := r.ttl - min(r.ttl, w.age)
	if w.stale {
		ttl = StaleTTL
	}
	w.dst = binary.BigEndian.AppendUint16(w.dst, 0xc000|(w.owners[r.hop]+uint16(r.skip)))
	w.dst = binary.BigEndian.AppendUint16(w.dst, r.typ)
	w.dst = append(w.dst, 0, 1) // class IN
	w.dst = binary.BigEndian.AppendUint32(w.dst, ttl)
	w.dst = binary.BigEndian.AppendUint16(w.dst, uint16(len(r.rdata))) //nolint:gosec // G115: stored as such
	w.dst = append(w.dst, r.rdata...)
}
