package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The output of govulncheck for a binary without findings.
const (
	config = `{"config": {"protocol_version": "v1.0.0", "scan_level": "symbol", "scan_mode": "binary"}}`
	sbom   = `{"SBOM": {"go_version": "go1.26.8", "modules": [{"path": "github.com/exeat-dev/exeat", "version": "(devel)"}]}}`
	osv    = `{"osv": {"id": "GO-1", "summary": "A panic"}}` + "\n" + `{"osv": {"id": "GO-2", "summary": "A leak"}}`
	clean  = config + "\n" + `{"progress": {"message": "Scanning"}}` + "\n" + sbom + "\n" + osv + "\n"
)

// finding returns the output of govulncheck for a report about a module. Without a
// package or a function that field is left out.
func finding(id, fixed, module, pkg, function string) string {
	return fmt.Sprintf(`{"finding": {"osv": %q, "fixed_version": %q, "trace": [{"module": %q, "version": "v1.0.0", "package": %q, "function": %q}]}}`+"\n",
		id, fixed, module, pkg, function)
}

const counts, newest = "dependencies: %d, standard library: %d\n", "Build releases with %s or newer: make build GOTOOLCHAIN=%[1]s\n"

func TestFindings(t *testing.T) {
	const dependency = "dependency: GO-1 in a.example/m v1.0.0"
	for _, tt := range []struct {
		name, findings string
		bad            int // number of vulnerabilities that fail the check
		want           string
	}{
		{"nothing", "", 0, fmt.Sprintf(counts, 0, 0)},
		{
			"a dependency whose function is linked, in three findings",
			finding("GO-1", "v1.0.1", "a.example/m", "", "") + finding("GO-1", "v1.0.1", "a.example/m", "a.example/m/p", "") + finding("GO-1", "v1.0.1", "a.example/m", "a.example/m/p", "F"),
			1, dependency + ": A panic: update to v1.0.1\n" + fmt.Sprintf(counts, 1, 0),
		},
		{
			"a dependency whose package is linked and whose function is not", finding("GO-1", "v1.0.1", "a.example/m", "a.example/m/p", ""),
			1, dependency + " (not linked): A panic: update to v1.0.1\n" + fmt.Sprintf(counts, 1, 0),
		},
		{
			"a dependency of which only the module is linked", finding("GO-1", "v1.0.1", "a.example/m", "", ""),
			1, dependency + " (not linked): A panic: update to v1.0.1\n" + fmt.Sprintf(counts, 1, 0),
		},
		{
			"a dependency that no version fixes", finding("GO-1", "", "a.example/m", "a.example/m/p", "F"),
			1, dependency + ": A panic: no version mends it\n" + fmt.Sprintf(counts, 1, 0),
		},
		{
			"a dependency that no version fixes, and that nothing uses", finding("GO-1", "", "a.example/m", "", ""),
			0, dependency + " (not linked): A panic: no version mends it\n" + fmt.Sprintf(counts, 1, 0),
		},
		{
			"the standard library", finding("GO-1", "v1.26.9", "stdlib", "net/http", "F") + finding("GO-2", "v1.26.10", "stdlib", "net", ""),
			0, "standard library: GO-1 in net/http of go1.26.8: A panic: go1.26.9 mends it\n" +
				"standard library: GO-2 in net of go1.26.8 (not linked): A leak: go1.26.10 mends it\n" +
				fmt.Sprintf(counts, 0, 2) + fmt.Sprintf(newest, "go1.26.10"),
		},
		{
			"the standard library, and no version of Go fixes it", finding("GO-1", "", "stdlib", "net/http", "F"),
			0, "standard library: GO-1 in net/http of go1.26.8: A panic: no version of Go mends it yet\n" + fmt.Sprintf(counts, 0, 1),
		},
		{
			"two dependencies and the standard library",
			finding("GO-2", "v1.26.9", "stdlib", "net/http", "F") + finding("GO-2", "v2.0.0", "b.example/m", "b.example/m", "F") + finding("GO-1", "v1.0.1", "a.example/m", "a.example/m", "F"),
			2, dependency + ": A panic: update to v1.0.1\ndependency: GO-2 in b.example/m v1.0.0: A leak: update to v2.0.0\n" +
				"standard library: GO-2 in net/http of go1.26.8: A leak: go1.26.9 mends it\n" + fmt.Sprintf(counts, 2, 1) + fmt.Sprintf(newest, "go1.26.9"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := readScan(strings.NewReader(clean + tt.findings))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			err = s.print(&out)
			if found, _ := errors.AsType[foundError](err); found.count != tt.bad || (tt.bad == 0) != (err == nil) {
				t.Errorf("error %v, want %d vulnerabilities", err, tt.bad)
			}
			if out.String() != tt.want {
				t.Errorf("printed\n%swant\n%s", out.String(), tt.want)
			}
		})
	}
}

// TestOutputThatShowsNoScan checks that output which does not show a scan is an error, and
// does not mean that there are no vulnerabilities.
func TestOutputThatShowsNoScan(t *testing.T) {
	for name, row := range map[string]struct{ output, want string }{
		"nothing":                      {"", `a scan of level ""`},
		"text":                         {"No vulnerabilities found.\n", "invalid character"},
		"half of it":                   {clean[:len(clean)-10], "unexpected EOF"},
		"no configuration":             {strings.Replace(clean, config, "", 1), `a scan of level ""`},
		"another protocol":             {strings.Replace(clean, "v1.0.0", "v2.0.0", 1), `protocol "v2.0.0"`},
		"modules only":                 {strings.Replace(clean, "symbol", "module", 1), `a scan of level "module"`},
		"another binary":               {strings.Replace(clean, product, "other.example/m", 1), "the binary is not of " + product},
		"no version of Go":             {strings.Replace(clean, "go1.26.8", "", 1), "does not say which Go"},
		"an empty database":            {strings.Replace(clean, osv, "", 1), "it is empty"},
		"a finding without a module":   {clean + finding("GO-1", "v1.0.1", "", "", ""), "a finding without"},
		"a finding without any frames": {clean + `{"finding": {"osv": "GO-1", "trace": []}}`, "a finding without"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := readScan(strings.NewReader(row.output)); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error %v, want one with %q", err, row.want)
			}
		})
	}
}

// TestCheck runs scripts instead of govulncheck.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	db := database{Dir: dir, Version: "v0.0.0-1", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	script := func(name, output string, code int) string {
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = \"-db file://%s/data/osv -format json -mode binary bin/exeat\" ] || exit 9\ncat <<'END'\n%sEND\nexit %d\n", dir, output, code)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var out strings.Builder
	if err := check(t.Context(), &out, script("clean", clean, 0), "bin/exeat", db); err != nil || !strings.Contains(out.String(), "built with go1.26.8; database of 2026-01-02 (") {
		t.Errorf("a clean binary: %v\n%s", err, out.String())
	}
	err := check(t.Context(), &out, script("vulnerable", clean+finding("GO-1", "v1.0.1", "a.example/m", "", ""), 0), "bin/exeat", db)
	if _, ok := errors.AsType[foundError](err); !ok {
		t.Errorf("a vulnerable dependency: %v", err)
	}
	if err := check(t.Context(), &out, script("broken", clean, 1), "bin/exeat", db); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("govulncheck fails: %v", err)
	}
	if err := check(t.Context(), &out, script("silent", "", 0), "bin/exeat", db); err == nil {
		t.Error("govulncheck prints nothing: no error")
	}
	if err := check(t.Context(), &out, filepath.Join(dir, "absent"), "bin/exeat", db); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no govulncheck: %v", err)
	}
}
