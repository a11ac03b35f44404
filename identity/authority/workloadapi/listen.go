package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

const (
	privateDir    fs.FileMode = 0o700
	privateSocket fs.FileMode = 0o600
)

// Listen makes a unix socket that only this user may open. If its directory does not
// exist, it makes one that only this user may enter. It replaces a socket on which nobody
// listens any more; it is an error if somebody listens on it, or if the path is another
// file. The socket is removed when the listener is closed.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	const longest = 107 // bytes of sun_path without the final zero (unix(7))
	if path == "" || len(path) > longest {
		return nil, fmt.Errorf("path of the Workload API socket has %d bytes; give one of 1 to %d", len(path), longest)
	}
	if err := os.MkdirAll(filepath.Dir(path), privateDir); err != nil {
		return nil, fmt.Errorf("making the directory of the Workload API socket: %w", err)
	}
	config := net.ListenConfig{Control: createPrivate}
	listener, err := config.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && abandoned(ctx, path) {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing an abandoned socket: %w", err)
		}
		listener, err = config.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the Workload API socket: %w", err)
	}
	if err := os.Chmod(path, privateSocket); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("opening the Workload API socket: %w", err)
	}
	return listener, nil
}

// createPrivate makes bind(2) create the socket for its owner only. With a loose umask
// others could otherwise connect between bind and chmod, and stay connected. Linux takes
// the mode of the socket from its descriptor; systems on which fchmod is an error have
// only the chmod.
func createPrivate(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		_ = syscall.Fchmod(int(fd), uint32(privateSocket))
	})
}

// abandoned reports whether path is a socket on which no process listens.
func abandoned(ctx context.Context, path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
