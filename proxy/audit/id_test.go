package audit

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// decodeID reads the 26 digits one by one as a number of 130 bits, unlike newID, and
// returns the time and the random part.
func decodeID(t *testing.T, id string) (time.Time, [10]byte) {
	t.Helper()
	if len(id) != 26 || id[0] > '7' {
		t.Fatalf("%q is no ULID", id)
	}
	var raw [16]byte
	for _, c := range []byte(id) {
		digit := strings.IndexByte("0123456789ABCDEFGHJKMNPQRSTVWXYZ", c)
		if digit < 0 {
			t.Fatalf("%q in %q is no digit", c, id)
		}
		carry := digit // raw = raw·32 + digit
		for i := len(raw) - 1; i >= 0; i-- {
			carry += int(raw[i]) << 5
			raw[i] = byte(carry)
			carry >>= 8
		}
	}
	var ms int64
	for _, b := range raw[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms), [10]byte(raw[6:])
}

func TestIDHoldsItsTime(t *testing.T) {
	for _, ms := range []int64{0, 1, 31, 32, 1469918176385, 1<<48 - 1} {
		id := newID(time.UnixMilli(ms))
		if got, _ := decodeID(t, id); got.UnixMilli() != ms {
			t.Errorf("%s holds %d ms, want %d", id, got.UnixMilli(), ms)
		}
	}
	// The example of the ULID specification.
	if got := newID(time.UnixMilli(1469918176385)); !strings.HasPrefix(got, "01ARYZ6S41") {
		t.Errorf("%s does not begin with 01ARYZ6S41", got)
	}
}

func TestIDsSortByTime(t *testing.T) {
	now := time.Now()
	last := ""
	for i := range 2000 {
		id := newID(now.Add(time.Duration(i) * 7 * time.Millisecond))
		if id <= last {
			t.Fatalf("%s does not come after %s", id, last)
		}
		last = id
	}
}

// TestIDsAreUnique also checks that every random bit is set in some ids and not set in
// others.
func TestIDsAreUnique(t *testing.T) {
	const workers, each = 8, 2000
	now := time.Now()
	ids := make([][]string, workers)
	var running sync.WaitGroup
	for w := range workers {
		running.Go(func() {
			for range each {
				ids[w] = append(ids[w], newID(now))
			}
		})
	}
	running.Wait()
	seen := make(map[[10]byte]bool, workers*each)
	var set, unset [10]byte
	for _, some := range ids {
		for _, id := range some {
			_, random := decodeID(t, id)
			if seen[random] {
				t.Fatalf("%s came twice", id)
			}
			seen[random] = true
			for i, b := range random {
				set[i] |= b
				unset[i] |= ^b
			}
		}
	}
	all := [10]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255}
	if set != all || unset != all {
		t.Errorf("some bits never change: %x %x", set, unset)
	}
}
