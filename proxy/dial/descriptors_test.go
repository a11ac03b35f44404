package dial

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestMissingDescriptorIsNoFaultOfTheDestination checks that a missing descriptor is not
// reported as a fault of the destination, whatever the attempts at its other addresses have
// returned.
func TestMissingDescriptorIsNoFaultOfTheDestination(t *testing.T) {
	good := listenOn(t, "127.0.0.1:0")
	system := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", err)}
	}
	for name, row := range map[string]struct {
		errs   []error // errors of the addresses, in their order
		reason allowlist.Reason
	}{
		"a descriptor of the process":           {[]error{system(syscall.EMFILE)}, allowlist.Busy},
		"a descriptor of the system":            {[]error{system(syscall.ENFILE)}, allowlist.Busy},
		"memory for a socket":                   {[]error{system(syscall.ENOBUFS)}, allowlist.Busy},
		"a descriptor for the second address":   {[]error{system(syscall.ECONNREFUSED), system(syscall.EMFILE)}, allowlist.Busy},
		"a descriptor for the first address":    {[]error{system(syscall.EMFILE), system(syscall.ECONNREFUSED)}, allowlist.Busy},
		"a descriptor beside a time-out":        {[]error{os.ErrDeadlineExceeded, system(syscall.EMFILE)}, allowlist.Busy},
		"a descriptor beside a refused address": {[]error{system(syscall.EMFILE), &allowlist.AddrError{Class: allowlist.Private}}, allowlist.ResolvedAddressDenied},
		"nothing: the destination refuses":      {[]error{system(syscall.ECONNREFUSED)}, allowlist.DialRefused},
		"nothing: there is no route":            {[]error{system(syscall.EHOSTUNREACH)}, allowlist.DialFailed},
		"nothing: the second address answers":   {[]error{system(syscall.EMFILE), nil}, allowlist.NoReason},
	} {
		t.Run(name, func(t *testing.T) {
			descriptors := limit.NewDescriptors(2)
			answer := addrs("127.0.0.1", "127.0.0.2")[:len(row.errs)]
			d := newDialer(t, Config{Resolve: answering(answer, nil), Stagger: time.Hour, Descriptors: descriptors})
			d.connect = func(ctx context.Context, dec *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
				if err := row.errs[addr.Addr().As4()[3]-1]; err != nil {
					return nil, err
				}
				return connect(ctx, dec, good.addr)
			}
			dec := decide(t, "api.example", good.addr.Port(), "127.0.0.1/32", "127.0.0.2/32")
			res, err := d.Dial(t.Context(), dec)
			if row.reason == allowlist.NoReason {
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Conn.Close()
			} else {
				wantReason(t, err, row.reason)
			}
			if row.reason == allowlist.Busy && res.Addr.IsValid() {
				t.Errorf("%s is said to have been tried", res.Addr)
			}
			if used := descriptors.Stats().Used; used != 0 {
				t.Errorf("%d descriptors are taken in the end", used)
			}
		})
	}
}

// TestDescriptorsAreTakenWhileOpen checks that a connection has a descriptor until it is
// closed, and that nothing is dialled when none is left.
func TestDescriptorsAreTakenWhileOpen(t *testing.T) {
	good := listenOn(t, "127.0.0.1:0")
	descriptors := limit.NewDescriptors(1)
	d := newDialer(t, Config{Resolve: answering(addrs("127.0.0.1"), nil), Descriptors: descriptors})
	dec := decide(t, "api.example", good.addr.Port(), "127.0.0.1/32")
	for range 2 {
		res, err := d.Dial(t.Context(), dec)
		if err != nil {
			t.Fatal(err)
		}
		for _, dial := range []func() (Result, error){
			func() (Result, error) { return d.Dial(t.Context(), dec) },
			func() (Result, error) { return d.DialAddr(t.Context(), dec, good.addr.Addr()) },
		} {
			beyond, err := dial()
			wantReason(t, err, allowlist.Busy)
			if beyond.Conn != nil || beyond.Addr.IsValid() {
				t.Errorf("connected to %s", beyond.Addr)
			}
		}
		for range 2 { // a tunnel closes its connection more than once
			_ = res.Conn.Close()
		}
		if used := descriptors.Stats().Used; used != 0 {
			t.Fatalf("%d descriptors are taken after the end", used)
		}
	}
	if got := good.got.Load(); got > 2 {
		t.Errorf("dialled %d times, want 2", got)
	}
}

// TestAPanicGivesTheDescriptorBack checks that a panic does not keep a descriptor, since
// the door recovers it and goes on.
func TestAPanicGivesTheDescriptorBack(t *testing.T) {
	descriptors := limit.NewDescriptors(2)
	d := newDialer(t, Config{Resolve: answering(addrs("127.0.0.1"), nil), Descriptors: descriptors})
	d.connect = func(context.Context, *allowlist.Decision, netip.AddrPort) (net.Conn, error) { panic("planted") }
	func() {
		defer func() { _ = recover() }()
		_, _ = d.Dial(t.Context(), decide(t, "api.example", 443, "127.0.0.1/32"))
	}()
	if used := descriptors.Stats().Used; used != 0 {
		t.Errorf("%d descriptors are taken", used)
	}
}
