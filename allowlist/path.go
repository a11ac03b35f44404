package allowlist

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Errors of CheckPath. Each wraps ErrTarget.
var (
	errPathStart     = fmt.Errorf("%w: the path does not begin with a slash", ErrTarget)
	errPathSegment   = fmt.Errorf("%w: the path has an empty segment or a dot segment", ErrTarget)
	errPathByte      = fmt.Errorf("%w: the path has a semicolon, a backslash, a space, a control or a non-ASCII byte", ErrTarget)
	errPathEscape    = fmt.Errorf("%w: the path has an escape that is not two hexadecimal digits", ErrTarget)
	errPathUTF8      = fmt.Errorf("%w: the path has an escape that is not valid UTF-8", ErrTarget)
	errPathDelimiter = fmt.Errorf("%w: the path has an escape of a dot, a slash, a delimiter, a control, or of a character that is read as one", ErrTarget)
)

// CheckPath returns nil if a raw path means the same to every origin, whatever the origin
// decodes, how often, into which character set, and with which normal form. A rule with
// paths requires this of a request before it compares the path. Such a path has no dot
// segment, empty segment, parameter or backslash, and its escapes decode to valid UTF-8
// without any character for which isAmbiguous returns true. The error wraps ErrTarget and
// contains no byte of the path.
func CheckPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errPathStart
	}
	for i := 0; i < len(path); {
		switch c := path[i]; {
		case c <= ' ', c >= 0x7f, c == ';', c == '\\':
			return errPathByte
		case c == '/' && badSegment(path[i+1:]):
			return errPathSegment
		case c == '%':
			n, err := checkEscapes(path[i:])
			if err != nil {
				return err
			}
			i += n
		default:
			i++
		}
	}
	return nil
}

// checkEscapes decodes and checks the character whose first byte is the escape at the
// start of s, and returns the length of its escapes. All bytes of a non-ASCII character
// must be escapes, because a path contains ASCII only.
func checkEscapes(s string) (int, error) {
	var decoded [utf8.UTFMax]byte
	n := 0
	for n < len(decoded) && strings.HasPrefix(s[3*n:], "%") {
		b, ok := unescape(s[3*n:])
		if !ok {
			return 0, errPathEscape
		}
		decoded[n] = b
		n++
		if utf8.FullRune(decoded[:n]) {
			break
		}
	}
	r, size := utf8.DecodeRune(decoded[:n])
	switch {
	case r == utf8.RuneError && size <= 1: // includes overlong forms, surrogates and lone bytes
		return 0, errPathUTF8
	case isAmbiguous(r):
		return 0, errPathDelimiter
	}
	return 3 * size, nil
}

// unescape returns the byte that the escape at the start of s stands for (RFC
// 3986 section 2.1).
func unescape(s string) (b byte, ok bool) {
	if len(s) < 3 || s[0] != '%' || !isHexDigit(s[1]) || !isHexDigit(s[2]) {
		return 0, false
	}
	return fromHex(s[1])<<4 | fromHex(s[2]), true
}

func fromHex(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// overlays holds marks and letters that look like or are named as slashes, dots and
// number signs, and that some character sets convert to these.
const overlays = "\u0337\u0338\u20e5\u20eb\u1ac6\ua718\u0eaf"

// isAmbiguous reports whether an origin may read a character as a delimiter that ends a
// segment, a path or a name (a slash, a dot or another one, in any width or form), or may
// leave the character out. Origins differ: they use the compatibility decomposition
// (Unicode Standard Annex 15) or the nearest character of an old character set, or remove
// invisible characters. Therefore all characters of the classes that this can happen to
// are ambiguous. Of the non-ASCII characters, letters, digits, marks, dashes, quotes and
// brackets remain.
func isAmbiguous(r rune) bool {
	if isDelimiter(r) {
		return true
	}
	for decomposed := decomposition(r); len(decomposed) > 0; {
		part, size := utf8.DecodeRune(decomposed)
		if isDelimiter(part) {
			return true
		}
		decomposed = decomposed[size:]
	}
	return false
}

// decomposition returns the compatibility decomposition of a character, or nil if it has
// none.
func decomposition(r rune) []byte {
	var text [utf8.UTFMax]byte
	n := utf8.EncodeRune(text[:], r)
	return norm.NFKD.Properties(text[:n]).Decomposition()
}

// isDelimiter reports whether a character is ambiguous without regard to its
// decomposition.
func isDelimiter(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f || strings.ContainsRune(`/\.;?#%`, r)
	}
	if unicode.In(r, unicode.Po, unicode.S, unicode.Me, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
		return true
	}
	return !unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P) || strings.ContainsRune(overlays, r)
}

// badSegment reports whether the segment at the start of s, which follows a slash, is
// empty or a dot segment. An empty last segment is allowed. A dot segment with spaces is
// bad too, because some origins trim names.
func badSegment(s string) bool {
	if s == "" {
		return false
	}
	segment, _, _ := strings.Cut(s, "/")
	dots, spaces := 0, 0
	for segment != "" {
		switch {
		case segment[0] == '.':
			dots++
			segment = segment[1:]
		case strings.HasPrefix(segment, "%20"):
			spaces++
			segment = segment[len("%20"):]
		default:
			return false
		}
	}
	return dots <= 2 || spaces > 0
}
