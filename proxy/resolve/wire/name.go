package wire

import (
	"fmt"
	"strings"

	"github.com/exeat-dev/exeat/allowlist"
)

// Bounds of a name in wire format (RFC 1035 section 2.3.4).
const (
	maxNameLen  = 255
	maxLabelLen = 63
	// maxPointers is how many pointers a name may have: one for each label.
	maxPointers = maxNameLen / 2
)

// readName reads the name at an offset, which may be compressed. It appends the name
// without compression and in lower case, and returns the offset after the name.
func readName(dst, msg []byte, off int) (name []byte, next int, err error) {
	next = -1
	start := len(dst)
	for pointers := 0; ; {
		if off >= len(msg) {
			return nil, 0, fmt.Errorf("%w: cut off in a name", ErrMalformed)
		}
		switch size := int(msg[off]); {
		case size == 0:
			if next < 0 {
				next = off + 1
			}
			return append(dst, 0), next, nil
		case size <= maxLabelLen:
			end := off + 1 + size
			if end > len(msg) || len(dst)-start+1+size+1 > maxNameLen {
				return nil, 0, fmt.Errorf("%w: a name is too long or cut off", ErrMalformed)
			}
			dst = append(dst, msg[off])
			for _, c := range msg[off+1 : end] {
				if 'A' <= c && c <= 'Z' {
					c += 'a' - 'A'
				}
				dst = append(dst, c)
			}
			off = end
		case size >= 0xc0 && off+1 < len(msg) && pointers < maxPointers:
			if next < 0 {
				next = off + 2
			}
			off = (size&^0xc0)<<8 | int(msg[off+1])
			pointers++
		default:
			return nil, 0, fmt.Errorf("%w: a name has a pointer too many, or a label of an unknown kind", ErrMalformed)
		}
	}
}

// appendName appends the canonical text of a name as labels. A backslash and three
// digits stand for a byte, as allowlist.HostOfName writes them.
func appendName(dst []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		at := len(dst)
		dst = append(dst, 0)
		for i := 0; i < len(label); i++ {
			c := label[i]
			if c == '\\' && i+3 < len(label) {
				c = (label[i+1]-'0')*100 + (label[i+2]-'0')*10 + label[i+3] - '0'
				i += 3
			}
			dst = append(dst, c)
		}
		dst[at] = byte(len(dst) - at - 1) //nolint:gosec // G115: at most 63
	}
	return append(dst, 0)
}

// covers reports whether a name is the zone itself or below it. Both are uncompressed
// and in lower case.
func covers(zone, name string) bool {
	for len(name) > len(zone) {
		name = name[1+int(name[0]):]
	}
	return name == zone
}

// parseHost returns the host for a name of the library, or an error if the name is not one
// of a host.
func parseHost(name string) (allowlist.Host, error) {
	h, err := allowlist.ParseHost(name)
	if err == nil && h.IsAddr() {
		err = allowlist.ErrHost
	}
	return h, err
}
