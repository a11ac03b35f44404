package audit

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// TestLinesReportsTheLostRecords ends a Write of three lines at every byte, and checks
// which records are reported as lost.
func TestLinesReportsTheLostRecords(t *testing.T) {
	render := func(dst []byte, r *Record) ([]byte, error) { return append(dst, r.ID...), nil }
	records := []*Record{{ID: "one"}, {ID: "two"}, {ID: "six"}}
	for room := range len("one\ntwo\nsix\n") {
		out := &disk{room: room}
		sink := NewLines(out, render)
		var lost *LostError
		if err := sink.Write(t.Context(), records); !errors.As(err, &lost) {
			t.Fatalf("room for %d: %v", room, err)
		}
		out.room = 100
		if err := sink.Write(t.Context(), []*Record{{ID: "end"}}); err != nil {
			t.Fatal(err)
		}
		there := bytes.Split(out.written.Bytes(), []byte{'\n'})
		for i, r := range records {
			written := slices.ContainsFunc(there, func(l []byte) bool { return string(l) == r.ID })
			if written == slices.Contains(lost.Lost, i) {
				t.Errorf("room for %d: %s: lost %v in %q", room, r.ID, lost.Lost, out.written.Bytes())
			}
		}
		if !bytes.HasSuffix(out.written.Bytes(), []byte("end\n")) || bytes.Contains(out.written.Bytes(), []byte("\n\n")) {
			t.Errorf("room for %d: %q", room, out.written.Bytes())
		}
	}
}

// TestRecordWithoutARenderingLosesNoOther checks a batch with a record in its middle that
// cannot be rendered.
func TestRecordWithoutARenderingLosesNoOther(t *testing.T) {
	cannot := errors.New("cannot be rendered")
	var out sink
	lines := NewLines(&out, func(dst []byte, r *Record) ([]byte, error) {
		if r.ID == "bad" {
			return append(dst, "half"...), cannot
		}
		return append(dst, r.ID...), nil
	})
	for _, row := range []struct {
		ids  []string
		want string
		lost []int
	}{
		{[]string{"bad"}, "", []int{0}},
		{[]string{"a", "bad", "b"}, "a\nb\n", []int{1}},
	} {
		var records []*Record
		for _, id := range row.ids {
			records = append(records, &Record{ID: id})
		}
		err := lines.Write(t.Context(), records)
		var lost *LostError
		if !errors.As(err, &lost) || !slices.Equal(lost.Lost, row.lost) || !errors.Is(err, cannot) {
			t.Errorf("%v: %v", row.ids, err)
		}
		if got := out.written.String(); got != row.want {
			t.Errorf("%v: got %q, want %q", row.ids, got, row.want)
		}
	}
}
