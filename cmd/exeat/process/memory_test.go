package process

import (
	"context"
	"log/slog"
	"math"
	"reflect"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/cmd/exeat/config"
	"github.com/exeat-dev/exeat/proxy/h2"
)

// TestMemoryIsGivenBackWhenItIsQuietAfterWork checks that memory is given back when little
// has been allocated for a while, and enough before that.
func TestMemoryIsGivenBackWhenItIsQuietAfterWork(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		looks []usage
		want  int // calls that have returned true
	}{
		"quiet after work":                   {[]usage{{90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {90 * mib, 32 * mib}}, 1},
		"quiet, but not for long":            {[]usage{{90 * mib, 32 * mib}, {90 * mib, 32 * mib}}, 0},
		"busy in between":                    {[]usage{{90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {91 * mib, 32 * mib}, {91 * mib, 32 * mib}}, 0},
		"a little is allocated all the time": {[]usage{{90 * mib, 32 * mib}, {90*mib + 1000, 32 * mib}, {90*mib + 2000, 32 * mib}}, 1},
		"a collection in the middle of it":   {[]usage{{90 * mib, 60 * mib}, {90 * mib, 60 * mib}, {90 * mib, 60 * mib}}, 1},
		"too little work at all":             {[]usage{{3 * mib, 2 * mib}, {3 * mib, 2 * mib}, {3 * mib, 2 * mib}}, 0},
		"too little beside what is live":     {[]usage{{90 * mib, 800 * mib}, {90 * mib, 800 * mib}, {90 * mib, 800 * mib}}, 0},
		"still quiet":                        {[]usage{{90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {90 * mib, 24 * mib}, {90 * mib, 24 * mib}}, 1},
		"little work after that":             {[]usage{{90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {93 * mib, 24 * mib}, {93 * mib, 24 * mib}, {93 * mib, 24 * mib}}, 1},
		"more work after that":               {[]usage{{90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {90 * mib, 32 * mib}, {96 * mib, 24 * mib}, {96 * mib, 24 * mib}, {96 * mib, 24 * mib}}, 2},
		"little work again and again":        {[]usage{{90 * mib, 8 * mib}, {90 * mib, 8 * mib}, {90 * mib, 8 * mib}, {93 * mib, 8 * mib}, {93 * mib, 8 * mib}, {93 * mib, 8 * mib}, {95 * mib, 8 * mib}, {95 * mib, 8 * mib}, {95 * mib, 8 * mib}}, 2},
	} {
		var q quietness
		got := 0
		for _, u := range test.looks {
			if q.due(u) {
				got++
			}
		}
		if got != test.want {
			t.Errorf("%s: due %d times, want %d", name, got, test.want)
		}
	}
}

// TestGiveBackSeesTheGarbageOfThisProcess checks that the garbage of the process is
// noticed and collected, and that memory which a collection has freed is given back.
func TestGiveBackSeesTheGarbageOfThisProcess(t *testing.T) {
	t.Run("garbage", func(t *testing.T) { testGiveBack(t, func() {}) })
	t.Run("free memory", func(t *testing.T) { testGiveBack(t, runtime.GC) })
}

func testGiveBack(t *testing.T, then func()) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection in between would count the garbage as live
	debug.FreeOSMemory()
	garbage := make([][]byte, 64)
	for i := range garbage {
		garbage[i] = make([]byte, 1<<20)
	}
	runtime.KeepAlive(garbage)
	then()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	collected := false
	collectWhenQuiet(ctx, func() {
		collected = true
		cancel()
	})
	if !collected {
		t.Error("nothing was collected in a minute")
	}
}

// TestStreamsMayHoldAShareOfTheMemoryLimit checks the bound on waiting bytes with which the
// gateway is opened.
func TestStreamsMayHoldAShareOfTheMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for limit, want := range map[int64]int64{
		math.MaxInt64: 256 << 20, // no limit
		4 << 30:       512 << 20,
		1 << 30:       128 << 20,
		256 << 20:     32 << 20,
		64 << 20:      16 << 20,
	} {
		debug.SetMemoryLimit(limit)
		p := &Process{cfg: config.Defaults(), opts: Options{Log: slog.New(slog.DiscardHandler)}}
		if got := p.config(func(string) {}).Front.Memory; !reflect.DeepEqual(got, h2.NewMemory(want)) {
			t.Errorf("a limit of %d bytes: %+v, want %d", limit, got, want)
		}
	}
}
