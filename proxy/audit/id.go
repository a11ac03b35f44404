package audit

import (
	"crypto/rand"
	"time"
)

// newID returns a unique id that sorts by time: 48 bits of Unix milliseconds
// and 80 random bits in Crockford's base 32, the form known as ULID. Its 26
// letters and digits fit in a reason phrase and in a shell.
func newID(now time.Time) string {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var raw [16]byte
	ms := now.UnixMilli()
	for i := range 6 {
		raw[i] = byte(ms >> (8 * (5 - i))) //nolint:gosec // G115: the lowest eight bits are meant
	}
	_, _ = rand.Read(raw[6:]) // never fails: crypto/rand aborts the program instead

	// 128 bits fill 26 digits of 5 bits; the first digit holds only 3.
	var id [26]byte
	var acc uint32
	bits, next := 2, 0 // two leading zero bits fill the first digit
	for _, b := range raw {
		acc = acc<<8 | uint32(b)
		bits += 8
		for bits >= 5 {
			bits -= 5
			id[next] = alphabet[acc>>bits&31]
			next++
		}
	}
	return string(id[:])
}
