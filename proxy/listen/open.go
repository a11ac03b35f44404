package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Try opens a listener at an address and closes it again. Its error says why that is
// not possible. A socket that no process serves any more is removed.
func Try(ctx context.Context, address string) error {
	l, err := open(ctx, Config{Address: address, SocketMode: DefaultSocketMode})
	if err != nil {
		return err
	}
	return l.Close()
}

// TryWithUDP does what Try does for connections, and the same for datagrams.
func TryWithUDP(ctx context.Context, address string) error {
	if err := Try(ctx, address); err != nil {
		return err
	}
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp", address)
	if err != nil {
		return explain(address, err)
	}
	return conn.Close()
}

// open opens the socket of a configuration.
func open(ctx context.Context, cfg Config) (net.Listener, error) {
	if path, isUnix := strings.CutPrefix(cfg.Address, "unix:"); isUnix {
		return openUnix(ctx, path, cfg.SocketMode)
	}
	return TCP(ctx, cfg.Address)
}

// TCP listens at an IP address and a port: for IPv4 only at 0.0.0.0, and for both
// families at [::]. Package net would listen for both at 0.0.0.0, too. The error is one
// line that says what to do.
func TCP(ctx context.Context, address string) (net.Listener, error) {
	network := "tcp"
	if at, err := netip.ParseAddrPort(address); err == nil && at.Addr().Unmap().Is4() {
		network = "tcp4"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, explain(address, err)
	}
	return l, nil
}

// explain returns an error that says what to do about an address that cannot be
// listened on, or the system's error if no advice is known.
func explain(address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is taken by another process: stop it or choose another address", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is no address of this host: listen on one that it has, or on 127.0.0.1", address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("no permission to listen on %s: choose a port from 1024 on, or allow it (CAP_NET_BIND_SERVICE, net.ipv4.ip_unprivileged_port_start)", address)
	}
	return err
}

// MaxPath is the largest number of bytes in the path of a unix socket (unix(7)).
const MaxPath = 107

func openUnix(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	if len(path) > MaxPath {
		return nil, fmt.Errorf("the path %s has %d bytes, and that of a unix socket at most %d: choose a shorter one", path, len(path), MaxPath)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: createPrivate}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, explainUnix(path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// explainUnix returns an error that says what to do about a socket that cannot be
// created, or the system's error if no advice is known.
func explainUnix(path string, err error) error {
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the directory %s of the socket %s does not exist (%w): create it first (RuntimeDirectory= of a systemd unit, a volume that is mounted there)", dir, path, syscall.ENOENT)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s, where the socket %s is to be, is no directory: choose another path", dir, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to create the socket %s: let the user of this process write to %s", path, dir)
	}
	return err
}

// createPrivate makes bind(2) create the socket for its owner only: with a loose umask,
// others could connect between bind and chmod. Linux takes the permissions from the
// descriptor; on systems where fchmod fails, only the chmod remains.
func createPrivate(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = syscall.Fchmod(int(fd), uint32(DefaultSocketMode))
	})
}

// removeStale removes a socket that no process serves any more, and nothing else.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return explainUnix(path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket: remove it or choose another path", path)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
	}
	switch {
	case err == nil, errors.Is(err, syscall.EAGAIN): // EAGAIN means that the queue of a served socket is full
		return fmt.Errorf("%s is served by another process: stop it or choose another path", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}
