package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/version"
	"io"
	"maps"
	"slices"
	"strings"
)

// product is the module whose binary is checked.
const product = "github.com/exeat-dev/exeat"

// message is one of the messages that govulncheck -format json writes in sequence;
// exactly one field is set.
type message struct {
	Config *struct {
		Protocol string `json:"protocol_version"`
		Level    string `json:"scan_level"`
	} `json:"config"`
	SBOM *struct {
		GoVersion string `json:"go_version"`
		Modules   []struct {
			Path string `json:"path"`
		} `json:"modules"`
	} `json:"SBOM"`
	OSV *struct {
		ID      string `json:"id"`
		Summary string `json:"summary"`
	} `json:"osv"`
	Finding *struct {
		OSV   string `json:"osv"`
		Fixed string `json:"fixed_version"`
		Trace []struct {
			Module   string `json:"module"`
			Version  string `json:"version"`
			Package  string `json:"package"`
			Function string `json:"function"`
		} `json:"trace"`
	} `json:"finding"`
}

// vulnerability is one report of the database about one module of the binary.
type vulnerability struct {
	id, summary     string
	module, version string
	pkg             string // one of the vulnerable packages, if any is linked
	fixed           string // version that fixes it; "" if there is none
	linked          bool   // a vulnerable function is in the binary
}

// scan is the result of govulncheck for a binary.
type scan struct {
	goVersion  string          // version of Go that built the binary
	dependency []vulnerability // vulnerabilities of modules other than the standard library
	standard   []vulnerability // vulnerabilities of the standard library
}

// foundError says that dependencies are vulnerable.
type foundError struct{ count int }

// Error implements error.
func (e foundError) Error() string {
	return fmt.Sprintf("%d known vulnerabilities in dependencies: update them, or replace what no version mends", e.count)
}

// readScan reads the output of govulncheck. It returns an error if the output does not
// show that the binary was checked, function by function, with a database that has
// reports: otherwise it would look like a binary without vulnerabilities.
func readScan(r io.Reader) (scan, error) {
	var (
		s         scan
		level     string
		module    bool // the product was found in the binary
		summaries = map[string]string{}
		found     = map[[2]string]vulnerability{} // by module and report
	)
	for decoder := json.NewDecoder(r); ; {
		var m message
		err := decoder.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return scan{}, err
		}
		switch {
		case m.Config != nil:
			if level = m.Config.Level; !strings.HasPrefix(m.Config.Protocol, "v1.") {
				return scan{}, fmt.Errorf("protocol %q: only version 1 is understood", m.Config.Protocol)
			}
		case m.SBOM != nil:
			s.goVersion = m.SBOM.GoVersion
			for _, have := range m.SBOM.Modules {
				module = module || have.Path == product
			}
		case m.OSV != nil:
			summaries[m.OSV.ID] = m.OSV.Summary
		case m.Finding != nil:
			f := m.Finding
			if len(f.Trace) == 0 || f.OSV == "" || f.Trace[0].Module == "" {
				return scan{}, errors.New("a finding without a report or without a module")
			}
			at, key := f.Trace[0], [2]string{f.Trace[0].Module, f.OSV}
			v := found[key]
			found[key] = vulnerability{
				id: f.OSV, module: at.Module, version: at.Version,
				pkg: cmp.Or(v.pkg, at.Package), fixed: cmp.Or(v.fixed, f.Fixed), linked: v.linked || at.Function != "",
			}
		}
	}
	switch {
	case level != "symbol":
		return scan{}, fmt.Errorf("a scan of level %q, not of each symbol", level)
	case !module || !version.IsValid(s.goVersion):
		return scan{}, fmt.Errorf("the binary is not of %s, or does not say which Go built it", product)
	case len(summaries) == 0:
		return scan{}, errors.New("the database knows of nothing in any version of these modules or of Go: it is empty")
	}
	for _, v := range slices.SortedFunc(maps.Values(found), func(a, b vulnerability) int { return cmp.Or(cmp.Compare(a.module, b.module), cmp.Compare(a.id, b.id)) }) {
		v.summary = summaries[v.id]
		if v.module == "stdlib" || v.module == "toolchain" {
			s.standard = append(s.standard, v)
		} else {
			s.dependency = append(s.dependency, v)
		}
	}
	return s, nil
}

// print prints all vulnerabilities. The error is a foundError if a vulnerability of a
// dependency can be fixed or is linked.
func (s scan) print(w io.Writer) error {
	var text strings.Builder
	bad, newest := 0, ""
	for _, v := range s.dependency {
		remedy := "update to " + v.fixed
		if v.fixed == "" {
			remedy = "no version mends it"
		}
		if v.fixed != "" || v.linked {
			bad++
		}
		fmt.Fprintf(&text, "dependency: %s in %s %s%s: %s: %s\n", v.id, v.module, v.version, v.linkage(), v.summary, remedy)
	}
	for _, v := range s.standard {
		remedy := "no version of Go mends it yet"
		if v.fixed != "" {
			mends := "go" + strings.TrimPrefix(v.fixed, "v")
			if version.Compare(mends, newest) > 0 {
				newest = mends
			}
			remedy = mends + " mends it"
		}
		fmt.Fprintf(&text, "standard library: %s in %s of %s%s: %s: %s\n", v.id, cmp.Or(v.pkg, v.module), s.goVersion, v.linkage(), v.summary, remedy)
	}
	fmt.Fprintf(&text, "dependencies: %d, standard library: %d\n", len(s.dependency), len(s.standard))
	if newest != "" {
		fmt.Fprintf(&text, "Build releases with %s or newer: make build GOTOOLCHAIN=%[1]s\n", newest)
	}
	if _, err := io.WriteString(w, text.String()); err != nil {
		return err
	}
	if bad > 0 {
		return foundError{bad}
	}
	return nil
}

// linkage returns a note if the vulnerable functions are not in the binary.
func (v vulnerability) linkage() string {
	if v.linked {
		return ""
	}
	return " (not linked)"
}
