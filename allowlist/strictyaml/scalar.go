package strictyaml

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Text reads one line of text as it is written. Quotes make no difference, except that
// null and ~ are text only in quotes. Empty text and characters that do not print are
// errors.
func (n *Node) Text() (string, bool) {
	if !n.scalar() {
		return "", false
	}
	if n.text == "" {
		n.Errorf("the text is empty: write some, or remove the key")
		return "", false
	}
	for _, r := range n.text {
		if !unicode.IsPrint(r) {
			n.Errorf("has the character %U, which does not print: write one line of visible text", r)
			return "", false
		}
	}
	return n.text, true
}

// Texts reads a list of texts, or one text.
func (n *Node) Texts() ([]string, bool) {
	var texts []string
	all := true
	for item := range n.OneOrMore() {
		text, ok := item.Text()
		texts, all = append(texts, text), all && ok
	}
	if !all || len(texts) == 0 {
		return nil, false
	}
	return texts, true
}

// Word reads a word that must be one of words.
func (n *Node) Word(words ...string) (string, bool) {
	if !n.scalar() {
		return "", false
	}
	if !slices.Contains(words, n.text) {
		n.Errorf("want %s, not %s", strings.Join(words, " or "), quote(n.text))
		return "", false
	}
	return n.text, true
}

// Bool reads true or false; nothing else is a boolean here.
func (n *Node) Bool() (value, ok bool) {
	if !n.unquoted("true or false") {
		return false, false
	}
	switch n.text {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	n.Errorf("want true or false, not %s", quote(n.text))
	return false, false
}

// Int reads a decimal number from lowest to highest, without leading zeros,
// underscores, exponent or plus sign.
func (n *Node) Int(lowest, highest int) (int, bool) {
	if !n.unquoted("a number") {
		return 0, false
	}
	value, err := strconv.Atoi(n.text)
	if err != nil || strconv.Itoa(value) != n.text || value < lowest || value > highest {
		n.Errorf("want a number from %d to %d in plain decimal digits, not %s", lowest, highest, quote(n.text))
		return 0, false
	}
	return value, true
}

// Duration reads a duration in the format of time.ParseDuration, without a sign: 90s, 5m,
// 1h30m.
func (n *Node) Duration() (time.Duration, bool) {
	if !n.scalar() {
		return 0, false
	}
	d, err := time.ParseDuration(n.text)
	if err != nil || d < 0 || strings.HasPrefix(n.text, "+") || strings.HasPrefix(n.text, "-") {
		n.Errorf("want a duration with its unit, such as 500ms, 10s, 5m or 12h, not %s", quote(n.text))
		return 0, false
	}
	return d, true
}

// Until reads the end of a period: a date (2027-01-31), whose last moment is the end of
// the period in UTC, or an RFC 3339 time. It returns the first instant after the period,
// in UTC.
func (n *Node) Until() (time.Time, bool) {
	if !n.scalar() {
		return time.Time{}, false
	}
	day, err := time.Parse(time.DateOnly, n.text)
	t := day.AddDate(0, 0, 1)
	if err != nil {
		err = t.UnmarshalText([]byte(n.text))
	}
	if err != nil {
		n.Errorf("want a date such as 2027-01-31 (until its end, UTC) or a time such as 2027-01-31T18:00:00Z, not %s", quote(n.text))
		return time.Time{}, false
	}
	if t.Before(time.Unix(0, 0)) { // the zero time would mean never
		n.Errorf("%s lies before 1970: write when it ends", quote(n.text))
		return time.Time{}, false
	}
	return t.UTC(), true
}

// Bytes reads a number of bytes, at least 1, with its unit: B, kB, MB, GB, TB (powers of
// 1000), KiB, MiB, GiB or TiB (powers of 1024).
func (n *Node) Bytes() (int64, bool) {
	if !n.scalar() {
		return 0, false
	}
	digits := strings.TrimRightFunc(n.text, unicode.IsLetter)
	unit := unitOf(n.text[len(digits):])
	value, err := strconv.ParseInt(digits, 10, 64)
	if unit == 0 || err != nil || value < 1 || strconv.FormatInt(value, 10) != digits || value > math.MaxInt64/unit {
		n.Errorf("want bytes with their unit, such as 500MB or 1GiB, not %s", quote(n.text))
		return 0, false
	}
	return value * unit, true
}

func unitOf(s string) int64 {
	switch s {
	case "B":
		return 1
	case "kB":
		return 1e3
	case "MB":
		return 1e6
	case "GB":
		return 1e9
	case "TB":
		return 1e12
	case "KiB":
		return 1 << 10
	case "MiB":
		return 1 << 20
	case "GiB":
		return 1 << 30
	case "TiB":
		return 1 << 40
	}
	return 0
}

// scalar reports whether the value is a scalar that does not mean null in YAML. If it is
// not, scalar adds an error.
func (n *Node) scalar() bool {
	if !n.is(scalar) {
		return false
	}
	if n.plain && isNull(n.text) {
		n.Errorf("%s is no value in YAML: write one, or %q in quotes if that is the text", n.text, n.text)
		return false
	}
	return true
}

// unquoted reports whether the value is a scalar without quotes. If it is not, unquoted
// adds an error in which what names the values that are wanted.
func (n *Node) unquoted(what string) bool {
	if !n.scalar() {
		return false
	}
	if !n.plain {
		n.Errorf("want %s without quotes, not the text %s", what, quote(n.text))
		return false
	}
	return true
}

// isNull reports whether YAML reads a plain scalar as null.
func isNull(s string) bool {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return true
	}
	return false
}
