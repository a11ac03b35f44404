package audit

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// FuzzJSON checks that whatever stands in the free text of a record, it is one
// bounded line of valid JSON that says the same, and nothing besides.
func FuzzJSON(f *testing.F) {
	f.Add("CONNECT", "why")
	f.Add("\",\"verdict\":\"allow", "a\nb\r\x00\x1b\x7f")
	f.Add("\xff\xc3", "\u2028<>&\xed\xa0\x80")
	f.Fuzz(func(t *testing.T, method, detail string) {
		r := Record{Event: EventDecision, Method: method, Detail: detail}
		line, err := Native(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(line, "\r\n") || !utf8.Valid(line) || len(line) > 6*(maxMethod+maxDetail)+200 {
			t.Errorf("no good line: %q", line)
		}
		// encoding/json, which checks and escapes what it is given, changes nothing.
		if again, err := json.Marshal(json.RawMessage(line)); err != nil || !bytes.Equal(again, line) {
			t.Errorf("%q is not what encoding/json writes: %q, %v", line, again, err)
		}
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{
			"schema": 1.0, "time": "0001-01-01T00:00:00.000000000Z", "event": "decision", "verdict": "deny",
		}
		for key, text := range map[string]string{"method": bounded(method, maxMethod), "detail": bounded(detail, maxDetail)} {
			if text != "" {
				want[key] = text
			}
		}
		for key := range got {
			if got[key] != want[key] {
				t.Errorf("%s is %q, want %q", key, got[key], want[key])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d keys, want %d: %q", len(got), len(want), line)
		}
	})
}
