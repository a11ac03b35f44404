package dns

import (
	"encoding/binary"

	"github.com/exeat-dev/exeat/allowlist"
)

// Sizes and numbers of RFC 1035 and RFC 6891.
const (
	headLen  = 12
	maxName  = 255 // in wire format, with the final zero byte
	maxLabel = 63
	fixedOPT = 11   // size of an OPT without options
	plainUDP = 512  // largest UDP answer without EDNS
	ourUDP   = 1232 // passes every path without fragmentation (RFC 9715)

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

// maxQuery is the largest size of a query: a longer one is malformed. Of a packet,
// keptQuery bytes are read: one more than a query may have, so that a longer one is
// noticed.
const (
	maxQuery  = 4096
	keptQuery = maxQuery + 1
)

// kind classifies a packet.
type kind uint8

const (
	noQuery         kind = iota // no query, or too short to be answered
	malformed                   // a malformed query
	notImplemented              // another opcode, or another class than IN
	unknownVersion              // another version of EDNS
	noHost                      // a well-formed query for something that is not the name of a host
	transfer                    // a zone transfer
	wellFormedQuery             // a query to decide
)

// query is the content of a packet. It keeps no part of the packet.
type query struct {
	id      uint16
	flags   uint16 // as received
	opt     bool   // says that the query has an OPT; its answer then has one, too
	do      bool
	version byte
	payload int // largest UDP answer that the client accepts

	typ  allowlist.QueryType
	host allowlist.Host // zero if the name is not the name of a host

	problem string // what is wrong with a malformed or unsupported query, for the record

	questionLen int               // length of question; zero if the question is not known
	question    [maxName + 4]byte // name, type and class as received
}

// parse reads a packet strictly, since its name decides about access: one question of
// class IN, at most one OPT, and nothing else. It reads the name label by label, so
// that a dot inside a label is not taken for a dot between labels. It allocates only
// for a name that it has not seen recently.
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

// isQuery reports whether a packet may be answered: it has a complete header and is not
// a response.
func isQuery(msg []byte) bool { return len(msg) >= headLen && msg[2]&(flagQR>>8) == 0 }

func (q *query) reset() {
	q.id, q.flags, q.opt, q.do, q.version, q.payload = 0, 0, false, false, 0, plainUDP
	q.typ, q.host, q.questionLen, q.problem = 0, allowlist.Host{}, 0, ""
}

// classify returns the kind of a query that was read completely.
func (q *query) classify(names *names) kind {
	switch {
	case q.version != 0:
		return unknownVersion
	case binary.BigEndian.Uint16(q.question[q.questionLen-2:]) != classIN:
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

// name returns the name in the question, as received.
func (q *query) name() []byte { return q.question[:q.questionLen-4] }

// isRoot reports whether the query is for the root, which is above every name.
func (q *query) isRoot() bool { return q.questionLen == 1+4 }

// readQuestion copies the question and returns the bytes that follow it. It returns
// false if there is no complete question with an uncompressed name.
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
	q.questionLen = copy(q.question[:], b[:end])
	q.typ = allowlist.QueryType(binary.BigEndian.Uint16(b[n+1:]))
	return b[end:], true
}

// readOPT reads the OPT and returns the bytes that follow it. The options must fill the
// record exactly; their content is ignored.
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

// appendText appends a name in lower case with dots between its labels. It returns
// false for the root, and for a name with a byte that the name of a host cannot have,
// such as a dot inside a label.
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
