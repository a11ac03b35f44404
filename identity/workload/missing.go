package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// missing is why there is no first snapshot yet. It is safe for concurrent use.
type missing struct {
	tell func(error) // nil is nobody

	mu  sync.Mutex
	why error // nil if nothing is known
}

// set notes a cause, and tells of it if it is a new one.
func (m *missing) set(why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.why != nil && m.why.Error() == why.Error()
	m.why = why
	if !known && m.tell != nil {
		m.tell(why)
	}
}

// cause returns the last cause, nil if none is known.
func (m *missing) cause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

// errSilent is an agent that takes a connection and says nothing.
var errSilent = errors.New("it does not answer; check the path of the socket, and that what listens there is an agent that runs")

// silent notes that nothing has come from the agent, unless a cause is known.
func (w *watcher) silent() {
	if w.missing.cause() == nil {
		w.missing.set(errSilent)
	}
}

// startError says why there is no first snapshot. It is called after the last
// call of the watcher.
func (w *watcher) startError(after time.Duration) error {
	why := w.missing.cause()
	if why == nil {
		why = errSilent
	}
	return fmt.Errorf("no X509-SVID from the Workload API at %s within %s: %w", w.address, after, why)
}

// cause returns an error of the watch with what to check.
func (w *watcher) cause(err error) error {
	if status.Code(err) == codes.PermissionDenied {
		return fmt.Errorf("%w; the agent runs; check that this workload is registered with it, under the user it runs as", plain(err))
	}
	if failed := connect(w.address); failed != nil { // gRPC keeps only the text of it
		return failed
	}
	return fmt.Errorf("%w; check the path of the socket, and that what listens there is an agent that runs", plain(err))
}

// connectTimeout bounds one try to connect.
const connectTimeout = time.Second

// connect tries to connect to an address that gRPC could not reach, and returns why
// that is not possible and what to check; nil if it is.
func connect(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	at := u.Host
	if u.Scheme == "unix" {
		at = u.Path
		if at == "" {
			at = u.Opaque
		}
	}
	conn, err := (&net.Dialer{Timeout: connectTimeout}).Dial(u.Scheme, at)
	if err == nil {
		_ = conn.Close()
		return nil
	}
	return fmt.Errorf("%w; %s", err, toCheck(err, u.Scheme, at))
}

// maxPath is how many bytes the path of a unix socket may have (unix(7)).
const maxPath = 107

// toCheck returns what to check when a connection failed.
func toCheck(err error, network, at string) string {
	dir := filepath.Dir(at)
	_, missing := os.Stat(dir)
	switch {
	case network != "unix":
		return "check that the agent runs and listens there, and that this workload is registered with it"
	case errors.Is(err, fs.ErrNotExist) && errors.Is(missing, fs.ErrNotExist):
		return "there is no directory " + dir + ": check the path of the socket, that the directory is mounted here, that the agent runs, and that this workload is registered with it"
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such socket: check the path of the socket, that the agent runs, and that this workload is registered with it"
	case len(at) > maxPath:
		return fmt.Sprintf("the path has %d bytes, and that of a socket at most %d: choose a shorter one", len(at), maxPath)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens on the socket any more: check that the agent runs"
	case errors.Is(err, fs.ErrPermission):
		return "check the permissions of the socket and of its directory, and the user that this process runs as"
	}
	return "check the path of the socket, and that the agent runs"
}
