package policyfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

const minimal = "version: 1\n"

// write makes files in a new directory and returns its path. A value that begins with ->
// makes a symbolic link.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(data, "->"); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(data), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func mustRead(t *testing.T, paths ...string) *Files {
	t.Helper()
	files, err := Read(paths...)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestReadNames checks which files of the given paths are read.
func TestReadNames(t *testing.T) {
	root := write(t, map[string]string{
		"b.yaml": minimal, "a.yaml": minimal, "README.md": "x", "lower/c.yaml": minimal, ".hidden.yaml": "x",
		"..2026_11_21/d.yaml": minimal, "..data": "->..2026_11_21", "d.yaml": "->..data/d.yaml", "more/z.yaml": minimal,
	})
	for name, row := range map[string]struct{ paths, want []string }{
		"a directory gives its *.yaml, sorted, links followed": {[]string{root}, []string{"a.yaml", "b.yaml", "d.yaml"}},
		"a file gives itself, whatever it is called":           {[]string{root + "/README.md"}, []string{"README.md"}},
		"a list gives all":                     {[]string{root + "/more", root + "/a.yaml"}, []string{"a.yaml", "z.yaml"}},
		"a directory without files gives none": {[]string{t.TempDir()}, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			files := mustRead(t, row.paths...)
			if diff := cmp.Diff(files.Names(), row.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if files.Empty() != (len(row.want) == 0) {
				t.Errorf("Empty is %v", files.Empty())
			}
		})
	}
}

// TestReadRefuses checks the error for each set of files that is not read.
func TestReadRefuses(t *testing.T) {
	root := write(t, map[string]string{
		"good/a.yaml": minimal, "same/a.yaml": minimal, "yml/quarantine.yml": minimal, "upper/a.YAML": minimal,
		"dangling/a.yaml": "->nowhere", "dir/a.yaml/b.yaml": minimal, "fifo/b.yaml": minimal,
	})
	if err := syscall.Mkfifo(root+"/fifo/a.yaml", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/large", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(root+"/large", strictyaml.MaxBytes); err != nil { // a sparse file
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		paths []string
		want  string
	}{
		"no path":                       {nil, "no path was given"},
		"a missing path":                {[]string{root + "/none"}, "none: no such file or directory"},
		"a link to nothing":             {[]string{root + "/dangling"}, "dangling/a.yaml: no such file or directory"},
		"a directory called *.yaml":     {[]string{root + "/dir"}, "dir/a.yaml is not a regular file"},
		"a pipe":                        {[]string{root + "/fifo"}, "fifo/a.yaml is not a regular file"},
		"two files of one name":         {[]string{root + "/good", root + "/same"}, "good/a.yaml and " + root + "/same/a.yaml have the same name: rename one"},
		"a file twice":                  {[]string{root + "/good", root + "/good/a.yaml"}, "have the same name"},
		"*.yml, which is easily missed": {[]string{root + "/yml"}, "quarantine.yml would not be read: rename it to end in .yaml"},
		"*.YAML":                        {[]string{root + "/upper"}, "a.YAML would not be read"},
		"too many bytes in all":         {[]string{root + "/good", root + "/large"}, "more than 64 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := Read(row.paths...)
			if files != nil || err == nil {
				t.Fatalf("got %v, %v", files, err)
			}
			if msg := err.Error(); !strings.HasSuffix(msg, row.want) && !strings.Contains(msg, row.want) || strings.Contains(msg, "\n") {
				t.Errorf("got %q, want %q in it", msg, row.want)
			}
		})
	}
}

func TestDigestDependsOnNamesAndBytesOnly(t *testing.T) {
	of := func(files map[string]string) string {
		t.Helper()
		return mustRead(t, write(t, files)).Digest()
	}
	first := of(map[string]string{"a.yaml": minimal, "b.yaml": "version: 1"})
	if len(first) != 64 || strings.Trim(first, "0123456789abcdef") != "" {
		t.Errorf("%q is not 64 hex digits", first)
	}
	if again := of(map[string]string{"a.yaml": minimal, "b.yaml": "version: 1", "notes.txt": "x"}); again != first {
		t.Errorf("another root: %s, want %s", again, first)
	}
	for name, files := range map[string]map[string]string{
		"a byte more":            {"a.yaml": minimal + " ", "b.yaml": "version: 1"},
		"a byte in another file": {"a.yaml": "version: 1", "b.yaml": "\nversion: 1"},
		"a new name":             {"a.yaml": minimal, "c.yaml": "version: 1"},
		"contents exchanged":     {"a.yaml": "version: 1", "b.yaml": minimal},
		"a file less":            {"a.yaml": minimal},
		"an empty file more":     {"a.yaml": minimal, "b.yaml": "version: 1", "c.yaml": ""},
		"one file with all":      {"a.yaml": minimal + "b.yamlversion: 1"},
	} {
		if got := of(files); got == first {
			t.Errorf("%s: the digest did not change", name)
		}
	}
}

// TestLoad checks that Load reads, parses and compiles the files of a directory.
func TestLoad(t *testing.T) {
	root := write(t, map[string]string{
		"good/a.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, allow: [{host: a.example}]}]\n",
		"bad/a.yaml":  "version: 3\n", "bad/b.yaml": "", "none/README": "",
	})
	policy, err := Load(testOptions(), root+"/good")
	if err != nil {
		t.Fatal(err)
	}
	if !allows(policy, "spiffe://corp.example/a", "a.example:443") || len(policy.Version()) != 12 {
		t.Errorf("the policy, of version %q, does not allow what the file says", policy.Version())
	}
	policy, err = Load(testOptions(), root+"/none")
	if policy != nil || !errors.Is(err, ErrEmpty) {
		t.Errorf("an empty directory: %v, %v", policy, err)
	}
	policy, err = Load(testOptions(), root+"/missing")
	if policy != nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing directory: %v, %v", policy, err)
	}
	policy, err = Load(testOptions(), root+"/bad")
	want := []string{
		root + "/bad/a.yaml:1:10: version: this program reads version 1, not 3",
		root + "/bad/b.yaml:1:1: the file has 0 bytes: write at least version: 1",
	}
	if diff := cmp.Diff(lines(err), want); policy != nil || diff != "" {
		t.Errorf("bad files: %v (-got +want):\n%s", policy, diff)
	}
}

// TestParse checks that bytes by name mean the same as these files in a directory.
func TestParse(t *testing.T) {
	for name, texts := range map[string]map[string]string{
		"a policy":                  {"b.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, allow: [{use: x}]}]\n", "a.yaml": "version: 1\ndestinations: {x: [{host: a.example}]}\n"},
		"a policy and a quarantine": {"a.yaml": minimal, "quarantine.yaml": "version: 1\nquarantine: [{id: spiffe://corp.example/a}]\n"},
		"files with errors":         {"b.yaml": "version: 3\n", "a.yaml": "version: 1\nno: key\n", "c.yaml": ""},
		"an error by its name":      {"quarantine.yaml": "version: 1\nidentities: []\n"},
		"a use of no destination":   {"a.yaml": "version: 1\nidentities: [{id: spiffe://corp.example/a, allow: [{use: x}]}]\n"},
		"no files":                  {},
		"a file that says nothing":  {"a.yaml": "# nothing\n"},
	} {
		t.Run(name, func(t *testing.T) {
			root := write(t, texts)
			want, wantErr := Load(testOptions(), root)
			got, err := Parse(testOptions(), bytesOf(texts))
			if (got == nil) != (want == nil) || got.Version() != want.Version() {
				t.Errorf("version %q, want %q", got.Version(), want.Version())
			}
			if errors.Is(err, ErrEmpty) != errors.Is(wantErr, ErrEmpty) {
				t.Errorf("error %v, want %v", err, wantErr)
			}
			var inside []string
			for _, line := range lines(wantErr) {
				inside = append(inside, strings.ReplaceAll(line, root+"/", ""))
			}
			if diff := cmp.Diff(lines(err), inside); diff != "" {
				t.Errorf("errors (-got +want):\n%s", diff)
			}
		})
	}
}

// TestParseRefuses checks that files that are too large together are refused before they
// are parsed.
func TestParseRefuses(t *testing.T) {
	policy, err := Parse(testOptions(), map[string][]byte{"a.yaml": []byte(minimal), "b.yaml": make([]byte, strictyaml.MaxBytes)})
	if policy != nil || err == nil || err.Error() != "reading policy: b.yaml: the policy has more than 64 MiB" {
		t.Errorf("got %v, %v", policy, err)
	}
}

func TestEveryoneWithoutTrustDomain(t *testing.T) {
	files := textFiles(map[string]string{"a.yaml": "version: 1\neveryone: {allow: [{host: a.example}]}\n"})
	spec, err := files.Spec(Options{})
	want := []string{"a.yaml:2:1: everyone: trust_domains is missing: name those whose identities it is for; the default is the gateway's own, which --trust-domain names to exeat policy"}
	if diff := cmp.Diff(lines(err), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(spec, allowlist.Spec{}); diff != "" {
		t.Errorf("an error came with a spec: %s", diff)
	}
}

func TestEveryoneIsOneEntryPerTrustDomain(t *testing.T) {
	spec := mustSpec(t, map[string]string{"a.yaml": `version: 1
everyone:
  trust_domains: [corp.example, lab.example]
  unlisted: true
  allow: [{host: a.example}]
`})
	var got []string
	for _, e := range spec.Entries {
		got = append(got, e.Pattern.String()+" allows "+e.Allow[0].Host.String())
		if !e.Unlisted {
			t.Errorf("%s is not unlisted", e.Pattern)
		}
	}
	want := []string{"everyone of spiffe://corp.example allows a.example", "everyone of spiffe://lab.example allows a.example"}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestQuarantineLoadsByItself checks the quarantine list that is read, or its error,
// whatever the other files contain.
func TestQuarantineLoadsByItself(t *testing.T) {
	cut := "version: 1\nquarantine:\n  - {id: spiffe://corp.example/a, reason: INC-1}\n"
	for name, row := range map[string]struct {
		files map[string]string
		want  string // the reason and the place, or the error
	}{
		"it is read beside a broken file":       {map[string]string{"quarantine.yaml": cut, "a.yaml": "]["}, "INC-1 quarantine.yaml:3"},
		"without the file there is none":        {map[string]string{"a.yaml": cut}, ""},
		"an empty list is no error":             {map[string]string{"quarantine.yaml": "version: 1\nquarantine: []\n"}, ""},
		"version alone is no error":             {map[string]string{"quarantine.yaml": minimal}, ""},
		"a broken list is an error":             {map[string]string{"quarantine.yaml": "version: 1\nquarantine:\n"}, "quarantine.yaml:2:1: quarantine: has no value: write one, or remove the key"},
		"an empty file is an error":             {map[string]string{"quarantine.yaml": ""}, "quarantine.yaml:1:1: the file has 0 bytes: write at least version: 1"},
		"a list without a version is an error":  {map[string]string{"quarantine.yaml": "quarantine: []"}, "quarantine.yaml:1:1: version is missing: write version: 1"},
		"anything else in the file is an error": {map[string]string{"quarantine.yaml": cut + "identities: []\n"}, "quarantine.yaml:4:1: identities: quarantine.yaml holds version and quarantine only: move it to another file"},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := textFiles(row.files).Quarantine()
			var got []string
			for _, q := range list {
				got = append(got, q.Reason+" "+q.At)
			}
			got = append(got, lines(err)...)
			if diff := cmp.Diff(strings.Join(got, "\n"), row.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}
