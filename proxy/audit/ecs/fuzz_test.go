package ecs_test

import (
	"testing"

	"github.com/exeat-dev/exeat/proxy/audit"
	"github.com/exeat-dev/exeat/proxy/audit/audittest"
	"github.com/exeat-dev/exeat/proxy/audit/ecs"
)

// FuzzRender checks that every record is one line of valid JSON without repeated keys,
// and that text which a caller chooses stays bounded in it.
func FuzzRender(f *testing.F) {
	for _, s := range audittest.Samples() {
		f.Add(string(s.Record.Event), s.Record.Detail, uint64(len(s.Name)))
	}
	f.Add("decision", "\n\r\x00\x1b\"\\\",\"action_id\":1", uint64(1<<63))
	f.Add("\xff\u2028", "\xff\xfe\xed\xa0\x80<>&\u2029", uint64(2))
	f.Add("summary", "a.example", uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, event, text string, n uint64) {
		r := audittest.Hostile(audit.Event(event), text, n)
		line, err := ecs.Render(nil, &r)
		if err == nil {
			err = audittest.CheckLine(line)
		}
		if err != nil {
			t.Fatal(err)
		}
		caller := audit.Record{Event: audit.Event("decision"), Method: text, Detail: text}
		if line, err = ecs.Render(nil, &caller); err != nil || len(line) > 6*3*512+1024 {
			t.Errorf("%d bytes, error %v", len(line), err)
		}
	})
}
