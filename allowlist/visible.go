package allowlist

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Visible returns a text that no terminal obeys: what controls one, or the order
// and the breaks of lines (Unicode's categories Cc, Cf, Zl and Zp), is written as
// \u and four hexadecimal digits, above U+FFFF as two of these (RFC 8259 section
// 7), and what is no UTF-8 as a question mark. All other letters stay. Text that
// is printable ASCII is returned as it is.
//
// It stands in this package because each part that shows a text to people, in
// records, spans, logs or answers, knows this package.
func Visible(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return string(AppendVisible(nil, []byte(strings.ToValidUTF8(s, "?"))))
		}
	}
	return s
}

// AppendVisible appends a text as Visible returns it. Of a line of JSON it writes
// one that means the same, since what it replaces stands in strings only.
func AppendVisible(dst, text []byte) []byte {
	done := 0
	for i := 0; i < len(text); {
		if c := text[i]; ' ' <= c && c <= '~' {
			i++
			continue
		}
		r, size := utf8.DecodeRune(text[i:])
		invalid := r == utf8.RuneError && size == 1
		if invalid || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			dst = append(dst, text[done:i]...)
			if invalid {
				dst = append(dst, '?')
			} else {
				dst = appendEscaped(dst, r)
			}
			done = i + size
		}
		i += size
	}
	return append(dst, text[done:]...)
}

func appendEscaped(dst []byte, r rune) []byte {
	const beyond = 0x10000 // needs two: RFC 2781 section 2.1
	if r >= beyond {
		r -= beyond
		return appendUnit(appendUnit(dst, 0xd800+r>>10), 0xdc00+r&0x3ff)
	}
	return appendUnit(dst, r)
}

// appendUnit appends the escape of 16 bits.
func appendUnit(dst []byte, unit rune) []byte {
	const digits = "0123456789abcdef"
	return append(dst, '\\', 'u', digits[unit>>12&0xf], digits[unit>>8&0xf], digits[unit>>4&0xf], digits[unit&0xf])
}
