package site

import (
	"net"
	"testing"
)

// TestFreeAddressesAreNotGivenAway checks that nobody who asks for any port gets one of a
// program that does not listen yet.
func TestFreeAddressesAreNotGivenAway(t *testing.T) {
	free, err := FreeAddresses(t.Context(), 20)
	if err != nil {
		t.Fatal(err)
	}
	for i, addr := range free {
		if addr.Port() < firstPort || addr.Port() >= endPort {
			t.Errorf("%s may be given to a socket that asks for any port", addr)
		}
		l, err := net.Listen("tcp", addr.String())
		if err != nil {
			t.Fatalf("the address %d is not free, or is there twice: %v", i, err)
		}
		defer func() { _ = l.Close() }()
	}
}
