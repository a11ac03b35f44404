// Package hostile tests over the wire what the gateway promises about hostile
// inputs.
//
// Every class has rows, and every row has cases. A case sends raw bytes to a real
// listener of a complete gateway, whose resolver follows a script and whose origin
// counts connections. It checks the answer, the record, and what was looked up and
// dialled. The table of docs/security.md is generated from these rows: `make
// generate` writes it, and `make hostile` also prints the numbers.
package hostile

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"go.uber.org/goleak"
)

var (
	summary = flag.Bool("summary", false, "print the numbers of rows, cases and passed cases")
	update  = flag.Bool("update", false, "write the table of docs/security.md")
)

// patience bounds every wait of these tests. No test should come near it.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// class is a kind of hostile input.
type class struct {
	letter, title string
	rows          []row
}

// row is one promise. Its texts are in the table of docs/security.md.
type row struct {
	id      string
	comes   string // what comes: what is sent or done
	happens string
	cases   []scenario
}

// scenario is one case of a promise.
type scenario struct {
	name string
	only wire // the wire over which the case runs; the zero value is anyWire
	run  func(t *testing.T, g *gateway)
}

// classes returns all promises. A few cases run the program.
func classes(program *program) []class {
	return []class{
		{"A", "Host spelling", hostRows()},
		{"B", "Addresses as host", literalRows()},
		{"C", "Address classes and answers", addressRows()},
		{"D", "Request target and framing", slices.Concat(framingRows(), plainRows(), queryRows(), pseudoRows(), socksRows())},
		{"E", "Tunnel and TLS", slices.Concat(tunnelRows(), helloRows(), streamRows())},
		{"F", "Identity", identityRows()},
		{"G", "Reload and time", reloadRows(program)},
		{"H", "Exhaustion", slices.Concat(exhaustionRows(), limitRows(program), floodRows())},
	}
}

// TestPromises runs every case. The cases of a class over one wire share a gateway and run one
// after the other. Class H measures the memory of this process, so it runs before the others,
// which run in parallel.
func TestPromises(t *testing.T) {
	all := classes(&program{dir: t.TempDir()})
	passed := make([][len(wires)]int, len(all))
	t.Run("class", func(t *testing.T) {
		for i, c := range all {
			for n, w := range wires {
				t.Run(c.letter+"-"+string(w), func(t *testing.T) {
					if c.letter != "H" {
						t.Parallel()
					}
					passed[i][n] = c.hold(t, w)
				})
			}
		}
	})
	if *summary {
		printSummary(os.Stdout, all, passed)
	}
}

// hold runs the cases of a class over a wire, and returns the number of cases that passed.
func (c class) hold(t *testing.T, w wire) int {
	t.Helper()
	g := newGateway(t, options{wire: w})
	passed := 0
	for _, r := range c.rows {
		if !strings.HasPrefix(r.id, c.letter) {
			t.Errorf("%s is a row of class %s", r.id, c.letter)
		}
		for _, s := range r.cases {
			if s.runsOver(w) && t.Run(r.id+" "+s.name, func(t *testing.T) {
				s.run(t, g)
				g.quiet(t)
				g.sharedWork(t)
			}) {
				passed++
			}
		}
	}
	if left := g.rest(t); len(left) > 0 {
		t.Errorf("%d records too many, first %+v", len(left), left[0])
	}
	if n := g.forbidden.accepted.Load(); n != 0 {
		t.Errorf("%d connections to an address that no rule opens", n)
	}
	return passed
}

func TestRowsAreNumbered(t *testing.T) {
	for _, c := range classes(nil) {
		for i, r := range c.rows {
			if want := fmt.Sprint(c.letter, i+1); r.id != want {
				t.Errorf("%s is in the place of %s", r.id, want)
			}
			if len(r.cases) == 0 {
				t.Errorf("%s has no case: %s", r.id, r.comes)
			}
		}
	}
}

func printSummary(w io.Writer, all []class, passed [][len(wires)]int) {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "class\t\trows\tcases\tpassed\tover HTTP/2\tpassed")
	rows := 0
	var cases, good [len(wires)]int
	for i, c := range all {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d", c.letter, c.title, len(c.rows))
		rows += len(c.rows)
		for n, over := range wires {
			count := c.count(over)
			_, _ = fmt.Fprintf(table, "\t%d\t%d", count, passed[i][n])
			cases[n], good[n] = cases[n]+count, good[n]+passed[i][n]
		}
		_, _ = fmt.Fprintln(table)
	}
	_, _ = fmt.Fprintf(table, "\t\t%d\t%d\t%d\t%d\t%d\n", rows, cases[0], good[0], cases[1], good[1])
	_ = table.Flush()
}

// count returns the number of cases over a wire.
func (c class) count(w wire) (n int) {
	for _, r := range c.rows {
		n += r.count(w)
	}
	return n
}

func (r row) count(w wire) (n int) {
	for _, s := range r.cases {
		if s.runsOver(w) {
			n++
		}
	}
	return n
}
