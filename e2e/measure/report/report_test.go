package report_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/exeat-dev/exeat/e2e/measure/report"
)

func TestTheRatioIsTheMedianOfThePairs(t *testing.T) {
	// The pairs' ratios are 3, 2 and 0.5. The ratio of the medians, 3 to 2, is 1.5, and that
	// of the sums, 9 to 7, is less still.
	row := report.Row{Floor: []float64{1, 2, 4}, Ours: []float64{3, 4, 2}}
	median, least, greatest := row.Ratio()
	if got, want := [3]float64{median, least, greatest}, [3]float64{2, 0.5, 3}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAPairWithoutAFloorHasNoRatio(t *testing.T) {
	for name, row := range map[string]report.Row{
		"no floor":         {Ours: []float64{1}},
		"floor below zero": {Floor: []float64{-1, 0}, Ours: []float64{1, 1}},
	} {
		if median, _, _ := row.Ratio(); median != 0 {
			t.Errorf("%s: got %v, want 0", name, median)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 2, 3}, 2.5},
	} {
		if got := report.Median(test.values); got != test.want {
			t.Errorf("median of %v: got %v, want %v", test.values, got, test.want)
		}
	}
}

func TestTableHasAColumnForEachOther(t *testing.T) {
	table := report.Table{
		Others: []string{"HAProxy", "Squid"},
		Rows: []report.Row{
			{Figure: "all", Unit: "ms", Floor: []float64{1}, Ours: []float64{2}, Others: [][]float64{{3, 5, 4}, {6}}},
			{Figure: "not Squid", Unit: "s", Floor: []float64{1}, Ours: []float64{2}, Others: [][]float64{{3}, nil}},
			{Figure: "neither", Unit: "s", Ours: []float64{2}},
		},
	}
	want := `
| figure    | bare relay | HAProxy | Squid   | exeat   | ratio (of all pairs) | bar | verdict |
|-----------|------------|---------|---------|---------|----------------------|-----|---------|
| all       | 1.00 ms    | 4.00 ms | 6.00 ms | 2.00 ms | 2.00 × (2.00–2.00)   |     |         |
| not Squid | 1.00 s     | 3.00 s  |         | 2.00 s  | 2.00 × (2.00–2.00)   |     |         |
| neither   |            |         |         | 2.00 s  |                      |     |         |
`
	if diff := cmp.Diff(table.String(), want); diff != "" {
		t.Error(diff)
	}
}

func TestTableShowsBarsAndVerdicts(t *testing.T) {
	table := report.Table{
		Head: []string{"One machine."},
		Rows: []report.Row{
			{Figure: "at the bar", Unit: "ms", Floor: []float64{1}, Ours: []float64{1.104}, Bar: report.Bar{Ratio: 1.1}},
			{Figure: "above it", Unit: "ms", Floor: []float64{1}, Ours: []float64{1.106}, Bar: report.Bar{Ratio: 1.1}},
			{Figure: "one of two bars", Unit: "KiB", Floor: []float64{100}, Ours: []float64{31}, Bar: report.Bar{Ratio: 0.5, Value: 30}},
			{Figure: "no bar", Unit: "s", Ours: []float64{123.4}},
		},
	}
	want := `One machine.

| figure          | bare relay | exeat    | ratio (of all pairs) | bar                  | verdict       |
|-----------------|------------|----------|----------------------|----------------------|---------------|
| at the bar      | 1.00 ms    | 1.10 ms  | 1.10 × (1.10–1.10)   | ≤ 1.10 ×             | holds         |
| above it        | 1.00 ms    | 1.11 ms  | 1.11 × (1.11–1.11)   | ≤ 1.10 ×             | does not hold |
| one of two bars | 100 KiB    | 31.0 KiB | 0.31 × (0.31–0.31)   | ≤ 0.50 ×, ≤ 30.0 KiB | does not hold |
| no bar          |            | 123 s    |                      |                      |               |
`
	if diff := cmp.Diff(table.String(), want); diff != "" {
		t.Error(diff)
	}
}

func TestWhereMoreIsBetterTheBarIsTheLeast(t *testing.T) {
	table := report.Table{
		Floor: "peer",
		Rows: []report.Row{
			{Figure: "at the bar", Unit: "q/s", More: true, Floor: []float64{100}, Ours: []float64{99.6}, Bar: report.Bar{Ratio: 1}},
			{Figure: "below it", Unit: "q/s", More: true, Floor: []float64{100}, Ours: []float64{99.4}, Bar: report.Bar{Ratio: 1}},
			{Figure: "far below", Unit: "q/s", More: true, Ours: []float64{19}, Bar: report.Bar{Value: 100}},
			{Figure: "no bar", Unit: "q/s", More: true, Ours: []float64{1}},
		},
	}
	want := `
| figure     | peer    | exeat    | ratio (of all pairs) | bar       | verdict       |
|------------|---------|----------|----------------------|-----------|---------------|
| at the bar | 100 q/s | 99.6 q/s | 1.00 × (1.00–1.00)   | ≥ 1.00 ×  | holds         |
| below it   | 100 q/s | 99.4 q/s | 0.99 × (0.99–0.99)   | ≥ 1.00 ×  | does not hold |
| far below  |         | 19.0 q/s |                      | ≥ 100 q/s | does not hold |
| no bar     |         | 1.00 q/s |                      |           |               |
`
	if diff := cmp.Diff(table.String(), want); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(table.Exceeds(report.TooMuch), []string{"far below"}); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyAFigureFarAboveItsBarExceeds(t *testing.T) {
	table := report.Table{Rows: []report.Row{
		{Figure: "just above", Floor: []float64{1}, Ours: []float64{4.9}, Bar: report.Bar{Ratio: 1}},
		{Figure: "far above its ratio", Floor: []float64{1}, Ours: []float64{5.1}, Bar: report.Bar{Ratio: 1}},
		{Figure: "far above its value", Ours: []float64{5.1}, Bar: report.Bar{Value: 1}},
		{Figure: "far above its ratio but for one pair", Floor: []float64{1, 1, 1}, Ours: []float64{9, 4.9, 9}, Bar: report.Bar{Ratio: 1}},
		{Figure: "far above its value but for one pair", Ours: []float64{9, 4.9, 9}, Bar: report.Bar{Value: 1}},
		{Figure: "far below but for one pair", More: true, Floor: []float64{9, 9}, Ours: []float64{1, 2}, Bar: report.Bar{Ratio: 1, Value: 9}},
		{Figure: "without a bar", Floor: []float64{1}, Ours: []float64{1000}},
		{Figure: "never measured", Bar: report.Bar{Value: 1}},
	}}
	if diff := cmp.Diff(table.Exceeds(report.TooMuch), []string{"far above its ratio", "far above its value", "never measured"}); diff != "" {
		t.Error(diff)
	}
}
