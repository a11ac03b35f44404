package policyfile

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// TestOrderOfIdentitiesDoesNotMatter shuffles entries within a file and among files, and
// checks that the Spec has the same entries.
func TestOrderOfIdentitiesDoesNotMatter(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	var items []string
	for i := range 40 {
		items = append(items, fmt.Sprintf("  - {id: spiffe://corp.example/n/%d, owner: team-%d, allow: [{host: h%d.example}, {use: forge}]}\n", i, i, i))
	}
	load := func(files int) []allowlist.Entry {
		random.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
		texts := make(map[string]string)
		for i, item := range items {
			name := fmt.Sprintf("%d.yaml", i%files)
			if texts[name] == "" {
				texts[name] = "version: 1\nidentities:\n"
			}
			texts[name] += item
		}
		texts["destinations.yaml"] = "version: 1\ndestinations: {forge: [{host: forge.example}]}\n"
		return mustSpec(t, texts).Entries
	}
	options := append(values(),
		cmpopts.IgnoreFields(allowlist.Rule{}, "At", "UseAt"),
		cmpopts.SortSlices(func(a, b allowlist.Entry) bool { return a.Pattern.String() < b.Pattern.String() }))
	want := load(1)
	for files := range 4 {
		if diff := cmp.Diff(load(files+1), want, options...); diff != "" {
			t.Fatalf("seed %d, %d files (-got +want):\n%s", seed, files+1, diff)
		}
	}
}

// TestModesOfSeveralFiles spreads entries of the patterns that match one identity over
// files. It is an error if a file has an allow list and no mode for a pattern that
// another file observes. Otherwise the most specific pattern decides for which a file
// sets a mode or has an allow list without one.
func TestModesOfSeveralFiles(t *testing.T) {
	const seed, id = 11, "spiffe://corp.example/g/a"
	g := modeFiles{rand.New(rand.NewPCG(seed, seed))}
	seen := make(map[string]int)
	for range 500 {
		texts := map[string]string{"a.yaml": "", "b.yaml": "", "c.yaml": ""}
		var modes []string // modes that are set, or that a list implies; the most specific first
		refused := 0
		for _, pattern := range []string{id, "spiffe://corp.example/g/*", "spiffe://corp.example/g/**", "spiffe://corp.example/**", "everyone"} {
			set, bare := g.spread(pattern, texts)
			switch {
			case set == observing:
				refused += bare
				modes = append(modes, set)
			case set != "" || bare > 0:
				modes = append(modes, set)
			}
		}
		want := "deny"
		switch {
		case refused > 0:
			want = fmt.Sprint(refused, " errors")
		case len(modes) > 0 && modes[0] == observing && !slices.Contains(modes, "force: enforce"):
			want = "observe"
		}
		for name, text := range texts {
			texts[name] = minimal + text
		}
		if got := modeOf(t, textFiles(texts), id); got != want {
			t.Fatalf("seed %d: %s, want %s:\n%v", seed, got, want, texts)
		}
		seen[want]++
	}
	if seen["deny"] < 15 || seen["observe"] < 15 || seen["2 errors"] < 15 {
		t.Errorf("the files meant %v: too few to mean anything", seen)
	}
}

const observing = "mode: observe, observe_until: 2100-01-01"

// modeFiles makes random files with allow lists and modes.
type modeFiles struct{ *rand.Rand }

func (g modeFiles) pick(from ...string) string { return from[g.IntN(len(from))] }

// spread adds parts of a pattern's entry to files. It returns the mode that one of them
// sets, and the number of files with an allow list and no mode.
func (g modeFiles) spread(pattern string, texts map[string]string) (set string, bare int) {
	set = g.pick("", "", observing, "mode: enforce", "force: enforce")
	setIn := g.pick("a.yaml", "b.yaml", "c.yaml")
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		list, mode := g.pick("", "", "", "", "allow: []", "allow: [{host: "+name+"}]", "deny: [{host: "+name+"}]"), g.pick("", "", "", "mode: inherit")
		if name == setIn && set != "" {
			mode = set
		}
		if strings.HasPrefix(list, "allow") && mode == "" {
			bare++
		}
		keys := strings.Trim(list+", "+mode, ", ")
		switch {
		case keys == "" && pattern == "everyone":
		case pattern == "everyone":
			texts[name] += "everyone: {" + keys + "}\n"
		default:
			if texts[name] == "" {
				texts[name] = "identities:\n"
			}
			texts[name] += "- {id: \"" + pattern + "\", " + keys + "}\n"
		}
	}
	return set, bare
}

// modeOf returns the verdict for a request that no rule of the files covers, or the
// number of errors in the files.
func modeOf(t *testing.T, files *Files, id string) string {
	t.Helper()
	spec, err := files.Spec(testOptions())
	if err != nil {
		return fmt.Sprint(len(lines(err)), " errors")
	}
	policy, err := allowlist.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	dest, err := allowlist.ParseDestination("other.example:443")
	if err != nil {
		t.Fatal(err)
	}
	return policy.Decide(allowlist.Request{
		ID: spiffeid.RequireFromString(id), Proof: allowlist.ProofX509SVID, Dest: dest, Time: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
	}).Verdict.String()
}

// TestNumberOfExpandedRulesIsBounded checks that the number of rules is bounded after each use
// of a destination is expanded, and after that each trust domain of everyone.
func TestNumberOfExpandedRulesIsBounded(t *testing.T) {
	var text strings.Builder
	text.WriteString("version: 1\ndestinations:\n  many:\n")
	for i := range 101 {
		fmt.Fprintf(&text, "  - {host: h%d.example}\n", i)
	}
	text.WriteString("everyone:\n  allow:\n")
	for i := range 100 {
		fmt.Fprintf(&text, "  - {use: many, expires: 2027-01-01T00:00:%02d.%dZ}\n", i%60, i)
	}
	text.WriteString("  trust_domains:\n")
	for i := range 100 {
		fmt.Fprintf(&text, "  - td%d.example\n", i)
	}
	_, err := textFiles(map[string]string{"a.yaml": text.String()}).Spec(testOptions())
	want := []string{"a.yaml:105:1: the policy has more than 1000000 rules from here on, counting those that use and everyone repeat"}
	if diff := cmp.Diff(lines(err), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// FuzzSpec checks that Spec never panics, that with an error the Spec is zero and the
// places are inside the files, and that a Spec without an error compiles.
func FuzzSpec(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "testdata/*/*.yaml"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			f.Fatal(pattern, err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data, []byte(minimal))
			f.Add([]byte(minimal+"destinations: {forge: [{host: forge.example}]}\n"), data)
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		texts := map[string]string{"a.yaml": string(a), "quarantine.yaml": string(b)}
		files := textFiles(texts)
		if list, err := files.Quarantine(); err != nil {
			checkPlaces(t, err, texts)
			if list != nil {
				t.Errorf("an error came with a list: %v", list)
			}
		}
		spec, err := files.spec(newWalker(testOptions()))
		if err != nil {
			checkPlaces(t, err, texts)
			if spec.Version != "" || spec.Entries != nil || spec.Quarantine != nil {
				t.Errorf("an error came with a spec: %v", spec)
			}
			return
		}
		if _, err := allowlist.Compile(spec); err != nil {
			t.Errorf("a good spec does not compile: %v", err)
		}
	})
}

// checkPlaces checks that the place of every error is inside its file.
func checkPlaces(t *testing.T, err error, texts map[string]string) {
	t.Helper()
	all, ok := errors.AsType[strictyaml.Errors](err)
	if !ok || len(all) == 0 {
		t.Fatalf("an error without a place: %v", err)
	}
	for _, e := range all {
		text, known := texts[e.File]
		rows := strings.Split(text, "\n")
		if !known || e.Line < 1 || e.Line > len(rows) || e.Column < 1 || e.Column > len([]rune(rows[e.Line-1]))+1 {
			t.Errorf("the place of an error is outside the file: %v", e)
		}
		if strings.ContainsFunc(e.Msg, func(r rune) bool { return r < ' ' }) {
			t.Errorf("the message is not one line: %q", e.Msg)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b *strictyaml.Error) int { return a.Compare(b.Pos) }) {
		t.Errorf("the errors are not sorted: %v", err)
	}
}

// BenchmarkSpec reads policies with one entry per 10 rules. The bounds are 0.3 s for
// 10,000 rules and 2 s for 100,000, both with less than 400 MiB.
func BenchmarkSpec(b *testing.B) {
	for _, rules := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			var text strings.Builder
			text.WriteString("version: 1\nidentities:\n")
			for i := range rules {
				if i%10 == 0 {
					fmt.Fprintf(&text, "  - id: spiffe://corp.example/ns/n%d/sa/a\n    owner: team-%d\n    allow:\n", i, i)
				}
				fmt.Fprintf(&text, "      - host: h%d.service.example\n        ports: [443, \"8000-8999\"]\n", i)
			}
			files := textFiles(map[string]string{"a.yaml": text.String()})
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				spec, err := files.Spec(testOptions())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := allowlist.Compile(spec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
