// Package report turns paired measurements into a table, and checks them against bars.
//
// The machine is shared, and no two runs are alike. Therefore a row compares the two
// programs within each pair, and shows the median of the pairs' ratios, which is not the
// ratio of the medians. The package measures nothing itself.
package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// TooMuch is how many times beyond its bar a figure may be before Table.Check returns an
// error. It allows for a machine that others use too; the bars themselves are for
// readers.
const TooMuch = 5

// A Bar is the most that a figure may be, or the least where more is better. The zero
// value means no bar.
type Bar struct {
	// Ratio is the bar for the ratio to the floor; zero means none.
	Ratio float64
	// Value is the bar in the row's unit; zero means none.
	Value float64
}

// A Row is one figure.
type Row struct {
	Figure string
	Unit   string
	// Floor and Ours are the values of each pair, in the same order. Floor may be empty,
	// for a figure without a comparison.
	Floor, Ours []float64
	// Others are the values of Table.Others; each is empty if it was not measured.
	Others [][]float64
	Bar    Bar
	// More says that more is better: the bar is the least that a figure must be.
	More bool
}

// A Table is the result of a run.
type Table struct {
	// Head are the lines above the table: date, machine, versions.
	Head []string
	// Floor is the name of the program with which exeat is compared; "" means the bare
	// relay.
	Floor string
	// Others are the names of further programs. They have no bars.
	Others []string
	Rows   []Row
}

// Ratio returns the median, the least and the greatest of the pairs' ratios. All are zero
// without a floor. A pair whose floor is not above zero, as a difference may be, has no
// ratio.
func (r Row) Ratio() (median, least, greatest float64) {
	var ratios []float64
	for i := range min(len(r.Floor), len(r.Ours)) {
		if r.Floor[i] > 0 {
			ratios = append(ratios, r.Ours[i]/r.Floor[i])
		}
	}
	if len(ratios) == 0 {
		return 0, 0, 0
	}
	return Median(ratios), slices.Min(ratios), slices.Max(ratios)
}

// Check returns an [*Error] if a figure exceeds its bar by more than TooMuch.
func (t Table) Check() error {
	figures := t.Exceeds(TooMuch)
	if len(figures) == 0 {
		return nil
	}
	return Check([]string{fmt.Sprintf("more than %d times beyond the bar: %s", TooMuch, strings.Join(figures, "; "))})
}

// Exceeds returns the figures that are more than times above their bar, or below it where
// more is better, in the best of their pairs. If the machine was busy for a moment, one
// pair is bad; if exeat has a fault, all are.
func (t Table) Exceeds(times float64) []string {
	var figures []string
	for _, r := range t.Rows {
		if r.exceeds(times) {
			figures = append(figures, r.Figure)
		}
	}
	return figures
}

func (r Row) exceeds(times float64) bool {
	if len(r.Ours) == 0 {
		return r.Bar != Bar{}
	}
	_, least, greatest := r.Ratio()
	if r.More {
		return times*greatest < r.Bar.Ratio || times*slices.Max(r.Ours) < r.Bar.Value
	}
	return r.Bar.Ratio > 0 && least > times*r.Bar.Ratio || r.Bar.Value > 0 && slices.Min(r.Ours) > times*r.Bar.Value
}

// verdict compares the figures as they are printed, without digits that are not shown.
func (r Row) verdict() string {
	const hundredth = 0.005
	ratio, _, _ := r.Ratio()
	switch {
	case r.Bar == Bar{}:
		return ""
	case r.More && (ratio < r.Bar.Ratio-hundredth || Median(r.Ours) < r.Bar.Value):
		return "does not hold"
	case r.More:
		return "holds"
	case r.Bar.Ratio > 0 && ratio >= r.Bar.Ratio+hundredth, r.Bar.Value > 0 && Median(r.Ours) > r.Bar.Value:
		return "does not hold"
	}
	return "holds"
}

// Median returns the median of the values, or zero if there are none. It does not change
// their order.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// String returns the table as Markdown that is aligned as text.
func (t Table) String() string {
	head := append([]string{"figure", cmp.Or(t.Floor, "bare relay")}, t.Others...)
	cells := [][]string{append(head, "exeat", "ratio (of all pairs)", "bar", "verdict")}
	for _, r := range t.Rows {
		cells = append(cells, r.cells(len(t.Others)))
	}
	var b strings.Builder
	for _, line := range t.Head {
		b.WriteString(line + "\n")
	}
	b.WriteString("\n")
	align(&b, cells)
	return b.String()
}

func (r Row) cells(others int) []string {
	ratio := ""
	if median, least, greatest := r.Ratio(); median != 0 {
		ratio = fmt.Sprintf("%.2f × (%.2f–%.2f)", median, least, greatest)
	}
	cells := []string{r.Figure, r.value(r.Floor)}
	for i := range others {
		if i < len(r.Others) {
			cells = append(cells, r.value(r.Others[i]))
		} else {
			cells = append(cells, "")
		}
	}
	return append(cells, r.value(r.Ours), ratio, r.bar(), r.verdict())
}

// value returns the median of the pairs with its unit, or "" if there are none.
func (r Row) value(pairs []float64) string {
	if len(pairs) == 0 {
		return ""
	}
	return number(Median(pairs)) + " " + r.Unit
}

func (r Row) bar() string {
	var bars []string
	sign := "≤"
	if r.More {
		sign = "≥"
	}
	if r.Bar.Ratio > 0 {
		bars = append(bars, fmt.Sprintf("%s %.2f ×", sign, r.Bar.Ratio))
	}
	if r.Bar.Value > 0 {
		bars = append(bars, fmt.Sprintf("%s %s %s", sign, number(r.Bar.Value), r.Unit))
	}
	return strings.Join(bars, ", ")
}

// number formats a number with three digits, or with all digits before the point.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// align writes a Markdown table whose first row is the head.
func align(b *strings.Builder, cells [][]string) {
	width := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range cells {
		for i, cell := range row {
			b.WriteString("| " + cell + strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+1))
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for _, w := range width {
			b.WriteString("|" + strings.Repeat("-", w+2))
		}
		b.WriteString("|\n")
	}
}
