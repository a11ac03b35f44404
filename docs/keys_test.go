package docs

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/allowlist/policyfile"
	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// knownKeys returns every key that a parser knows, in the notation of the manual: the key
// of a mapping follows a dot, and that of a list's items follows [] and a dot. It lets
// the parser read an unknown key inside of each key that it has found, and takes the
// names of the keys there from the error. The value is true for a key that holds others.
func knownKeys(t *testing.T, parse func(text string) error) map[string]bool {
	t.Helper()
	keys := map[string]bool{}
	inside := regexp.MustCompile(`unknown key "no_such_key": .*known: ([a-z0-9_, ]+)`)
	var find func(path, before, after string) bool
	find = func(path, before, after string) bool {
		err := parse(before + "{no_such_key: 1}" + after)
		if err == nil {
			t.Fatalf("no error of an unknown key in %s", path)
		}
		m := inside.FindStringSubmatch(err.Error())
		if m == nil {
			return false
		}
		if strings.HasSuffix(m[1], ", ") {
			t.Fatalf("the error does not list all keys in %s: %v", path, err)
		}
		for name := range strings.SplitSeq(m[1], ", ") {
			key, opened := path+name, before+"{"+name+": "
			mapping := find(key+".", opened, "}"+after)
			list := find(key+"[].", opened+"[", "]}"+after)
			keys[key] = mapping || list
		}
		return true
	}
	if find("", "", ""); len(keys) < 10 {
		t.Fatalf("found only %d keys", len(keys))
	}
	return keys
}

func parseConfig(text string) error {
	_, err := config.Parse("exeat.yaml", []byte(text))
	return err
}

func parsePolicy(text string) error {
	_, err := policyfile.Parse(policyfile.Options{}, map[string][]byte{"policy.yaml": []byte(text)})
	return err
}

// manualKeys returns the keys in the first cell of each row of the table below a heading.
// Each value is the row.
func manualKeys(t *testing.T, doc, heading string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(data), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %s", doc, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]string{}
	for row := range strings.SplitSeq(section, "\n") {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " |")
		if !strings.HasPrefix(row, "| `") {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			rows[m[1]] = row
		}
	}
	return rows
}

// TestConfigurationTable checks that docs/operating.md and configs/exeat.yaml name
// exactly the keys that the parser of the configuration knows, and that
// configs/exeat.yaml loads.
func TestConfigurationTable(t *testing.T) {
	if _, err := config.Load("../configs/exeat.yaml"); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("../configs/exeat.yaml")
	if err != nil {
		t.Fatal(err)
	}
	known := knownKeys(t, parseConfig)
	rows := manualKeys(t, "operating.md", "Configuration")
	names := map[string]bool{}
	for key, holds := range known {
		name := key[strings.LastIndexByte(key, '.')+1:]
		names[name] = true
		if !regexp.MustCompile(`(?m)^[ #-]*` + name + `:|[{ ]` + name + `:`).Match(example) {
			t.Errorf("configs/exeat.yaml does not show %s", key)
		}
		if _, ok := rows[key]; !ok && !holds && !inRowAbove(rows, key) {
			t.Errorf("docs/operating.md does not document %s", key)
		}
	}
	for key := range rows {
		if _, ok := known[key]; !ok {
			t.Errorf("docs/operating.md documents %s, which the parser does not know", key)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^[ #-]*([a-z_]+):(?: |$)`).FindAllStringSubmatch(string(example), -1) {
		if !names[m[1]] {
			t.Errorf("configs/exeat.yaml shows %s, which the parser does not know", m[1])
		}
	}
}

// TestExampleHasTheDefaults compares the defaults in configs/exeat.yaml with those in
// docs/operating.md.
func TestExampleHasTheDefaults(t *testing.T) {
	example, err := os.ReadFile("../configs/exeat.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rows := manualKeys(t, "operating.md", "Configuration")
	text := regexp.MustCompile("`\"?([^`\"]+)\"?`")
	part, compared := "", 0
	for line := range strings.Lines(string(example)) {
		if m := regexp.MustCompile(`^([a-z_]+):`).FindStringSubmatch(line); m != nil {
			part = m[1]
		}
		m := regexp.MustCompile(`^  ([a-z_]+): ([^ {\n]+)`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		key := part + "." + m[1]
		cells := strings.Split(rows[key], "|")
		if len(cells) < 3 {
			continue
		}
		names, defaults := text.FindAllStringSubmatch(cells[1], -1), text.FindAllStringSubmatch(cells[2], -1)
		at := slices.IndexFunc(names, func(n []string) bool { return n[1] == key })
		if at < 0 || len(names) != len(defaults) {
			continue // the key has no default
		}
		compared++
		if want := defaults[at][1]; m[2] != want {
			t.Errorf("configs/exeat.yaml has %s: %s, and docs/operating.md the default %s", key, m[2], want)
		}
	}
	if compared < 30 {
		t.Errorf("%d defaults are compared, want 30 at least", compared)
	}
}

// inRowAbove reports whether the row of the parent of a key documents the key: either it
// lists the key, as in {certificate, key}, or it refers to another key with the same
// children, as in "as `resolver.servers`".
func inRowAbove(rows map[string]string, key string) bool {
	dot := strings.LastIndexByte(key, '.')
	if dot < 0 {
		return false
	}
	above, name := key[:dot], key[dot+1:]
	above, isList := strings.CutSuffix(above, "[]")
	_, list, _ := strings.Cut(rows[above], "{")
	list, _, _ = strings.Cut(list, "}")
	if slices.Contains(strings.Split(list, ", "), name) {
		return true
	}
	m := regexp.MustCompile("\\| as `([^`]+)` \\|").FindStringSubmatch(rows[above])
	return m != nil && isList && rows[m[1]+"[]."+name] != ""
}

// TestLimitsInRecordsAreKeys checks that the name of a limit in a record is a key of the
// configuration or of the policy.
func TestLimitsInRecordsAreKeys(t *testing.T) {
	configuration, policy := knownKeys(t, parseConfig), knownKeys(t, parsePolicy)
	for _, key := range limit.Keys() {
		_, configured := configuration[key.String()]
		_, written := policy["identities[]."+key.String()]
		if !configured && !written {
			t.Errorf("%s is no key", key)
		}
	}
}

// TestPolicyKeys checks that docs/policy.md names every key that the parser of policies
// knows, and that its table of limits has the keys of limits and shared_limits.
func TestPolicyKeys(t *testing.T) {
	manual, err := os.ReadFile("policy.md")
	if err != nil {
		t.Fatal(err)
	}
	known := knownKeys(t, parsePolicy)
	rows := manualKeys(t, "policy.md", "Limits")
	for key := range known {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(fmt.Sprintf("(?m)[`{ ]%[1]s:|`%[1]s`|^%[1]s:", name)).Match(manual) {
			t.Errorf("docs/policy.md does not name %s", key)
		}
		if _, ok := rows[name]; !ok && strings.Contains(key, "limits.") {
			t.Errorf("docs/policy.md has no row for %s", key)
		}
	}
	for name := range rows {
		for _, holder := range []string{"identities[].limits.", "identities[].shared_limits.", "everyone.limits.", "everyone.shared_limits."} {
			if _, ok := known[holder+name]; !ok {
				t.Errorf("docs/policy.md documents %s, which the parser does not know as %s", name, holder+name)
			}
		}
	}
}
