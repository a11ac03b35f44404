package policyfile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// TestOrderOfIdentitiesDoesNotMatter shuffles entries, within a file and over
// files: the same entries come out.
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

// TestFewBytesAreNotManyRules multiplies a destination by its uses, and those
// by trust domains.
func TestFewBytesAreNotManyRules(t *testing.T) {
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
	_, err := filesOf(map[string]string{"a.yaml": text.String()}).Spec(testOptions())
	want := []string{"a.yaml:105:1: the policy has more than 1000000 rules from here on, counting those that use and everyone repeat"}
	if diff := cmp.Diff(lines(err), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// FuzzSpec: reading never panics; an error comes with a zero Spec and with
// places that exist; a Spec without an error compiles.
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
		files := filesOf(texts)
		if list, err := files.Quarantine(); err != nil {
			checkPlaces(t, err, texts)
			if list != nil {
				t.Errorf("an error came with a list: %v", list)
			}
		}
		spec, err := files.spec(newLoader(testOptions()))
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

// checkPlaces sees to it that every error has a place inside its file.
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
			t.Errorf("there is no such place: %v", e)
		}
		if strings.ContainsFunc(e.Msg, func(r rune) bool { return r < ' ' }) {
			t.Errorf("the message is not one line: %q", e.Msg)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b *strictyaml.Error) int { return a.Compare(b.Pos) }) {
		t.Errorf("the errors are not sorted: %v", err)
	}
}

// BenchmarkSpec reads policies of 1 entry per 10 rules; bars: 10,000 rules in
// 0.3 s and 100,000 in 2 s, both with less than 400 MiB.
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
			files := filesOf(map[string]string{"a.yaml": text.String()})
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
