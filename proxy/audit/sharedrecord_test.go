package audit

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
)

// telling is a memory that reports how many records it has written.
type telling struct {
	memory
	took chan int
}

func (s *telling) Write(ctx context.Context, records []*Record) error {
	defer func() { s.took <- len(records) }()
	return s.memory.Write(ctx, records)
}

// TestRecordIsReusedOnlyWhenEverySinkHasIt checks that a sink which is far behind another
// one still gets the right records.
func TestRecordIsReusedOnlyWhenEverySinkHasIt(t *testing.T) {
	const rounds, each = 20, 50
	behind, ahead := newSlow(), &telling{took: make(chan int, rounds*each)}
	r := newRecorder(t, Config{Sinks: to(behind, ahead)})
	var want []string
	for i := range rounds {
		for j := range each {
			path := fmt.Sprintf("%d/%d", i, j)
			want = append(want, "/"+path)
			decide(t, r, path, allowlist.Allow, allowlist.NoReason).End()
		}
		for taken := 0; taken < each; {
			taken += <-ahead.took
		}
	}
	close(behind.let)
	closeNow(t, r)
	for i, records := range [][]Record{behind.taken(), ahead.taken()} {
		var got []string
		for _, rec := range records {
			got = append(got, rec.Identity.Path())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("sink %d (-want +got):\n%s", i, diff)
		}
	}
	checkSums(t, r)
}

// TestReleasedRecordRefersToNothing checks that a record refers to nothing after its last
// release.
func TestReleasedRecordRefersToNothing(t *testing.T) {
	r := newRecorder(t, Config{Sinks: to(&memory{})})
	h := newSharedRecord(&r.sharedPool, &Record{Method: "GET"})
	h.users.Add(1)
	if h.release(); h.Method != "GET" {
		t.Error("it is empty while somebody uses it")
	}
	if h.release(); h.Method != "" {
		t.Error("it keeps a text")
	}
}
