package listen

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// TestCutAndAbortSendNothingMore checks that Cut and Abort send nothing more, over TLS
// not even a close_notify, and that Abort sends a reset.
func TestCutAndAbortSendNothingMore(t *testing.T) {
	p := newPKI(t)
	plain := func(*rig, *Config) {}
	for name, row := range map[string]struct {
		change func(*rig, *Config)
		end    func(*Conn)
		want   error
	}{
		"cut over TLS":     {p.withTLS, (*Conn).Cut, io.EOF},
		"cut in clear":     {plain, (*Conn).Cut, io.EOF},
		"aborted over TLS": {p.withTLS, (*Conn).Abort, syscall.ECONNRESET},
		"aborted in clear": {plain, (*Conn).Abort, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, row.change)
			var conn, wire net.Conn
			if r.cfg.TLS != nil {
				secure := dialTLS(t, r.Addr(), p.client())
				conn, wire = secure, secure.NetConn()
			} else {
				conn = dialRaw(t, r.Addr())
				wire = conn
			}
			speak(t, conn)
			row.end(<-r.conns)
			if n, err := wire.Read(make([]byte, 64)); n != 0 || !errors.Is(err, row.want) {
				t.Errorf("it ends with %d bytes and %v, want %v", n, err, row.want)
			}
		})
	}
}
