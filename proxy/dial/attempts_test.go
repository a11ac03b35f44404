package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
)

// TestAnErrorSaysWhatBecameOfEachAddress checks that the text of an error lists the first
// four attempts and the number of the others.
func TestAnErrorSaysWhatBecameOfEachAddress(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("connect: %w", syscall.ECONNREFUSED)}
	unroutable := &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("connect: %w", syscall.EHOSTUNREACH)}
	silent := errors.New("silent")
	for _, row := range []struct {
		name   string
		errs   []error // errors of 8.8.8.0, 8.8.8.1 and so on; silent means no answer in time
		reason allowlist.Reason
		cause  allowlist.Cause
		want   string
	}{
		{"one is refused", []error{refused}, allowlist.DialRefused, allowlist.NoCause, "8.8.8.0:443: connection refused"},
		{"one has no route", []error{unroutable}, allowlist.DialFailed, allowlist.CauseUnroutable, "8.8.8.0:443: no route to host"},
		{"one is silent", []error{silent}, allowlist.DialTimeout, allowlist.NoCause, "8.8.8.0:443: no answer in time"},
		{"two are refused", []error{refused, refused}, allowlist.DialRefused, allowlist.NoCause, "8.8.8.0:443: connection refused; 8.8.8.1:443: connection refused"},
		{"one is refused, one has no route", []error{refused, unroutable}, allowlist.DialRefused, allowlist.NoCause, "8.8.8.0:443: connection refused; 8.8.8.1:443: no route to host"},
		{"six are refused", []error{refused, refused, refused, refused, refused, refused}, allowlist.DialRefused, allowlist.NoCause, "8.8.8.0:443: connection refused; 8.8.8.1:443: connection refused; 8.8.8.2:443: connection refused; 8.8.8.3:443: connection refused; 2 more"},
		{"one is refused, another is silent", []error{refused, silent}, allowlist.DialRefused, allowlist.NoCause, "8.8.8.0:443: connection refused; 8.8.8.1:443: no answer in time"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var all []netip.Addr
				for i := range row.errs {
					all = append(all, netip.AddrFrom4([4]byte{8, 8, 8, byte(i)}))
				}
				d := newDialer(t, Config{Resolve: answering(all, nil)})
				d.connect = func(ctx context.Context, _ *allowlist.Decision, addr netip.AddrPort) (net.Conn, error) {
					err := row.errs[addr.Addr().As4()[3]]
					if errors.Is(err, silent) {
						<-ctx.Done()
						err = ctx.Err()
					}
					return nil, err
				}
				_, err := d.Dial(t.Context(), decide(t, "api.example", 443))
				wantReason(t, err, row.reason)
				if got := allowlist.DetailOf(err); got != row.want {
					t.Errorf("got %q, want %q", got, row.want)
				}
				if got := allowlist.CauseOf(err); got != row.cause {
					t.Errorf("cause %d, want %d", got, row.cause)
				}
			})
		})
	}
}

// TestAnErrorSaysHowManyAddressesWereNotTried checks the error of a race whose time is
// over before it has tried all addresses.
func TestAnErrorSaysHowManyAddressesWereNotTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer(t, Config{Resolve: answering(addrs("8.8.8.0", "8.8.8.1", "8.8.8.2"), nil), Timeout: time.Second, Stagger: time.Hour})
		d.connect = func(ctx context.Context, _ *allowlist.Decision, _ netip.AddrPort) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		_, err := d.Dial(t.Context(), decide(t, "api.example", 443))
		if got, want := allowlist.DetailOf(err), "8.8.8.0:443: no answer in time; 2 not tried"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestAResultNamesWhatWasRefused checks that a result lists the first eight refused
// addresses, each once, and counts all.
func TestAResultNamesWhatWasRefused(t *testing.T) {
	var all []netip.Addr
	for i := range 12 {
		all = append(all, netip.AddrFrom4([4]byte{10, 0, 0, byte(i / 2)}), netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
	}
	d := newDialer(t, Config{Resolve: answering(all, nil)})
	res, err := d.Dial(t.Context(), decide(t, "api.example", 443))
	wantReason(t, err, allowlist.ResolvedAddressDenied)
	want := addrs("10.0.0.0", "10.1.0.0", "10.1.0.1", "10.0.0.1", "10.1.0.2", "10.1.0.3", "10.0.0.2", "10.1.0.4")
	if fmt.Sprint(res.Refused) != fmt.Sprint(want) || res.Dropped != len(all) {
		t.Errorf("%d dropped, of which %v, want %v", res.Dropped, res.Refused, want)
	}
}
