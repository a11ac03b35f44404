package allowlist

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/runenames"
)

// TestCheckPath checks which paths are refused, and with which error.
func TestCheckPath(t *testing.T) {
	for _, good := range []string{
		"/", "/a", "/a/", "/a/.b/c..d/e.", "/...", "/a:b@c,d=e&f+g!h$i'j(k)l*m~n", "/%41", "/my%20file", "/lib%2b%2b_1%3a2.deb", "/%40scope", "/caf%c3%a9", "/%C3%89",
		"/%e6%97%a5%e6%9c%ac", "/%f0%a0%80%80", "/a%e2%80%93b", "/%d9%85%d8%b1", "/e%cc%81",
	} {
		if err := CheckPath(good); err != nil {
			t.Errorf("CheckPath(%q) = %v", good, err)
		}
	}
	for want, all := range map[error][]string{
		errPathStart:   {"", "a", "*", "%2f"},
		errPathSegment: {"//", "/a//b", "/.", "/..", "/../a", "/a/./b", "/a/..", "/a/%20", "/a/.%20", "/a/..%20%20/b", "/a/%20../b", "/a/.%20./b", "/a/..%20./b", "/a/...%20/b"},
		errPathByte:    {"/a;b", `/a\b`, "/a b", "/a\tb", "/a\x00", "/a\x7f", "/caf\xc3\xa9", "/\xff"},
		errPathEscape:  {"/%", "/a%", "/%2", "/%zz", "/%u002e", "/%U002F", "/%+2", "/%2g", "/%-1", "/%c3%"},
		errPathUTF8: {
			"/%c0%ae%c0%ae%c0%afsecret", "/%c1%9c", "/%e0%80%af", "/%e0%80%ae", "/%f0%80%80%af", "/%f8%80%80%80%af", "/%fc%80%80%80%80%af", "/%80", "/%bf", "/%ae", "/%af", "/%ff", "/%fe",
			"/%c3", "/%c3a", "/%c3/%a9", "/%c3%41", "/%e2%80", "/%e2%80.", "/%e2%80%41", "/%f0%9f%98", "/%ed%a0%80", "/%ed%bf%bf", "/%ed%a0%bc%ed%bc%b0", "/%f4%90%80%80", "/a%e9",
		},
		errPathDelimiter: {
			"/..%2fa", "/%2e%2e/a", "/%2E", "/%5c", "/%3f", "/..%3f", "/%23", "/%25", "/%252e", "/%3b", "/%00", "/%0d%0a", "/%09", "/%1f", "/%7f",
			"/%c2%85", "/%c2%a0", "/%c2%ad", "/%e2%80%8b", "/.%e2%80%8b./a", "/%ef%bb%bf", "/%e2%80%ae", "/%e2%80%a8", "/%ef%b8%8f", "/%f3%a0%80%ae", "/%e3%85%a4",
			"/%ef%bc%8f", "/%ef%bc%8e", "/%ef%bc%bc", "/%ef%bc%9f", "/%ef%bc%83", "/%ef%bc%85", "/%ef%bc%9b", "/%ef%b9%92", "/%ef%b9%a8", "/%ef%b9%94",
			"/%e2%80%a4%e2%80%a4", "/%e2%80%a5", "/%e2%80%a6", "/%e3%80%82", "/%ef%bd%a1", "/%e2%81%84", "/%e2%88%95", "/%e2%88%96", "/%e2%a7%b8", "/%e2%a7%b5", "/%e2%84%85", "/%c2%bd", "/%e2%92%88", "/%cd%be",
			"/%cc%b8", "/%c2%a5", "/%e2%82%a9", "/%c2%b7", "/%e2%80%a2", "/%d9%aa", "/%db%94", "/%ef%80%ae", "/%ef%bf%bf", "/%ef%bf%bd",
		},
	} {
		for _, bad := range all {
			if err := CheckPath(bad); !errors.Is(err, want) || !errors.Is(err, ErrTarget) {
				t.Errorf("CheckPath(%q) = %v, want %v", bad, err, want)
			}
		}
	}
}

// TestPathsOfEveryCharacter calls CheckPath with every character of Unicode. It must
// refuse invisible characters and those whose name or normal form is a slash, a dot or
// another delimiter. A path that passes has the same segments in every normal form.
func TestPathsOfEveryCharacter(t *testing.T) {
	names := []string{"SOLIDUS", "SLASH", "FULL STOP", "DOT LEADER", "ELLIPSIS", "SEMICOLON", "QUESTION MARK", "NUMBER SIGN", "PERCENT", "PER MILLE", "PER TEN THOUSAND", "SET MINUS", "BULLET", "DOT OPERATOR"}
	forms := []norm.Form{norm.NFC, norm.NFD, norm.NFKC, norm.NFKD}
	passed := 0
	for r := rune(0); r <= 0xf00ff; r++ { // planes 15 and 16 are for private use only
		if r == 0x40100 {
			r = 0xe0000 // no character before it is assigned
		}
		text := string(r) // U+FFFD for a surrogate
		raw := "/a/b" + escapeAll(text) + "/c"
		if CheckPath(raw) != nil {
			if unicode.IsLetter(r) && r < 0x0250 && norm.NFKD.String(text) == text {
				t.Errorf("%U %s is refused", r, runenames.Name(r))
			}
			continue
		}
		passed++
		if unicode.In(r, unicode.C) || unicode.IsSpace(r) && r != ' ' {
			t.Errorf("%U %s passes, and cannot be seen", r, runenames.Name(r))
		}
		called := ""
		if r > 0x7f && !unicode.In(r, unicode.Han, unicode.Hangul, unicode.Tangut) { // the names of these are numbers and syllables
			called = runenames.Name(r)
		}
		for _, name := range names {
			if called != "" && strings.Contains(called, name) {
				t.Errorf("%U %s passes", r, called)
			}
		}
		decoded, err := url.PathUnescape(raw)
		for _, form := range forms {
			got := form.String(decoded)
			if err != nil || path.Clean(got) != got || strings.Count(got, "/") != 3 || strings.ContainsAny(got, `.\;?#%`) {
				t.Errorf("%U %s passes, and becomes %q", r, runenames.Name(r), got)
			}
		}
	}
	if passed < 100_000 {
		t.Errorf("only %d characters pass", passed)
	}
}

// escapeAll returns s with every byte written as an escape.
func escapeAll(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		b.WriteString(string([]byte{'%', digits[s[i]>>4], digits[s[i]&15]}))
	}
	return b.String()
}

func TestCheckPathAllocatesNothing(t *testing.T) {
	for _, raw := range []string{"/a/caf%c3%a9/.%20x/%e6%97%a5", "/a/%ef%bc%8f", "/a/%c0%ae"} {
		if n := testing.AllocsPerRun(100, func() { _ = CheckPath(raw) }); n != 0 {
			t.Errorf("CheckPath(%q) allocates %v times", raw, n)
		}
	}
}
