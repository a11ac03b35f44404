package allowlist

import (
	"fmt"
	"testing"
)

// TestIndexFindsWhatWasPut checks that the index finds what was put into it, and nothing
// else, even if all hashes collide.
func TestIndexFindsWhatWasPut(t *testing.T) {
	for why, hash := range map[string]func(string) uint64{
		"random hashes": newHasher().text,
		"one hash":      func(string) uint64 { return 7 }, // all keys collide
		"the last slot": func(string) uint64 { return ^uint64(0) },
	} {
		var x index[string, int]
		if x.get(hash("a"), "a") != nil {
			t.Errorf("%s: an empty index has a value", why)
		}
		for n := range 500 {
			key := fmt.Sprint(n)
			*x.put(hash(key), key) = n
			*x.put(hash(key), key) += 1000
		}
		for n := range 500 {
			key := fmt.Sprint(n)
			if v := x.get(hash(key), key); v == nil || *v != n+1000 {
				t.Fatalf("%s: value of %s is %v", why, key, v)
			}
			if x.get(hash(key+"x"), key+"x") != nil {
				t.Fatalf("%s: %sx was never put", why, key)
			}
		}
		count := 0
		for range x.values {
			count++
		}
		if count != 500 || x.used != 500 {
			t.Errorf("%s: %d values, %d used, want 500", why, count, x.used)
		}
		for range x.values {
			break
		}
	}
}
