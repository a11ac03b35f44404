package audittest

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Obeyed returns a text for each character that a terminal obeys: each character of
// Unicode's categories Cc, Cf, Zl and Zp, between two letters.
func Obeyed() []string {
	var texts []string
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if utf8.ValidRune(r) && isObeyed(r) {
			texts = append(texts, "é"+string(r)+"z")
		}
	}
	return texts
}

// IsObeyed reports whether a text has such a character, or bytes that are not UTF-8.
// Line feeds count only if the text must be one line.
func IsObeyed(text string, line bool) bool {
	return !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return isObeyed(r) && (line || r != '\n') })
}

func isObeyed(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }
