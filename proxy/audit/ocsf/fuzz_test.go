package ocsf_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/ocsf"
)

// FuzzRender checks that any record at all is one line of valid JSON with no
// key twice, and that the text which a caller chooses stays bounded in it.
func FuzzRender(f *testing.F) {
	for _, s := range audittest.Samples() {
		f.Add(string(s.Record.Event), s.Record.Detail, uint64(len(s.Name)))
	}
	f.Add("decision", "\n\r\x00\x1b\"\\\",\"action_id\":1", uint64(1<<63))
	f.Add("\xff\u2028", "\xff\xfe\xed\xa0\x80<>&\u2029", uint64(2))
	f.Add("summary", "a.example", uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, event, text string, n uint64) {
		r := audittest.Hostile(audit.Event(event), text, n)
		line, err := ocsf.Render(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(line, "\r\n") || !utf8.Valid(line) || !json.Valid(line) {
			t.Fatalf("no good line: %q", line)
		}
		onceEach(t, json.NewDecoder(bytes.NewReader(line)))
		caller := audit.Record{Event: audit.Event("decision"), Method: text, Detail: text}
		if line, err = ocsf.Render(nil, &caller); err != nil || len(line) > 6*3*512+1024 {
			t.Errorf("%d bytes, error %v", len(line), err)
		}
	})
}

// onceEach reads a JSON value and reports keys that stand twice in an object.
func onceEach(t *testing.T, d *json.Decoder) {
	t.Helper()
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	open, nested := token.(json.Delim)
	if !nested {
		return
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			key, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			name, _ := key.(string)
			if seen[name] {
				t.Errorf("%s stands twice", name)
			}
			seen[name] = true
		}
		onceEach(t, d)
	}
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
}
