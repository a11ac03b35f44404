// Command vuln says which known vulnerabilities the built binary has. It runs
// govulncheck without the network: the database is a Go module, which go.mod in
// the directory govulncheck pins together with the program.
//
// What is looked at is the binary itself, since it is what ships: the modules and
// functions that the linker kept, and the standard library of the Go that built
// it. The other modules of this repository (below e2e) are tools of tests, which
// nobody ships, and are not looked at.
//
// A vulnerability of a dependency is an error: whoever updates the dependency
// mends it. That the vulnerable function is not linked is no excuse, since it
// may be linked with the next change, and whoever reads versions in the binary
// cannot see the difference. Only what no version mends and nothing links is
// printed without being an error: nothing could be done about it.
//
// A vulnerability of the standard library is printed with the version of Go that
// mends it, and is no error: a newer Go mends it without a change to the source.
//
// Exit codes: 0 no dependency has one, 1 a dependency has one, 2 the check could
// not be made.
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

// database is the module of vulnerability reports.
type database struct {
	Dir     string // where the module is unpacked
	Version string
	Time    time.Time // when that version was made
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

// check runs govulncheck over a binary and prints what it finds. The error is a
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

// output is the standard output of a program that ended well.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd, err)
	}
	return text, nil
}
