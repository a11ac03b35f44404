package listen

import (
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// TestConfigurationsThatCannotServe checks that Listen returns an error that names the
// listener if a part is missing, or two parts contradict each other.
func TestConfigurationsThatCannotServe(t *testing.T) {
	p := newPKI(t)
	log := slog.New(slog.DiscardHandler)
	nobody := func() spiffeid.ID { return spiffeid.ID{} }
	for name, cfg := range map[string]Config{
		"no slots":                   {Log: log, Fixed: nobody},
		"no log":                     {Slots: limit.NewSlots(limit.SharesOf(1)), Fixed: nobody},
		"nothing gives an identity":  {Slots: limit.NewSlots(limit.SharesOf(1)), Log: log},
		"two parts give an identity": {Slots: limit.NewSlots(limit.SharesOf(1)), Log: log, Fixed: nobody, TLS: p.server, Verifier: p.verifier},
		"TLS without a verifier":     {Slots: limit.NewSlots(limit.SharesOf(1)), Log: log, TLS: p.server},
		"no HandshakeFailed":         {Slots: limit.NewSlots(limit.SharesOf(1)), Log: log, TLS: p.server, Verifier: p.verifier},
	} {
		cfg.Name, cfg.Address = "main", "127.0.0.1:0"
		l, err := Listen(t.Context(), cfg)
		if err == nil {
			_ = l.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.HasPrefix(err.Error(), "listener main: ") {
			t.Errorf("%s: %q does not name the listener", name, err)
		}
	}
}

// listenAt opens a listener without TLS.
func listenAt(t *testing.T, address string, mode fs.FileMode) (*Listener, error) {
	t.Helper()
	l, err := Listen(t.Context(), Config{
		Name: "main", Address: address, SocketMode: mode, Slots: limit.NewSlots(limit.SharesOf(1)), Log: slog.New(slog.DiscardHandler),
		Fixed: func() spiffeid.ID { return spiffeid.ID{} },
	})
	if err == nil {
		t.Cleanup(func() { _ = l.Close() })
	}
	return l, err
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than one line", err)
	}
}

// TestATakenPort checks that the error for a port in use names the listener and the
// address, and says what to do.
func TestATakenPort(t *testing.T) {
	l, err := listenAt(t, "127.0.0.1:0", 0)
	if err != nil {
		t.Fatal(err)
	}
	if l.Name() != "main" || l.Addr().String() == "127.0.0.1:0" {
		t.Errorf("%s on %s", l.Name(), l.Addr())
	}
	_, err = listenAt(t, l.Addr().String(), 0)
	wantError(t, err, "listener main: ", l.Addr().String(), "taken by another process", "choose another address")
}

// TestAUnixSocket checks the mode of a unix socket, and that Close removes it.
func TestAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for mode, want := range map[fs.FileMode]fs.FileMode{0: 0o600, 0o660: 0o660, 0o666: 0o666} {
		l, err := listenAt(t, "unix:"+path, mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != want|fs.ModeSocket {
			t.Errorf("mode %v, want %v", got, want)
		}
		_ = l.Close()
		if _, err := os.Stat(path); err == nil {
			t.Error("the socket is still there after Close")
		}
	}
}

// TestSocketIsPrivateFromTheStart opens a socket without the chmod that follows, and
// checks that no other user could connect in between.
func TestSocketIsPrivateFromTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	lc := net.ListenConfig{Control: createPrivate}
	l, err := lc.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got&0o077 != 0 {
		t.Errorf("mode %v", got)
	}
}

func TestACallerOnAUnixSocketHasNoAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r := serve(t, func(_ *rig, cfg *Config) { cfg.Address = "unix:" + path })
	speak(t, dialRaw(t, r.Addr()))
	if got := <-r.conns; got.Caller.Addr.IsValid() || got.Caller.ID.IsZero() {
		t.Errorf("got %+v", got.Caller)
	}
}

// fullQueue returns the path of a socket whose queue has no room for another
// connection.
func fullQueue(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "full")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return path
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// TestPathOfASocketIsTaken checks that Listen replaces a socket that nobody serves, and
// no other file that is at the path of the socket.
func TestPathOfASocketIsTaken(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := listenAt(t, "unix:"+stale, 0); err != nil {
		t.Errorf("a socket that nobody serves: %v", err)
	}
	_, err = listenAt(t, "unix:"+stale, 0) // the socket is served now
	wantError(t, err, stale, "served by another process")

	if runtime.GOOS == "linux" { // elsewhere a full queue looks like a socket that nobody serves
		_, err = listenAt(t, "unix:"+fullQueue(t, dir), 0)
		wantError(t, err, "served by another process")
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(stale, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir} {
		_, err := listenAt(t, "unix:"+path, 0)
		wantError(t, err, path, "is no socket", "choose another path")
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
	_, err = listenAt(t, "unix:"+filepath.Join(dir, "none", "s"), 0)
	wantError(t, err, "no such file or directory")
	_, err = listenAt(t, "unix:@abstract-"+filepath.Base(dir), 0)
	if err == nil {
		t.Error("a socket without a file has no permissions, and was opened")
	}
}
