package enforce

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
)

func TestFlags(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		want options
		bad  bool
	}{
		{name: "none", want: options{tunnels: 9000, rounds: 5}},
		{name: "quick", args: []string{"-quick"}, want: options{tunnels: 1500, rounds: 2}},
		{name: "quick, but for other flags", args: []string{"-quick", "-rounds", "7", "-o", "f"}, want: options{tunnels: 1500, rounds: 7, output: "f"}},
		{name: "too few tunnels to have every victim", args: []string{"-tunnels", "999"}, bad: true},
		{name: "negative rounds", args: []string{"-rounds", "-1"}, bad: true},
		{name: "an argument", args: []string{"now"}, bad: true},
	} {
		got, err := parse(row.args, io.Discard)
		if diff := cmp.Diff(row.want, got, cmp.AllowUnexported(options{})); diff != "" || (err != nil) != row.bad {
			t.Errorf("%s: %v, %s", row.name, err, diff)
		}
	}
}

// TestVictims checks that each scenario ends 900 of 9,000 tunnels, as many as one
// destination or a tenth of the identities has, and none that is probed.
func TestVictims(t *testing.T) {
	for _, sc := range new(world).scenarios() {
		n := 0
		for i := range 9000 {
			if sc.victim(tunnelOf(i)) {
				n++
			}
		}
		if n != 900 {
			t.Errorf("%s: %d victims", sc.name, n)
		}
		for i := range probes {
			if sc.victim(i, i%aliased) {
				t.Errorf("%s ends probe %d", sc.name, i)
			}
		}
	}
}

func TestThePolicyHasARuleForEveryPair(t *testing.T) {
	w := &world{port: "4711"}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(w.policy(everything)), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := policyfile.NewLoader(policyfile.Options{}, file).Load(true)
	if err != nil || p.Policy == nil {
		t.Fatalf("%+v, %v", p, err)
	}
	text := w.policy(func(d int, rule string) string {
		if d == removed {
			return ""
		}
		return rule
	})
	if rules := strings.Count(text, "host: "); rules != identities*(destinations-1) || strings.Contains(text, host(removed)) {
		t.Errorf("%d rules are left without a destination", rules)
	}
}

func TestSetsThatDiffer(t *testing.T) {
	want := []int{1, 2, 3}
	for _, row := range []struct {
		name string
		got  []int
		want []string
	}{
		{"the same in another order", []int{3, 1, 2}, nil},
		{"one is missing", []int{1, 3}, []string{"tunnel 2 should have ended"}},
		{"one too many", []int{1, 2, 3, 4}, []string{"tunnel 4 ended, and should not have"}},
		{"one twice", []int{1, 2, 2, 3}, []string{"tunnel 2 ended, twice"}},
	} {
		if diff := cmp.Diff(row.want, differ("ended", row.got, want)); diff != "" {
			t.Errorf("%s: %s", row.name, diff)
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i)
	}
	for _, row := range []struct {
		values []time.Duration
		share  float64
		want   time.Duration
	}{
		{nil, 0.5, 0},
		{[]time.Duration{7}, 0.99, 7},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := quantile(row.values, row.share); got != row.want {
			t.Errorf("%v of %d values: %d, want %d", row.share, len(row.values), got, row.want)
		}
	}
	if !slices.IsSortedFunc(hundred, func(a, b time.Duration) int { return int(b - a) }) {
		t.Error("the values were sorted in place")
	}
}

func TestFaults(t *testing.T) {
	ms := func(n int) []time.Duration { return []time.Duration{time.Duration(n) * time.Millisecond} }
	due := time.Now()
	good := result{due: due, swap: due, last: due.Add(100 * time.Millisecond), seen: ms(100), recorded: ms(100), quiet: ms(1), busy: ms(20)}
	for _, row := range []struct {
		name   string
		change func(*result)
		want   string // "" means no fault
	}{
		{"within five times every bar", func(*result) {}, ""},
		{"a wrong set", func(r *result) { r.faults = []string{"tunnel 1 ended"} }, "tunnel 1 ended"},
		{"slow closes", func(r *result) { r.seen = ms(251) }, "last close, seen"},
		{"a slow reload", func(r *result) { r.last = due.Add(1251 * time.Millisecond) }, "rename to last close"},
		{"a long gap", func(r *result) { r.busy = ms(26) }, "echo"},
		{"a long gap on a machine where gaps are long", func(r *result) { r.busy, r.quiet = ms(26), ms(10) }, ""},
	} {
		r := good
		row.change(&r)
		faults := (&table{figures: []figures{{rounds: []result{r}}}}).faults()
		if got := strings.Join(faults, "\n"); (row.want == "") != (got == "") || !strings.Contains(got, row.want) {
			t.Errorf("%s: faults %q, want %q", row.name, got, row.want)
		}
	}
	slow := good
	slow.busy = ms(26)
	if faults := (&table{figures: []figures{{rounds: []result{slow, good}}}}).faults(); len(faults) > 0 {
		t.Errorf("a long gap in one of two rounds: faults %q", faults)
	}
}

func TestEchoesAreSortedByWhenTheyWereDue(t *testing.T) {
	due := time.Now()
	r := result{due: due, last: due.Add(time.Second)}
	r.sortEchoes([]echo{
		{due.Add(-time.Second), 1},
		{due.Add(-time.Millisecond), time.Second}, // under way when the state changed
		{due.Add(500 * time.Millisecond), 3},
		{due.Add(2 * time.Second), 4},
	})
	if diff := cmp.Diff([][]time.Duration{{1}, {time.Second, 3}}, [][]time.Duration{r.quiet, r.busy}); diff != "" {
		t.Error(diff)
	}
}

// TestRecordsAreReadByLine reads a file whose last line may be incomplete.
func TestRecordsAreReadByLine(t *testing.T) {
	f := &recordFile{path: filepath.Join(t.TempDir(), "r")}
	at := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	line := `{"event":"policy.reload","time":"2026-11-21T00:00:00.000000000Z","duration_ms":1.5,"detail":"closed 1 of 2 tunnels"}` + "\n"
	for _, row := range []struct {
		text string
		want int
	}{{line[:10], 0}, {line, 1}, {line + line + line[:1], 1}} {
		if err := os.WriteFile(f.path, []byte(row.text), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := f.read()
		if err != nil || len(all) != row.want {
			t.Fatalf("%d records, %v, want %d", len(all), err, row.want)
		}
		if len(all) == 0 {
			continue
		}
		if _, ok := reloaded(all, at.Add(time.Nanosecond)); ok {
			t.Error("an earlier reload is returned")
		}
		r, ok := reloaded(all, at)
		if want := at.Add(-1500 * time.Microsecond); !ok || !began(r).Equal(want) {
			t.Errorf("%+v began at %s, want %s", r, began(r), want)
		}
	}
}
