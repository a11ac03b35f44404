package dns

import (
	"encoding/binary"

	"github.com/exeat-dev/exeat/allowlist"
)

// The sizes and numbers of RFC 1035 and RFC 6891 that messages are made of.
const (
	headLen  = 12
	maxName  = 255 // on the wire, with the final zero
	maxLabel = 63
	fixedOPT = 11 // without options
	plainUDP = 512
	ourUDP   = 1232 // what passes every path without fragments (RFC 9715)

	classIN  = 1
	typeOPT  = 41
	typeIXFR = 251
	typeAXFR = 252
	typeANY  = 255

	flagQR, flagTC, flagRD = 1 << 15, 1 << 9, 1 << 8
	flagRA, flagAD, flagCD = 1 << 7, 1 << 5, 1 << 4
	opcodes                = 0xf << 11
	flagDO                 = 1 << 15 // in the OPT
)

// maxQuery bounds a query: a longer one is malformed. Of a longer one keptQuery is
// read, one byte more than a query may have, so that it is known.
const (
	maxQuery  = 4096
	keptQuery = maxQuery + 1
)

// kind says what a packet is.
type kind uint8

const (
	noQuery         kind = iota // nothing that may be answered
	malformed                   // no query that a door takes
	notImplemented              // another operation or class
	unknownVersion              // of EDNS
	noHost                      // a good query for what is no name of a host
	transfer                    // of a zone
	wellFormedQuery             // a question to decide
)

// query is what a packet asks. It keeps no part of the packet.
type query struct {
	id      uint16
	flags   uint16 // as received
	opt     bool   // it has an OPT, and so has the answer
	do      bool
	version byte
	payload int // the largest UDP answer that the client takes

	typ  allowlist.QueryType
	host allowlist.Host // zero for what is no name of a host

	problem string // what is wrong with it, of one that is malformed or not implemented

	asked    int               // length of question; zero if it is not known
	question [maxName + 4]byte // name, type and class as received
}

// parse reads a packet as strictly as a name must be read by which something is
// decided: one question of class IN, at most one OPT, nothing else and nothing
// behind it. The name is taken label by label, so that no dot inside a label
// passes for one between labels. It allocates only for a name that was not seen
// lately.
func (q *query) parse(msg []byte, names *names) kind {
	q.reset()
	if !isQuery(msg) {
		return noQuery
	}
	q.id, q.flags = binary.BigEndian.Uint16(msg), binary.BigEndian.Uint16(msg[2:])
	switch {
	case q.flags&opcodes != 0:
		q.problem = "it is no query but another operation"
		return notImplemented
	case len(msg) > maxQuery:
		q.problem = "it has more than 4096 bytes"
		return malformed
	}
	counts := msg[4:headLen]
	extra := binary.BigEndian.Uint16(counts[6:])
	if binary.BigEndian.Uint64(counts)>>16 != 1<<32 || extra > 1 {
		q.problem = "it has not one question and one OPT at most"
		return malformed
	}
	rest, ok := q.readQuestion(msg[headLen:])
	if !ok {
		q.problem = "its question is cut short or has a name that is none"
		return malformed
	}
	if extra == 1 {
		if rest, ok = q.readOPT(rest); !ok {
			q.problem = "what stands behind its question is no OPT"
			return malformed
		}
	}
	if len(rest) != 0 {
		q.problem = "bytes stand behind its end"
		return malformed
	}
	return q.classify(names)
}

// isQuery reports whether a packet may be answered: it has a whole header, and is
// no response.
func isQuery(msg []byte) bool { return len(msg) >= headLen && msg[2]&(flagQR>>8) == 0 }

func (q *query) reset() {
	q.id, q.flags, q.opt, q.do, q.version, q.payload = 0, 0, false, false, 0, plainUDP
	q.typ, q.host, q.asked, q.problem = 0, allowlist.Host{}, 0, ""
}

// classify says what a whole query is.
func (q *query) classify(names *names) kind {
	switch {
	case q.version != 0:
		return unknownVersion
	case binary.BigEndian.Uint16(q.question[q.asked-2:]) != classIN:
		q.problem = "it is of another class than IN"
		return notImplemented
	case q.typ == typeAXFR, q.typ == typeIXFR:
		return transfer
	}
	var text [maxName]byte
	name, ok := appendText(text[:0], q.name())
	if ok {
		q.host, ok = names.host(name)
	}
	if !ok {
		q.problem = "it asks for what is no name of a host"
		return noHost
	}
	return wellFormedQuery
}

// name is the name asked for, as received.
func (q *query) name() []byte { return q.question[:q.asked-4] }

// isRoot reports whether the root was asked for, which is above everything.
func (q *query) isRoot() bool { return q.asked == 1+4 }

// readQuestion copies the question and returns what follows it. False means
// that there is none without compression.
func (q *query) readQuestion(b []byte) (rest []byte, ok bool) {
	n := 0
	for n < len(b) && n < maxName && b[n] != 0 {
		if b[n] > maxLabel {
			return nil, false
		}
		n += 1 + int(b[n])
	}
	end := n + 1 + 4
	if n >= maxName || end > len(b) {
		return nil, false
	}
	q.asked = copy(q.question[:], b[:end])
	q.typ = allowlist.QueryType(binary.BigEndian.Uint16(b[n+1:]))
	return b[end:], true
}

// readOPT reads the pseudo-record and returns what follows it. Its options must
// fill it; what they say is not looked at.
func (q *query) readOPT(b []byte) (rest []byte, ok bool) {
	if len(b) < fixedOPT || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != typeOPT {
		return nil, false
	}
	q.opt, q.version = true, b[6]
	q.do = binary.BigEndian.Uint16(b[7:])&flagDO != 0
	q.payload = max(plainUDP, min(ourUDP, int(binary.BigEndian.Uint16(b[3:]))))
	size := int(binary.BigEndian.Uint16(b[9:]))
	b = b[fixedOPT:]
	if len(b) < size {
		return nil, false
	}
	for options := b[:size]; len(options) > 0; {
		if len(options) < 4 {
			return nil, false
		}
		option := 4 + int(binary.BigEndian.Uint16(options[2:]))
		if len(options) < option {
			return nil, false
		}
		options = options[option:]
	}
	return b[size:], true
}

// appendText writes a name in lower case with dots between its labels. False
// means that it is the root or has a byte that no name of a host has, such as a
// dot inside a label.
func appendText(dst, name []byte) ([]byte, bool) {
	for name[0] != 0 {
		if len(dst) > 0 {
			dst = append(dst, '.')
		}
		label := name[1 : 1+int(name[0])]
		for _, c := range label {
			switch {
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return nil, false
			}
			dst = append(dst, c)
		}
		name = name[1+len(label):]
	}
	return dst, len(dst) > 0
}
