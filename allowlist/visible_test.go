package allowlist

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// TestVisibleEscapesHiddenCharacters checks that Visible escapes every character that
// hides or moves text, and changes no other.
func TestVisibleEscapesHiddenCharacters(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		text := "a" + string(r) + "b"
		got := Visible(text)
		if !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			if got != text {
				t.Errorf("%U became %q", r, got)
			}
			continue
		}
		if strings.ContainsRune(got, r) || !strings.HasPrefix(got, `a\u`) || !strings.HasSuffix(got, "b") {
			t.Errorf("%U became %q", r, got)
		}
		var back string
		if err := json.Unmarshal([]byte(`"`+got+`"`), &back); err != nil || back != text {
			t.Errorf("%U: %q means %q to JSON, %v", r, got, back, err)
		}
	}
	for text, want := range map[string]string{
		"": "", "plain": "plain", `a\u202eb`: `a\u202eb`, "bücher ☃ 本": "bücher ☃ 本",
		"\u009b31m\u202e\x7f\n": `\u009b31m\u202e\u007f\u000a`, "\U000e0041": `\udb40\udc41`,
		"a\x9bb": "a?b", "\xff\xfe": "?", "\xed\xa0\x80": "?",
	} {
		if got := Visible(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { Visible("plain text: it is returned as it is") }); n != 0 {
		t.Errorf("%v allocations for plain text", n)
	}
}
