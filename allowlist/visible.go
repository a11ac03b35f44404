package allowlist

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Visible returns a text that is safe to show on a terminal. Characters that control a
// terminal, the direction of text or the breaks of lines (Unicode's categories Cc, Cf, Zl
// and Zp) are written as \u and four hexadecimal digits, above U+FFFF as two of these
// (RFC 8259 section 7), and bytes that are not UTF-8 as a question mark. All other
// characters are unchanged. Text that is printable ASCII is returned as it is.
//
// The function is in this package because every package that shows text to people, in
// records, spans, logs or answers, imports this package.
func Visible(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return string(AppendVisible(nil, []byte(strings.ToValidUTF8(s, "?"))))
		}
	}
	return s
}

// AppendVisible appends text to dst as Visible returns it. The result for a line of JSON
// means the same, because the characters that it replaces occur only in strings.
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
	const beyond = 0x10000 // from here on a character needs two units (RFC 2781 section 2.1)
	if r >= beyond {
		r -= beyond
		return appendUnit(appendUnit(dst, 0xd800+r>>10), 0xdc00+r&0x3ff)
	}
	return appendUnit(dst, r)
}

// appendUnit appends the escape of a UTF-16 code unit.
func appendUnit(dst []byte, unit rune) []byte {
	const digits = "0123456789abcdef"
	return append(dst, '\\', 'u', digits[unit>>12&0xf], digits[unit>>8&0xf], digits[unit>>4&0xf], digits[unit&0xf])
}
