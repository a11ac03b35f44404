package listen

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// bindWith returns a configuration that sets options of a socket before it is bound,
// and binds it to a device unless device is "".
func bindWith(device string, options ...int) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			for _, option := range options {
				failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1))
			}
			if device != "" {
				failed = errors.Join(failed, unix.BindToDevice(int(fd), device))
			}
		})
		return errors.Join(err, failed)
	}}
}

// TestListenerSharesItsPortWithNobody checks that another process of the same user
// cannot receive a part of what is sent to a listener, by any socket option and at any
// address that covers the listener's, before and while it is served. The test's own
// process stands for the other one.
func TestListenerSharesItsPortWithNobody(t *testing.T) {
	cfg := udpAt("127.0.0.1:0")
	cfg.Loops = 3
	udp := listenUDPAt(t, cfg)
	tcp, err := listenAt(t, "127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}

	bindsNowhere := func(when string) {
		for name, lc := range map[string]net.ListenConfig{
			"no option":         bindWith(""),
			"SO_REUSEPORT":      bindWith("", unix.SO_REUSEPORT),
			"SO_REUSEADDR":      bindWith("", unix.SO_REUSEADDR),
			"both options":      bindWith("", unix.SO_REUSEADDR, unix.SO_REUSEPORT),
			"both and a device": bindWith("lo", unix.SO_REUSEADDR, unix.SO_REUSEPORT),
		} {
			for _, host := range []string{"127.0.0.1", "0.0.0.0", "::"} {
				at := net.JoinHostPort(host, fmt.Sprint(udp.Addr().Port()))
				if conn, err := lc.ListenPacket(t.Context(), "udp", at); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("%s, udp %s with %s: %v, want EADDRINUSE", when, at, name, err)
					closeIfOpen(conn)
				}
				at = net.JoinHostPort(host, fmt.Sprint(tcp.Addr().(*net.TCPAddr).Port))
				if l, err := lc.Listen(t.Context(), "tcp", at); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("%s, tcp %s with %s: %v, want EADDRINUSE", when, at, name, err)
					closeIfOpen(l)
				}
			}
		}
	}
	bindsNowhere("before it is served")
	begun, end, served := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		served <- udp.Serve(func(*net.UDPConn) {
			begun <- struct{}{}
			<-end
		})
	}()
	for range cfg.Loops {
		<-begun
	}
	bindsNowhere("while it is served")
	close(end)
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func closeIfOpen[C interface {
	comparable
	Close() error
}](c C) {
	if c != *new(C) {
		_ = c.Close()
	}
}
