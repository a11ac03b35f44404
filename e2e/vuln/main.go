// Command vuln prints the known vulnerabilities of the built binary. It runs
// govulncheck without the network: the database is a Go module, which go.mod in the
// directory govulncheck pins together with the program.
//
// It checks the binary itself, because that is what is released: the modules and
// functions that the linker kept, and the standard library of the Go version that built
// it. The other modules of this repository (below e2e) are tools of tests, which are
// not released, and are not checked.
//
// A vulnerability of a dependency is an error; an update of the dependency fixes it. It
// is an error even if the vulnerable function is not linked, because the next change
// may link it, and because tools that read the versions in the binary do not see the
// difference. Only a vulnerability that no version fixes and whose function is not
// linked is printed without being an error, because nothing can be done about it.
//
// A vulnerability of the standard library is printed with the version of Go that fixes
// it, and is not an error: a newer Go fixes it without a change of the source.
//
// Exit codes: 0 no dependency is vulnerable, 1 a dependency is vulnerable, 2 the check
// failed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Exit codes.
const (
	exitFound = 1
	exitUsage = 2
)

// pinned is the module whose go.mod pins govulncheck and its database.
const pinned = "e2e/vuln/govulncheck"

func main() {
	if len(os.Args) != 3 {
		_, _ = fmt.Fprintln(os.Stderr, "usage: go run ./e2e/vuln GOVULNCHECK BINARY, in the root of the repository; see `make vuln`")
		os.Exit(exitUsage)
	}
	ctx := context.Background()
	db, err := openDatabase(ctx)
	if err == nil {
		err = check(ctx, os.Stdout, os.Args[1], os.Args[2], db)
	}
	if err == nil {
		return
	}
	_, _ = fmt.Fprintln(os.Stderr, "vuln:", err)
	if _, ok := errors.AsType[foundError](err); ok {
		os.Exit(exitFound)
	}
	os.Exit(exitUsage)
}

// database is the module with the vulnerability reports.
type database struct {
	Dir     string // directory of the unpacked module
	Version string
	Time    time.Time // time of that version
}

// openDatabase downloads the pinned database, unless it is in the module cache.
func openDatabase(ctx context.Context) (db database, err error) {
	const module = "golang.org/x/vulndb"
	if _, err := output(ctx, "go", "-C", pinned, "mod", "download", module); err != nil {
		return db, err
	}
	text, err := output(ctx, "go", "-C", pinned, "list", "-m", "-json", module)
	if err != nil {
		return db, err
	}
	if err := json.Unmarshal(text, &db); err != nil {
		return db, fmt.Errorf("go list -m %s: %w", module, err)
	}
	if db.Dir == "" || db.Time.IsZero() {
		return db, fmt.Errorf("go list -m %s: no directory or no time in %s", module, text)
	}
	return db, nil
}

// check runs govulncheck over a binary and prints its findings. The error is a
// foundError if a dependency is vulnerable.
func check(ctx context.Context, w io.Writer, govulncheck, binary string, db database) error {
	reports := filepath.Join(db.Dir, "data", "osv")
	text, err := output(ctx, govulncheck, "-db", "file://"+reports, "-format", "json", "-mode", "binary", binary)
	if err != nil {
		return err
	}
	s, err := readScan(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("the output of govulncheck: %w", err)
	}
	if _, err := fmt.Fprintf(w, "%s, built with %s; database of %s (%d days old, %s)\n", binary, s.goVersion,
		db.Time.Format(time.DateOnly), int(time.Since(db.Time).Hours()/24), db.Version); err != nil {
		return err
	}
	return s.print(w)
}

// output runs a program and returns its standard output.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd, err)
	}
	return text, nil
}
